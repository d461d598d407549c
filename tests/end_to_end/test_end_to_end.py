"""A pipeline from bytes to bytes: features equal an offline recomputation; handling of bad input.

Everything runs in this process on an in-memory bus, through the real dataflow.
"""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import anomaly, base, linear_model, naive_bayes, preprocessing, tree

from anabranch import (
    Event,
    Label,
    Pipeline,
    count_distinct,
    decayed,
    field,
    inline,
    one_hot,
    since_last,
    window,
)
from anabranch.dataflows.bus import BusError
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.bus.partitioner import partition_of_key
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.state.windows.specs import DecayedSpec, DistinctSpec, SinceLastSpec, Spec, WindowSpec
from tests.support.waiting import GENEROUS_S
from tests.support.window_reference import Reference

T0 = 1_700_000_000_000
MINUTE = 60_000
STATS = ("count", "sum", "mean", "std", "var", "min", "max", "first", "last")
Json = dict[str, Any]


class Trade(Event):
    id: str
    ts: int
    account: str
    amount: float
    place: str = "x"
    fee: float | None = None
    fraud: bool = False
    kind: Literal["buy", "sell", "swap"] = "buy"
    gain: float = 0.0


class SizedTrade(Trade):
    place_size: int = 0


class Verdict(Label):
    id: str
    ts: int
    fraud: bool


def trades(**changes: Any) -> Pipeline:
    declared: dict[str, Any] = {
        "name": "trades",
        "event": Trade,
        "label": Verdict.target("fraud"),
        "features": [field("amount"), window("account", "amount", over="1h", stats=STATS)],
        "model": preprocessing.StandardScaler() | linear_model.LogisticRegression(),
        "allowed_lateness": "10m",
        "with_features": True,
    }
    return Pipeline(**(declared | changes))


def trade(i: int, minute: float = 0, account: str = "a", **fields: Any) -> Json:
    ts = T0 + int(minute * MINUTE)
    return {"id": f"t{i}", "ts": ts, "account": account, "amount": 1.0} | fields


def verdict(i: int, minute: float, fraud: bool = True) -> Json:
    return {"id": f"t{i}", "ts": T0 + int(minute * MINUTE), "fraud": fraud}


Message = Json | bytes | tuple[Json | bytes, int]
"""A message, alone or with the time (ms) of its publishing."""


def bus_with(
    pipeline: Pipeline,
    events: Sequence[Message] = (),
    labels: Sequence[Message] = (),
    partitions: int = 1,
) -> MemoryBus:
    """A bus on which these were published, each by its account, at its own time if none is said."""
    bus = MemoryBus()
    bus.create_topics(dict.fromkeys(pipeline.inputs, partitions))
    publisher = bus.publisher()
    for topic, messages in zip(pipeline.inputs, (events, labels), strict=False):
        for each in messages:
            message, time = each if isinstance(each, tuple) else (each, None)
            body = {} if isinstance(message, bytes) else message
            value = message if isinstance(message, bytes) else json.dumps(message).encode()
            place = partition_of_key(str(body.get("account", "a")).encode(), partitions)
            publisher.append(topic, [value], partitions=place, times=[time or body.get("ts", T0)])
    return bus


def run(pipeline: Pipeline, bus: MemoryBus, limit: int = 100) -> list[Json]:
    """The predictions."""
    run_worker(pipeline, bus, SourceOptions(limit=limit, until_end=True))
    return [json.loads(value) for value in bus.values(pipeline.topics.predictions)]


def dead_letters(pipeline: Pipeline, bus: MemoryBus) -> list[Json]:
    return [json.loads(value) for value in bus.values(pipeline.topics.dead_letters)]


def arrivals(seed: int, n: int, lateness_ms: int) -> list[tuple[Json, int]]:
    """Trades in an order of arrival in which none is late, and their times."""
    chance = random.Random(seed)
    times = sorted(T0 + int(chance.expovariate(1 / 20_000)) + 7_000 * i for i in range(n))
    rows = [
        trade(
            i,
            ts=time,
            account=f"a{min(int(chance.expovariate(0.8)), 5)}",
            amount=round(chance.gauss(50, 200), 2),
            place=f"p{chance.randrange(4)}",
            fee=chance.choice([None, None, 0.5, chance.random()]),
        )
        for i, time in enumerate(times)
    ]
    delayed = sorted((row["ts"] + chance.randrange(lateness_ms), row["id"], row) for row in rows)
    return [(row, arrived) for arrived, _, row in delayed]


