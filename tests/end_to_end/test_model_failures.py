"""Rows on which a model raises: a dead letter each, and no other row notices.

What is predicted and learned equals, bit for bit, a River loop that skips those events, however the
stream is cut and wherever it is resumed.
"""

from __future__ import annotations

import copy
import json
import math
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import base, compose, ensemble, imblearn, linear_model, naive_bayes, preprocessing, tree

from anabranch import Event, Label, Pipeline, Shadow, field, inline, undersample
from anabranch.dataflows.bus import Bus, TopicPartition, open_bus
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.recovery.state_directory import StateDirectory
from anabranch.dataflows.replay.late_labels import LateLabels
from anabranch.dataflows.replay.training_rows import RowColumns
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.models.learners.learner import ModelError
from anabranch.state.errors import DeclarationError

T0 = 1_700_000_000_000
NOW_MS = int(time.time() * 1000)
Json = dict[str, Any]


class Sale(Event):
    id: str
    ts: int
    amount: float
    shop: str = "a"
    sold: bool = False


class Sold(Label):
    id: str
    ts: int
    sold: bool


class Choice(Label):
    id: str
    ts: int
    item: str


class Offer(Event):
    id: str
    ts: int
    items: list[str]
    amounts: list[float]


def log_amount(x: Json) -> Json:
    return {"log": math.log(x["amount"])}


def raising() -> Any:
    """The scaler comes first: a lesson half done would have changed it."""
    return (
        preprocessing.StandardScaler()
        + compose.FuncTransformer(log_amount)
    ) | linear_model.LogisticRegression()  # fmt: skip


class FailsToLearn(base.Classifier):
    """Can't learn the amount 13."""

    def __init__(self) -> None:
        self.learned = 0

    def predict_proba_one(self, x: Json) -> dict[bool, float]:
        p = 1 / (2 + self.learned)
        return {True: p, False: 1 - p}

    def learn_one(self, x: Json, y: bool) -> None:
        if x["amount"] == 13:
            raise ValueError("unlucky")
        self.learned += 1


class FailsHalfway(FailsToLearn):
    """Raises at every fifth row, having counted it."""

    def learn_one(self, x: Json, y: bool) -> None:
        self.learned += 1
        if self.learned % 5 == 0:
            raise ValueError("halfway")


def sales(**changes: Any) -> Pipeline:
    declared: Json = {
        "name": "sales",
        "event": Sale,
        "label": inline("sold"),
        "features": [field("amount")],
        "model": raising(),
        "allowed_lateness": "10d",
        "dedup_window": "10d",
    }
    return Pipeline(**(declared | changes))


def sale(i: int, amount: float, shop: str = "a") -> Json:
    sold = (i * 7 + int(amount * 10)) % 3 == 0
    return {"id": f"e{i}", "ts": T0 + 1000 * i, "amount": amount, "shop": shop, "sold": sold}


def bus_with(pipeline: Pipeline, messages: list[tuple[str, Json]]) -> MemoryBus:
    bus = MemoryBus()
    bus.create_topics(dict.fromkeys(pipeline.inputs, 1))
    publisher = bus.publisher()
    for topic, each in messages:
        publisher.append(
            f"{pipeline.name}.{topic}", [json.dumps(each).encode()], times=[each["ts"]]
        )
    return bus


def run(
    pipeline: Pipeline, bus: MemoryBus, limit: int = 100, state: Path | None = None
) -> tuple[list[Json], list[Json]]:
    """The predictions and the dead letters."""
    options = SourceOptions(limit=limit, until_end=True)
    if state is None:
        run_worker(pipeline, bus, options)
    else:
        with StateDirectory.open(state, pipeline, bus) as opened:
            run_worker(pipeline, bus, options, state=opened)
    topics = pipeline.topics
    predictions, dead = (
        [json.loads(value) for value in bus.values(topic)]
        for topic in (topics.predictions, topics.dead_letters)
    )
    return predictions, dead


def events(rows: list[Json]) -> list[tuple[str, Json]]:
    return [("events", row) for row in rows]