def test_window_features_equal_pandas_and_polars_rolling_on_arrivals_in_order():
    pipeline = trades()
    rows = [row for row, _ in arrivals(1, 400, 1)]
    rows = [row | {"ts": row["ts"] + i} for i, row in enumerate(rows)]  # all times differ
    rows.sort(key=lambda row: row["ts"])
    found = pd.DataFrame([p["features"] for p in run(pipeline, bus_with(pipeline, rows))])

    table = pd.DataFrame(rows)
    table.index = pd.to_datetime(table["ts"], unit="ms")
    rolling = table.groupby("account")["amount"].rolling("1h")
    for stat in ("count", "sum", "mean", "std", "var", "min", "max"):
        expected = getattr(rolling, stat)().fillna(0.0)
        expected = expected.droplevel(0).sort_index().to_numpy()
        np.testing.assert_allclose(
            found[f"account_amount_1h_{stat}"], expected, rtol=1e-9, atol=1e-9, err_msg=stat
        )
    frame = pl.DataFrame(rows).select(
        "id", "account", "amount", pl.from_epoch("ts", time_unit="ms").alias("at")
    )
    lazily = frame.rolling("at", period="1h", group_by="account").agg(
        pl.col("id").last(),
        pl.col("amount").first().alias("first"),
        pl.col("amount").last().alias("last"),
    )
    by_id = {row["id"]: row for row in lazily.iter_rows(named=True)}
    for stat in ("first", "last"):
        expected = [by_id[row["id"]][stat] for row in rows]
        assert found[f"account_amount_1h_{stat}"].tolist() == expected


ENTITY_FEATURES = [
    window("account", "amount", over=("1m", "30m"), stats=STATS),
    since_last("account", within="5m"),
    count_distinct("account", "place", over=("2m", "30m")),
    decayed("account", "amount", half_life="3m", stats=("mean", "count", "sum")),
    window("account", "amount", over="20m", stats=("count", "sum"), resolution="2m"),
]
SPECS: list[Spec] = [
    WindowSpec("amount", (MINUTE, 30 * MINUTE), STATS),
    SinceLastSpec(5 * MINUTE),
    DistinctSpec("place", (2 * MINUTE, 30 * MINUTE)),
    DecayedSpec("amount", 3 * MINUTE, ("mean", "count", "sum")),
    WindowSpec("amount", (20 * MINUTE,), ("count", "sum"), 2 * MINUTE),
]


@pytest.mark.parametrize("seed", range(4))
def test_all_window_features_equal_a_recomputation_from_what_has_arrived_in_any_order(seed):
    """Features include the event itself, but no events of later times that arrived before it."""
    pipeline = trades(features=ENTITY_FEATURES)
    rows = arrivals(seed, 250, 9 * MINUTE)
    predictions = run(pipeline, bus_with(pipeline, rows), limit=(1, 7, 50, 1000)[seed])
    reference = Reference(SPECS)
    assert [p["id"] for p in predictions] == [row["id"] for row, _ in rows]
    for prediction, (row, _) in zip(predictions, rows, strict=True):
        code = int(row["place"][1:])
        expected = reference.update(row["account"], row["ts"], row["amount"], code)
        assert list(prediction["features"].values()) == pytest.approx(expected, rel=1e-9, abs=1e-9)


NULLABLE = [
    window("account", "fee", over=("1m", "30m"), stats=STATS),
    decayed("account", "fee", half_life="3m", stats=("mean", "count", "sum")),
]
NULLABLE_SPECS: list[Spec] = [
    WindowSpec("fee", (MINUTE, 30 * MINUTE), STATS),
    DecayedSpec("fee", 3 * MINUTE, ("mean", "count", "sum")),
]


@pytest.mark.parametrize("lateness_ms", [1, 9 * MINUTE], ids=["in order", "any order"])
@pytest.mark.parametrize("seed", range(3))
def test_a_null_is_left_out_of_windows_but_its_event_is_predicted(seed, lateness_ms):
    pipeline = trades(features=NULLABLE)
    rows = arrivals(seed, 250, lateness_ms)
    predictions = run(pipeline, bus_with(pipeline, rows), limit=50)
    assert len(predictions) == len(rows)
    reference = Reference(NULLABLE_SPECS)
    for prediction, (row, _) in zip(predictions, rows, strict=True):
        fee = row["fee"]
        mode = 1 if fee is None else 0
        expected = reference.update(row["account"], row["ts"], fee or 0.0, 0, mode)
        got = list(prediction["features"].values())
        assert got == pytest.approx(expected, rel=1e-9, abs=1e-9), (prediction, row)


def test_predictions_name_their_source_message():
    pipeline = trades()
    events = [trade(i, i, account=f"a{i % 7}") for i in range(60)]
    bus = bus_with(pipeline, events, partitions=3)
    run(pipeline, bus, limit=7)
    seen = []
    for number, log in enumerate(bus.logs(pipeline.topics.predictions)):
        for value in log.values:
            prediction = json.loads(value)
            assert prediction["topic"] == "trades.events"
            assert prediction["partition"] == number
            source = bus.logs("trades.events")[number].values[prediction["offset"]]
            event = json.loads(source)
            assert (prediction["id"], prediction["ts"]) == (event["id"], event["ts"])
            assert prediction["model"] == "LogisticRegression"
            seen.append(prediction["id"])
        offsets = [json.loads(value)["offset"] for value in log.values]
        assert offsets == list(range(len(offsets)))
    assert sorted(seen) == sorted(event["id"] for event in events)


def test_features_are_only_published_on_request():
    pipeline = trades(with_features=False)
    (prediction,) = run(pipeline, bus_with(pipeline, [trade(0)]))
    assert "features" not in prediction
    assert list(prediction) == [
        "id", "ts", "topic", "partition", "offset", "model", "version", "prediction", "score",
    ]  # fmt: skip


def test_a_label_is_learned_at_its_own_time():
    """The version in a prediction is the number of labels that the model had learned."""
    pipeline = trades()
    events = [trade(i, i) for i in range(6)]
    labels = [verdict(0, 1.5), verdict(1, 3.5), verdict(2, 3.6)]
    bus = bus_with(pipeline, events, labels)
    assert [p["version"] for p in run(pipeline, bus)] == [0, 0, 1, 1, 3, 3]
    assert dead_letters(pipeline, bus) == []


@pytest.mark.parametrize("limit", [1, 100])
def test_labels_without_a_pending_prediction_are_dead_letters_and_are_not_learned(limit):
    pipeline = trades(label=Verdict.target("fraud", timeout="10m"))
    events = [trade(0, 0), trade(1, 1), trade(2, 30), trade(3, 31)]
    labels = [verdict(7, 0.5), verdict(0, 0.6), verdict(0, 0.7), verdict(1, 30.5)]
    bus = bus_with(pipeline, events, labels)
    predictions = run(pipeline, bus, limit)
    assert [p["version"] for p in predictions] == [0, 1, 1, 1]
    rejected = dead_letters(pipeline, bus)
    assert [(d["reason"], d["topic"], d["offset"]) for d in rejected] == [
        ("duplicate label", "trades.labels", 2),
        ("label without event", "trades.labels", 0),  # it was held for a while
        ("label after timeout", "trades.labels", 3),
    ]
    assert rejected[1]["given_up"] == {"topic": "trades.events", "partition": 0, "offset": 2}
    assert "'t7'" in rejected[1]["detail"]
    assert json.loads(rejected[0]["payload"]) == labels[2]
    assert json.loads(rejected[1]["payload"]) == labels[0]


@pytest.mark.parametrize("limit", [1, 100])
@pytest.mark.parametrize(
    ("late", "learned", "dead"), [("refuse", 2, ["label after timeout"]), ("update", 3, [])]
)
def test_the_default_label_is_learned_after_the_timeout(limit, late, learned, dead):
    """`t0` and `t1` get no label in time, `t1` gets one too late."""
    label = Verdict.target("fraud", timeout="10m", default=False, late=late, update_within="1h")
    pipeline = trades(label=label)
    events = [trade(0, 0), trade(1, 1), trade(2, 9), trade(3, 12), trade(4, 13)]
    labels = [verdict(1, 12.5), verdict(0, 12.6, fraud=False)]
    if late == "refuse":
        del labels[1]
    bus = bus_with(pipeline, events, labels)
    assert [p["version"] for p in run(pipeline, bus, limit)] == [0, 0, 0, 2, learned]
    assert [d["reason"] for d in dead_letters(pipeline, bus)] == dead