def with_labels(rows: list[Json], delay_s: int) -> list[tuple[str, Json]]:
    """Events without their labels, and the labels so many seconds later."""
    messages = events([row | {"sold": False} for row in rows])
    for row in rows:
        said = {"id": row["id"], "ts": row["ts"] + 1000 * delay_s + 500, "sold": row["sold"]}
        messages.append(("labels", said))
    return sorted(messages, key=lambda each: each[1]["ts"])


def skipping_loop(model: Any, messages: list[tuple[str, Json]], inline: bool) -> dict[str, float]:
    """Scores by id of a loop that skips the amounts of which there is no logarithm."""
    scores, rows = {}, {}
    for topic, each in messages:
        if topic == "labels":
            if each["id"] in rows:
                model.learn_one(rows[each["id"]], each["sold"])
            continue
        if each["amount"] <= 0:
            continue
        x = rows[each["id"]] = {"amount": each["amount"]}
        scores[each["id"]] = model.predict_proba_one(dict(x)).get(True, 0.0)
        if inline:
            model.learn_one(dict(x), each["sold"])
    return scores


AMOUNTS = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.5, -1.0, 8.0]), min_size=1, max_size=40)


@given(amounts=AMOUNTS, limit=st.sampled_from([1, 2, 7, 100]), delay=st.sampled_from([None, 0, 3]))
@settings(max_examples=25, deadline=None)
def test_all_other_events_are_as_in_a_loop_that_skips_those_the_model_raises_on(
    amounts, limit, delay
):
    rows = [sale(i, amount) for i, amount in enumerate(amounts)]
    label = inline("sold") if delay is None else Sold.target("sold", timeout="1d")
    pipeline = sales(label=label, metrics=["LogLoss"])
    messages = events(rows) if delay is None else with_labels(rows, delay)
    predictions, dead = run(pipeline, bus_with(pipeline, messages), limit)
    expected = skipping_loop(raising(), messages, delay is None)
    assert {each["id"]: each["score"] for each in predictions} == expected
    bad = [i for i, amount in enumerate(amounts) if amount <= 0]
    of_events = [each for each in dead if each["topic"] == "sales.events"]
    assert [each["offset"] for each in of_events] == bad
    for each in dead:
        assert each["reason"] == "model failed"
    for i, each in zip(bad, of_events, strict=True):
        assert each["detail"].startswith(f"id 'e{i}': LogisticRegression failed while predicting: ")
        assert "ValueError: " in each["detail"]
        assert (
            f"({__file__}, line {log_amount.__code__.co_firstlineno + 1}, in log_amount)"
            in (each["detail"])
        )
    if delay is not None:
        assert len(dead) == 2 * len(bad)
        assert "the model failed on its event" in json.dumps(dead) or not bad


def variants() -> dict[str, Any]:
    forest = ensemble.BaggingClassifier(
        compose.FuncTransformer(log_amount) | tree.HoeffdingTreeClassifier(grace_period=3),
        n_models=3, seed=1,
    )  # fmt: skip
    return {
        "imbalance": {"imbalance": undersample({True: 0.5, False: 0.5})},
        "segments": {"model_key": "shop", "min_labels_per_segment": 2},
        "both": {"model_key": "shop", "imbalance": undersample({True: 0.5, False: 0.5})},
        "challenger": {"challengers": {"other": forest}, "rollout": Shadow()},
        "fallback": {"fallback": 0.25},
        "rollout with fallback": {"rollout": Shadow(), "fallback": 0.25},
        "naive bayes": {"model": compose.FuncTransformer(log_amount) | naive_bayes.GaussianNB()},
        "lessons": {"model": FailsToLearn()},
        "half done": {"model": preprocessing.StandardScaler() | FailsHalfway()},
    }


def some_rows(seed: int, count: int = 60) -> list[Json]:
    chance = random.Random(seed)
    amounts = [0.0, 0.5, 1.0, 2.0, 13.0, -1.0, 8.0]
    return [sale(i, chance.choice(amounts), chance.choice("abc")) for i in range(count)]


@pytest.mark.parametrize("delayed", [False, True], ids=["inline", "delayed"])
@pytest.mark.parametrize("variant", variants())
def test_no_cut_and_no_restart_changes_a_byte(variant, delayed, tmp_path):
    label = Sold.target("sold", timeout="5s", default=False) if delayed else inline("sold")
    pipeline = sales(label=label, with_features=True, **variants()[variant])
    rows = some_rows(3)
    messages = with_labels(rows, 2) if delayed else events(rows)
    expected = run(pipeline, bus_with(pipeline, messages), 1)
    served_otherwise = any(p["model"] == "fallback" for p in expected[0])
    assert expected[1] or served_otherwise, "nothing failed"
    for limit in (3, 17, 1000):
        assert run(pipeline, bus_with(pipeline, messages), limit) == expected
    bus = bus_with(pipeline, [])
    for part, first in enumerate(range(0, len(messages), 23)):
        publisher = bus.publisher()
        for topic, each in messages[first : first + 23]:
            value = json.dumps(each).encode()
            publisher.append(f"sales.{topic}", [value], times=[each["ts"]])
        found = run(pipeline, bus, 5 + part, tmp_path / "state")
    assert found == expected


@given(seed=st.integers(0, 1000), limit=st.sampled_from([1, 5, 100]))
@settings(max_examples=6, deadline=None)
def test_resampled_rows_are_those_of_the_loop_that_skips(seed, limit):
    rows = some_rows(seed)
    desired = {True: 0.5, False: 0.5}
    pipeline = sales(imbalance=undersample(desired, seed=4, correct=False))
    predictions, _ = run(pipeline, bus_with(pipeline, events(rows)), limit)
    river = imblearn.RandomUnderSampler(raising(), desired, seed=4)
    assert {p["id"]: p["score"] for p in predictions} == skipping_loop(river, events(rows), True)


@given(seed=st.integers(0, 1000), limit=st.sampled_from([1, 5, 100]))
@settings(max_examples=6, deadline=None)
def test_models_per_segment_are_those_of_the_loop_that_skips(seed, limit):
    rows = some_rows(seed)
    pipeline = sales(model_key="shop", min_labels_per_segment=3)
    predictions, _ = run(pipeline, bus_with(pipeline, events(rows)), limit)
    shared, own, labels, scores = raising(), {}, {}, {}
    for row in rows:
        if row["amount"] <= 0:
            continue
        x, shop = {"amount": row["amount"]}, row["shop"]
        scores[row["id"]] = own.get(shop, shared).predict_proba_one(x)[True]
        shared.learn_one(x, row["sold"])
        labels[shop] = labels.get(shop, 0) + 1
        if shop in own:
            own[shop].learn_one(x, row["sold"])
        elif labels[shop] == 3:
            own[shop] = copy.deepcopy(shared)
    assert {p["id"]: p["score"] for p in predictions} == scores


@pytest.mark.parametrize("rollout", [{}, {"rollout": Shadow()}], ids=["alone", "rollout"])
def test_a_fallback_serves_what_the_model_fails_on(rollout):
    pipeline = sales(fallback=0.75, **rollout)
    rows = [sale(i, amount) for i, amount in enumerate([1.0, 2.0, 0.0, 3.0])]
    predictions, dead = run(pipeline, bus_with(pipeline, events(rows)))
    assert dead == []
    assert [p["model"] for p in predictions] == [
        "LogisticRegression", "LogisticRegression", "fallback", "LogisticRegression",
    ]  # fmt: skip
    failed = predictions[2]
    assert (failed["score"], failed["prediction"], failed["version"]) == (0.75, True, 0)
    assert failed["instead_of"] == "LogisticRegression"
    assert [p["version"] for p in predictions if p is not failed] == [0, 1, 2]


def test_without_a_fallback_a_rollout_has_a_dead_letter_too():
    pipeline = sales(rollout=Shadow())
    rows = [sale(i, amount) for i, amount in enumerate([1.0, 2.0, 0.0, 3.0])]
    predictions, dead = run(pipeline, bus_with(pipeline, events(rows)))
    assert [p["id"] for p in predictions] == ["e0", "e1", "e3"]
    assert [(each["reason"], each["offset"]) for each in dead] == [("model failed", 2)]