@pytest.mark.parametrize("limit", [1, 100])
def test_an_early_label_is_learned_right_after_its_event(limit):
    pipeline = trades()
    events = [trade(0, 0), trade(1, 2), trade(2, 3)]
    bus = bus_with(pipeline, events, [verdict(1, 1)])
    assert [p["version"] for p in run(pipeline, bus, limit)] == [0, 0, 1]
    assert dead_letters(pipeline, bus) == []


BAD: list[bytes] = [
    b"",
    b"{",
    b"\xff\xfe",
    b"[1,2]",
    json.dumps(trade(9)).encode()[:-9],
    json.dumps(trade(9) | {"ts": "soon"}).encode(),
    json.dumps(trade(9) | {"ts": T0 + 10**13}).encode(),
    json.dumps(trade(9) | {"amount": None}).encode(),
    json.dumps(trade(9)).replace('"amount": 1.0', '"amount": 1e999').encode(),
    json.dumps(trade(9)).replace('"amount": 1.0', '"amount": NaN').encode(),
    json.dumps(trade(9)).replace('"amount": 1.0', '"amount": -Infinity').encode(),
]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("limit", [1, 100])
def test_a_bad_message_is_one_dead_letter_and_the_stream_continues(bad, limit):
    pipeline = trades()
    good: list[Message] = [trade(i, i) for i in range(4)]
    alone = run(pipeline, bus_with(pipeline, good))
    bus = bus_with(pipeline, [*good[:2], (bad, T0 + MINUTE), *good[2:]])
    predictions = run(pipeline, bus, limit)
    assert [p["offset"] for p in predictions] == [0, 1, 3, 4]
    assert [p | {"offset": 0} for p in predictions] == [p | {"offset": 0} for p in alone]
    (letter,) = dead_letters(pipeline, bus)
    assert (letter["topic"], letter["partition"], letter["offset"]) == ("trades.events", 0, 2)


@pytest.mark.parametrize("limit", [1, 100])
def test_repeated_and_late_events_are_dead_letters(limit):
    pipeline = trades()
    events = [trade(0), trade(1, 20), trade(0, 20), (trade(2, 9.9), T0 + 20 * MINUTE), trade(3, 20)]
    bus = bus_with(pipeline, events)
    predictions = run(pipeline, bus, limit)
    assert [p["id"] for p in predictions] == ["t0", "t1", "t3"]
    assert predictions[-1]["features"]["account_amount_1h_count"] == 3
    assert [d["reason"] for d in dead_letters(pipeline, bus)] == ["duplicate id", "late"]


@pytest.mark.parametrize("limit", [1, 100])
def test_a_feature_too_large_to_square_is_a_dead_letter_and_no_model_sees_it(limit):
    pipeline = trades(
        features=[field("place_size"), window("account", "amount", over="1h", stats=("sum",))],
        event=SizedTrade,
    )
    rows = [trade(i, i / 10, place_size=i % 3) for i in range(40)]
    spoilt = [
        *rows[:20],
        trade(100, 2, amount=1e308, account="b", place_size=1),
        trade(101, 2, amount=1e308, account="b", place_size=1),
        *rows[20:],
    ]
    labels = [verdict(i, i / 10 + 0.5, fraud=i % 3 == 0) for i in range(40)]
    expected = run(pipeline, bus_with(pipeline, rows, labels))
    bus = bus_with(pipeline, spoilt, labels)
    predictions = run(pipeline, bus, limit)
    rejected = [d for d in dead_letters(pipeline, bus) if d["reason"] == "feature too large"]
    assert all("account_amount_1h_sum" in letter["detail"] for letter in rejected)
    assert [(d["topic"], d["offset"]) for d in rejected] == [
        ("trades.events", 20),
        ("trades.events", 21),
    ]
    assert [p | {"offset": 0} for p in predictions] == [p | {"offset": 0} for p in expected]


def test_an_overflow_leaves_no_trace_once_it_has_left_the_window():
    pipeline = trades(features=[window("account", "amount", over="1h", stats=STATS)])
    events = [
        trade(0, 0, amount=1e308),
        trade(1, 1, amount=1e308),
        trade(2, 30, amount=3.0),
        trade(3, 62, amount=5.0),
    ]
    bus = bus_with(pipeline, events)
    predictions = run(pipeline, bus)
    assert predictions[-1]["id"] == "t3"
    features = predictions[-1]["features"]
    assert features["account_amount_1h_sum"] == 8.0
    assert features["account_amount_1h_std"] == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("amount", [1e308, -1e200, 1e160])