@pytest.mark.parametrize("delayed", [False, True], ids=["inline", "delayed"])
def test_a_label_that_can_not_be_learned_is_a_dead_letter_of_the_label(delayed):
    rows = [sale(i, amount) for i, amount in enumerate([1.0, 13.0, 2.0, 3.0])]
    label = Sold.target("sold") if delayed else inline("sold")
    pipeline = sales(label=label, model=FailsToLearn())
    messages = with_labels(rows, 1) if delayed else events(rows)
    predictions, (dead,) = run(pipeline, bus_with(pipeline, messages))
    assert len(predictions) == 4
    assert (dead["topic"], dead["offset"]) == ("sales.labels" if delayed else "sales.events", 1)
    assert dead["reason"] == "model failed"
    assert dead["detail"].startswith("id 'e1': FailsToLearn failed while learning: ValueError: unl")


def test_a_buffered_label_of_an_event_that_fails_is_a_dead_letter():
    pipeline = sales(label=Sold.target("sold", early_buffer="1h"))
    bad = sale(1, 0.0)
    early = {"id": "e1", "ts": bad["ts"] - 500, "sold": True}
    messages = [("labels", early), *events([sale(0, 1.0), bad])]
    for limit in (1, 100):
        _, dead = run(pipeline, bus_with(pipeline, messages), limit)
        found = {(each["topic"], each["offset"], each["reason"]) for each in dead}
        assert found == {("sales.events", 1, "model failed"), ("sales.labels", 0, "model failed")}


def test_a_ranking_event_is_used_whole_or_not_at_all():
    pipeline = Pipeline(
        name="sales", event=Offer, label=Choice.target("item", timeout="2s"), candidates="items",
        features=[field("amounts")], model=ranking(), allowed_lateness="10d",
    )  # fmt: skip
    amounts = [[1.0, 2.0], [3.0, 0.0, 2.0], [2.0, 5.0]]
    messages: list[tuple[str, Json]] = []
    for i, each in enumerate(amounts):
        items = [f"i{at}" for at in range(len(each))]
        messages.append(
            ("events", {"id": f"e{i}", "ts": T0 + 1000 * i, "items": items, "amounts": each})
        )
        messages.append(("labels", {"id": f"e{i}", "ts": T0 + 1000 * i + 500, "item": "i0"}))
    expected = run(pipeline, bus_with(pipeline, messages), 1)
    predictions, dead = expected
    assert [p["id"] for p in predictions] == ["e0", "e2"]
    assert {(each["topic"], each["offset"]) for each in dead} == {
        ("sales.events", 1), ("sales.labels", 1),
    }  # fmt: skip
    assert run(pipeline, bus_with(pipeline, messages), 100) == expected


def ranking() -> Any:
    return compose.FuncTransformer(log_of_amounts) | linear_model.LogisticRegression()


def log_of_amounts(x: Json) -> Json:
    return {"log": math.log(x["amounts"])}


@pytest.mark.parametrize("delayed", [False, True], ids=["inline", "delayed"])
def test_a_model_that_fails_on_too_many_events_in_a_row_ends_the_run(delayed):
    label = Sold.target("sold") if delayed else inline("sold")
    pipeline = sales(label=label, max_model_failures=3)
    good, bad = [1.0, 2.0], [0.0] * 3
    rows = [sale(i, amount) for i, amount in enumerate(good + bad + good + bad + good)]
    messages = with_labels(rows, 1) if delayed else events(rows)
    predictions, _ = run(pipeline, bus_with(pipeline, messages), 2)
    assert len(predictions) == 6
    rows = [sale(i, amount) for i, amount in enumerate([*good, *bad, 0.0, *good])]
    messages = with_labels(rows, 1) if delayed else events(rows)
    for limit in (1, 2, 100):
        with pytest.raises(ModelError) as raised:
            run(pipeline, bus_with(pipeline, messages), limit)
        assert str(raised.value).startswith(
            "the model of pipeline 'sales' failed on 4 events in a row, first on id 'e2' "
            "(sales.events partition 0 offset 2): LogisticRegression failed while predicting: "
        )
        assert "\n" not in str(raised.value)


def test_a_model_that_learns_nothing_ends_the_run():
    pipeline = sales(model=FailsToLearn(), max_model_failures=3, fallback=0.5)
    rows = [sale(i, 13.0) for i in range(5)]
    with pytest.raises(ModelError, match="failed on 4 labels in a row, first on id 'e0' "):
        run(pipeline, bus_with(pipeline, events(rows)))


@pytest.mark.parametrize("most", [-1, True, 1.5, "3"])
def test_the_limit_is_a_number_of_rows(most):
    with pytest.raises(DeclarationError, match="max_model_failures="):
        sales(max_model_failures=most)


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:{tmp_path}/bus"
    broker = request.getfixturevalue("kafka_broker")
    return str(broker.url)


def test_every_start_goes_on_behind_an_event_that_fails(url: str, tmp_path: Path) -> None:
    pipeline = sales(name=f"sales-{url.partition(':')[0]}", label=Sold.target("sold"))
    rows = some_rows(5, 40)
    rows = [row | {"ts": NOW_MS - 60_000 + 1000 * i} for i, row in enumerate(rows)]
    messages = with_labels(rows, 2)
    expected = skipping_loop(raising(), messages, False)
    bus = open_bus(url)
    bus.create_topics(dict.fromkeys(pipeline.inputs, 1))
    for part in (messages[:30], messages[30:50], messages[50:]):
        publisher = bus.publisher()
        for topic, each in part:
            value = json.dumps(each).encode()
            publisher.append(f"{pipeline.name}.{topic}", [value], partitions=0, times=[each["ts"]])
        publisher.close()
        with StateDirectory.open(tmp_path / "state", pipeline, bus) as state:
            run_worker(pipeline, bus, SourceOptions(until_end=True), state=state)
    predictions = read_all(bus, pipeline.topics.predictions)
    assert {each["id"]: each["score"] for each in predictions} == expected
    assert len(predictions) == len(expected)
    dead = read_all(bus, pipeline.topics.dead_letters)
    bad = sum(row["amount"] <= 0 for row in rows)
    assert bad > 5
    assert Counter((each["topic"].split(".")[1], each["reason"]) for each in dead) == {
        ("events", "model failed"): bad, ("labels", "model failed"): bad,
    }  # fmt: skip
    bus.close()


def read_all(bus: Bus, topic: str) -> list[Json]:
    (end,) = bus.end_offsets(topic)
    reader = bus.reader({TopicPartition(topic, 0): 0})
    found: list[Json] = []
    while reader.positions()[TopicPartition(topic, 0)] < end:
        for piece in reader.poll(1000, 0.5):
            found += map(json.loads, piece.values)
    reader.close()
    return found


def test_a_replay_has_a_row_with_its_own_label_for_all_other_events(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path}/bus"
    bus = open_bus(url)
    rows = some_rows(6, 50)
    pipeline = sales(label=Sold.target("sold"))
    bus.create_topics(dict.fromkeys(pipeline.inputs, 1))
    publisher = bus.publisher()
    for topic, each in with_labels(rows, 2):
        value = json.dumps(each).encode()
        publisher.append(f"sales.{topic}", [value], partitions=0, times=[each["ts"]])
    publisher.close()
    kept: list[Any] = []
    labels = LateLabels(tmp_path, RowColumns(pipeline), 1000)

    def take(results: Any) -> None:
        labels.add(results)
        kept.extend(results.batch.ids)

    run_worker(pipeline, bus, SourceOptions(limit=7, until_end=True), callback=take)
    labels.spill()
    good = [row for row in rows if row["amount"] > 0]
    assert kept == [row["id"] for row in good]
    times = pl.Series([row["ts"] for row in good])
    label = labels.columns(0, times)[0].to_list()
    assert label == [row["sold"] for row in good]