@pytest.mark.parametrize(
    "model",
    [
        preprocessing.StandardScaler() | linear_model.LogisticRegression(),
        linear_model.LogisticRegression(),
        tree.HoeffdingTreeClassifier(grace_period=5),
        naive_bayes.GaussianNB(),
    ],
    ids=lambda model: str(model).partition("(")[0],
)
def test_one_huge_amount_neither_stops_the_stream_nor_breaks_the_model(model, amount):
    """It is finite, but its square is not."""
    pipeline = trades(model=model, features=[field("amount")], label=inline("fraud"))
    rows = [trade(i, i / 10, amount=i % 3 + i / 10, fraud=i % 3 == 0) for i in range(60)]
    rows[20]["amount"] = amount
    predictions = run(pipeline, bus_with(pipeline, rows))
    assert len(predictions) >= 59
    scores = [p["score"] for p in predictions[-20:]]
    assert all(score is not None and 0 <= score <= 1 for score in scores), scores
    assert len(set(scores)) > 2


def test_empty_topics_end_at_once():
    pipeline = trades()
    bus = bus_with(pipeline)
    assert run(pipeline, bus) == []
    assert dead_letters(pipeline, bus) == []


@pytest.mark.parametrize(
    ("early", "found"), [("0s", {"label without event", "not JSON"}), ("10m", {"not JSON"})]
)
def test_only_labels(early, found):
    pipeline = trades(label=Verdict.target("fraud", early_buffer=early))
    bus = bus_with(pipeline, [], [verdict(0, 1), b"{"])
    assert run(pipeline, bus) == []
    assert {d["reason"] for d in dead_letters(pipeline, bus)} == found


@pytest.mark.parametrize("there", [[], ["trades.events"], ["trades.labels"]])
def test_a_missing_topic_is_one_sentence(there):
    pipeline = trades()
    bus = MemoryBus()
    bus.create_topics(dict.fromkeys(there, 1))
    missing = "trades.labels" if "trades.events" in there else "trades.events"
    with pytest.raises(BusError, match=f"topic '{missing}' of pipeline 'trades' does not exist"):
        run_worker(pipeline, bus, SourceOptions(until_end=True))
    assert sorted(bus.topics()) == there


def test_an_output_topic_has_at_least_as_many_partitions_as_the_events():
    pipeline = trades()
    bus = MemoryBus()
    bus.create_topics({"trades.events": 2, "trades.labels": 1, "trades.drift": 1})
    run_worker(pipeline, bus, SourceOptions(until_end=True))
    assert bus.topics()["trades.drift"] == bus.topics()["trades.predictions"] == 2


def test_an_unknown_field_is_ignored_unless_the_type_forbids_it():
    pipeline = trades()
    bus = bus_with(pipeline, [trade(0) | {"colour": 1}])
    assert len(run(pipeline, bus, 100)) == 1
    assert dead_letters(pipeline, bus) == []


def test_from_latest_only_later_messages_are_read():
    pipeline = trades()
    bus = bus_with(pipeline, [trade(0)])
    run_worker(pipeline, bus, SourceOptions(start_offset="latest", until_end=True))
    assert bus.values("trades.predictions") == []


REFUSED = """
import sys
from anabranch.dataflows.bus import BusError
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.dataflows.runtime.worker import run_worker
from tests.end_to_end.test_end_to_end import bus_with, trade, trades

bus = bus_with(trades(), [trade(i, i) for i in range(5)])
made = bus.publisher

def publisher(stop=None):
    def refuse(*_, **__):
        raise BusError("the broker has gone away")
    inner = made()
    setattr(inner, sys.argv[1], refuse)
    return inner

bus.publisher = publisher
try:
    run_worker(trades(), bus, SourceOptions(until_end=True))
except BusError as error:
    sys.exit(f"reported: {error}")
"""


@pytest.mark.parametrize("failing", ["append", "flush"])
def test_a_bus_that_rejects_predictions_ends_the_run_with_its_error(failing):
    """In a process of its own, as a second failure of the engine during the first aborts it."""
    ended = subprocess.run(
        [sys.executable, "-c", REFUSED, failing],
        capture_output=True,
        text=True,
        timeout=GENEROUS_S,
        check=False,
    )
    assert ended.stderr.strip().endswith("reported: the broker has gone away"), ended.stderr[-2000:]
    assert ended.returncode == 1


def test_a_bus_that_can_no_longer_be_read_ends_the_run_with_its_error():
    pipeline = trades()
    bus = bus_with(pipeline, [trade(i, i) for i in range(5)])
    made = bus.reader

    def reader(*args: Any, **named: Any) -> Any:
        inner = made(*args, **named)

        def refuse(*_: Any, **__: Any) -> None:
            raise BusError("the broker has gone away")

        inner.poll = refuse
        return inner

    bus.reader = reader  # type: ignore[method-assign]
    with pytest.raises(BusError, match=r"^the broker has gone away$"):
        run_worker(pipeline, bus, SourceOptions(until_end=True))


class Fragile(base.Classifier):
    """A model that fails at the amount 13."""

    def learn_one(self, x: dict[str, float], y: bool) -> None:
        """Nothing."""

    def predict_proba_one(self, x: dict[str, float]) -> dict[bool, float]:
        if x["amount"] == 13:
            raise ZeroDivisionError("unlucky")
        return {True: 0.25, False: 0.75}


def test_an_event_that_the_model_fails_on_is_a_dead_letter_with_its_name_and_its_reason():
    pipeline = trades(model=Fragile(), features=[field("amount")])
    bus = bus_with(pipeline, [trade(i, i, amount=10 + i) for i in range(5)])
    assert [each["id"] for each in run(pipeline, bus)] == ["t0", "t1", "t2", "t4"]
    (dead,) = dead_letters(pipeline, bus)
    assert dead["offset"] == 3
    assert "Fragile failed while predicting: ZeroDivisionError: unlucky" in dead["detail"]


def test_several_classes():
    pipeline = trades(
        label=inline("kind"), model=naive_bayes.GaussianNB(), features=[field("amount")]
    )
    kinds = ["buy", "sell", "swap"]
    rows = [trade(i, i, amount=10 * (i % 3) + i % 7 / 10, kind=kinds[i % 3]) for i in range(30)]
    predictions = run(pipeline, bus_with(pipeline, rows), limit=7)
    assert predictions[0]["prediction"] is None
    assert predictions[0]["probabilities"] == {}
    assert [p["prediction"] for p in predictions[12:]] == [kinds[i % 3] for i in range(12, 30)]
    assert set(predictions[-1]["probabilities"]) == set(kinds)
    assert sum(predictions[-1]["probabilities"].values()) == pytest.approx(1)


def test_regression():
    pipeline = trades(
        label=inline("gain"),
        model=preprocessing.StandardScaler() | linear_model.LinearRegression(),
        features=[field("amount"), one_hot("kind", ("buy", "sell"))],
    )
    rows = [trade(i, i, amount=i % 5, gain=2.0 * (i % 5)) for i in range(400)]
    predictions = run(pipeline, bus_with(pipeline, rows))
    assert "score" not in predictions[0]
    errors = [abs(p["prediction"] - row["gain"]) for p, row in zip(predictions, rows, strict=True)]
    assert np.mean(errors[-50:]) < np.mean(errors[:50]) / 2


@pytest.mark.parametrize("labelled", [False, True])
def test_anomalies_with_and_without_a_label(labelled):
    pipeline = trades(
        label=inline("fraud") if labelled else None,
        model=anomaly.HalfSpaceTrees(
            n_trees=10, height=4, window_size=50, seed=1, limits={"amount": (0, 100)}
        ),
        features=[field("amount")],
    )
    rows = [trade(i, i / 60, amount=(i * 7) % 10) for i in range(300)]
    rows.append(trade(300, 5, amount=95.0))
    predictions = run(pipeline, bus_with(pipeline, rows))
    usual = [p["score"] for p in predictions[200:300]]
    assert predictions[-1]["score"] > max(usual)
    assert predictions[-1]["prediction"] == predictions[-1]["score"]


@given(st.lists(st.sampled_from(["2023-11-14T22:13:20Z", T0, float(T0)]), min_size=1, max_size=6))
@settings(max_examples=10, deadline=None)
def test_times_in_predictions_are_epoch_milliseconds(spelt):
    pipeline = trades()
    rows: list[Message] = [(trade(i) | {"ts": ts}, T0) for i, ts in enumerate(spelt)]
    assert [p["ts"] for p in run(pipeline, bus_with(pipeline, rows))] == [T0] * len(spelt)
