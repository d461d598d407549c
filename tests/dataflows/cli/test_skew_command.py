"""``anabranch skew``: its report without and with skew, and its error messages."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest

from anabranch.dataflows.bus import Bus, open_bus
from anabranch.dataflows.cli.demo.topic_sample import all_messages
from anabranch.dataflows.pipelines.loader import load_pipeline
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.producers.publish import publish
from anabranch.producers.simulators.by_name import simulate
from anabranch.producers.simulators.faults import Faults
from tests.support.commands import Call, Done, caller

EVENTS = 3000
DECLARED = """
from dataclasses import replace
from anabranch.dataflows.pipelines.payments import pipeline as shipped
pipeline = replace(shipped, with_features=True)
"""
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Simulated payments out of order and their predictions, on a bus and as files."""
    place = tmp_path_factory.mktemp("skew")
    (place / "pay.py").write_text(DECLARED)
    pipeline = load_pipeline(str(place / "pay.py"))
    bus = open_bus(f"sqlite:{place / 'data/bus'}")
    bus.create_topics(dict.fromkeys([*pipeline.inputs, "empty", "bare"], 1))
    faults = Faults(malformed=0.01, duplicates=0.02, out_of_order=0.1, delay_s=1000)
    messages = list(simulate("payments", seed=7, events=EVENTS, faults=faults))
    publish(bus, messages, topics={"events": "payments.events", "labels": "payments.labels"})
    run_worker(pipeline, bus, SourceOptions(until_end=True))
    values = [value for batch in messages for value in batch.only("events").values]
    (place / "events.jsonl").write_bytes(b"\n".join(values) + b"\n")
    served = list(predictions(bus))
    write_log(place / "served.jsonl", served)
    table(served).write_parquet(place / "served.parquet")
    bare = [{name: row[name] for name in row if name != "features"} for row in served[:3]]
    publisher = bus.publisher()
    publisher.append("bare", [msgspec.json.encode(row) for row in bare])
    publisher.close()
    bus.close()
    return place


def predictions(bus: Bus) -> Iterator[dict[str, Any]]:
    return map(json.loads, all_messages(bus, "payments.predictions"))


def write_log(path: Path, rows: Rows) -> None:
    path.write_bytes(msgspec.json.Encoder().encode_lines(rows))


def read_log(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def table(rows: Rows) -> pl.DataFrame:
    """Rows as `replay` writes them, with a column per feature."""
    where = ("id", "ts", "topic", "partition", "offset", "prediction", "score")
    return pl.DataFrame([{name: row[name] for name in where} | row["features"] for row in rows])


@pytest.fixture
def call(place: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    return caller(place, capfd)


def found(done: Done) -> dict[str, Any]:
    return json.loads(done.out)


def of_feature(report: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in report["features"] if each["name"] == name)


def test_the_simulator_end_to_end_has_no_differing_row(call: Call) -> None:
    done = call("skew", "pay.py", "--json")
    assert done.code == 0, done
    report = found(done)
    assert report["agree"]
    assert report["compared"] == report["served"] > 0.9 * EVENTS
    assert report["late"] > 10
    assert report["duplicates"] > 10
    assert report["malformed"] > 10
    assert report["not_served"] == report["unknown"] == report["outside"] == 0
    names = load_pipeline("payments").columns
    assert sorted(each["name"] for each in report["features"]) == sorted(names)
    assert {each["differing"] for each in report["features"]} == {0}
    accounted = ("served", "late", "duplicates", "malformed", "too_large")
    assert sum(report[name] for name in accounted) == report["events"]


@pytest.mark.parametrize("features", ["payments.predictions", "served.jsonl", "served.parquet"])
@pytest.mark.parametrize("events", ["payments.events", "events.jsonl"])
def test_files_and_topics_are_the_same(events: str, features: str, call: Call) -> None:
    done = call("skew", "pay.py", "--events", events, "--features", features)
    assert done.code == 0, done
    assert "no skew: 31 features match, 0 values differ" in done.out


OF_LABELS = """
from dataclasses import replace
from anabranch import target, window
from anabranch.dataflows.pipelines.payments import pipeline as shipped
pipeline = replace(shipped, features=[*shipped.features, window("merchant", target(), over="1d")])
"""


@pytest.mark.parametrize("labels", ["payments.labels", "labels.jsonl"])
def test_windows_over_labels_are_checked(labels: str, place: Path, call: Call) -> None:
    (place / "labelled.py").write_text(OF_LABELS)
    replayed = call(
        "replay", "labelled.py", "--from", "payments.events", "--to", "labelled.parquet"
    )
    assert replayed.code == 0, replayed
    rows = pl.read_parquet(place / "labelled.parquet")
    assert rows["merchant_target_1d_count"].max() > 3
    if labels.endswith("jsonl"):
        bus = open_bus(f"sqlite:{place}/data/bus")
        (place / labels).write_bytes(b"\n".join(all_messages(bus, "payments.labels")))
        bus.close()
    names = ["merchant_target_1d_count", "merchant_target_1d_mean"]
    check = ("skew", "labelled.py", "--labels", labels, "--order-tolerance", "0s", "--json")
    done = call(*check, "--features", "labelled.parquet")
    assert done.code == 0, done
    assert found(done)["not_checked"] == []
    assert {of_feature(found(done), name)["differing"] for name in names} == {0}
    # One label too many, in every fiftieth row: as if it had been known before it came.
    leaky = rows.with_columns(pl.col(names[0]) + (pl.int_range(pl.len()) % 50 == 0))
    leaky.write_parquet(place / "leaky.parquet")
    done = call(*check, "--features", "leaky.parquet")
    assert done.code == 1, done
    assert found(done)["features"][0]["name"] == names[0]
    assert of_feature(found(done), names[0])["differing"] == -(-len(rows) // 50)


def test_labels_are_accepted_only_for_windows_over_labels(call: Call) -> None:
    done = call("skew", "pay.py", "--labels", "payments.labels")
    assert done.code == 2, done
    assert "has no windows over labels" in done.err


def test_the_order_of_the_log_does_not_matter(place: Path, call: Call) -> None:
    shuffled = pl.read_parquet(place / "served.parquet").sample(fraction=1, shuffle=True, seed=1)
    shuffled.write_parquet(place / "shuffled.parquet")
    assert call("skew", "pay.py", "--features", "shuffled.parquet").code == 0
    shuffled.drop("topic", "offset").write_csv(place / "shuffled.csv")
    assert call("skew", "pay.py", "--features", "shuffled.csv").code == 0


def test_events_may_be_parquet(place: Path, call: Call) -> None:
    rows = []
    for line in (place / "events.jsonl").read_bytes().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    good = [row for row in rows if set(row) == set(rows[0]) and isinstance(row["amount"], float)]
    frame = pl.DataFrame([row for row in good if isinstance(row["ts"], int)], strict=False)
    frame.write_parquet(place / "events.parquet")
    assert call("skew", "pay.py", "--events", "events.parquet").code == 0


@pytest.mark.parametrize("source", ["payments.events", "events.jsonl"])
def test_training_rows_of_a_replay_have_no_skew(source: str, call: Call) -> None:
    replayed = call("replay", "pay.py", "--from", source, "--to", "rows.parquet")
    assert replayed.code == 0, replayed
    done = call("skew", "pay.py", "--events", source, "--features", "rows.parquet", "--json")
    assert done.code == 0, done
    report = found(done)
    assert report["compared"] == report["served"] > 0.9 * EVENTS
    both = call("skew", "pay.py", "--training", "rows.parquet")
    assert (both.code, "no shift: none of the 31 features" in both.out) == (0, True)


def test_changed_values_are_reported(place: Path, call: Call) -> None:
    rows = read_log(place / "served.jsonl")
    for row in rows[100:400:10]:
        row["features"]["card_amount_1h_mean"] += 0.001
    write_log(place / "changed.jsonl", rows)
    done = call("skew", "pay.py", "--features", "changed.jsonl", "--json")
    assert done.code == 1
    report = found(done)
    assert not report["agree"]
    worst = report["features"][0]
    assert worst["name"] == "card_amount_1h_mean"
    assert worst["differing"] == 30
    assert worst["largest"] == pytest.approx(0.001)
    changed = {row["id"] for row in rows[100:400:10]}
    for example in worst["examples"]:
        assert example["id"] in changed
        assert example["served"] == pytest.approx(example["recomputed"] + 0.001, abs=1e-9)
    assert sum(each["differing"] for each in report["features"]) == 30
    shown = call("skew", "pay.py", "--features", "changed.jsonl")
    assert shown.code == 1
    assert "skew: 1 of 31 features differ" in shown.out
    assert re.search(r"card_amount_1h_mean: \S+ served [\d.]+, recomputed [\d.]+", shown.out)


@pytest.mark.parametrize(
    ("options", "code"),
    [(["--max-mismatch", 0.02], 0), (["--max-mismatch", 0.005], 1), (["--tolerance", 0.01], 0)],
    ids=str,
)
def test_mismatches_within_the_limit_are_tolerated(
    options: list[Any], code: int, place: Path, call: Call
) -> None:
    rows = read_log(place / "served.jsonl")
    for row in rows[100:400:10]:
        row["features"]["card_amount_1h_mean"] += 0.001
    write_log(place / "changed.jsonl", rows)
    assert call("skew", "pay.py", "--features", "changed.jsonl", *options).code == code


def narrower(text: str) -> str:
    """A declaration with a narrower window of the same name."""
    return text + (
        "from anabranch.state.windows.specs import WindowSpec\n"
        "class Narrower(WindowSpec):\n"
        "    def columns(self):\n"
        "        return [c.replace('59m59s', '1h') for c in super().columns()]\n"
        "spec = Narrower('amount', (3_599_000, 86_400_000), ('count', 'mean'))\n"
        "*others, last = pipeline.features\n"
        "pipeline = replace(pipeline, features=[*others, replace(last, spec=spec)])\n"
    )


@pytest.mark.parametrize(
    ("fault", "differing"),
    [
        (narrower, {"merchant_amount_1h_count", "merchant_amount_1h_mean"}),
        (
            lambda text: text.replace(
                "=True)", "=True, allowed_lateness='1m', max_clock_skew='1m')"
            ),
            None,
        ),
    ],
    ids=["a window's width", "the lateness"],
)
def test_features_of_another_declaration_are_reported(
    fault: Callable[[str], str], differing: set[str] | None, place: Path, call: Call
) -> None:
    (place / "other.py").write_text(fault(DECLARED))
    done = call("skew", "other.py", "--json")
    assert done.code == 1
    report = found(done)
    if differing is None:
        assert report["unknown"] > 10
    else:
        assert {each["name"] for each in report["features"] if each["differing"]} == differing


def test_missing_rows_are_counted(place: Path, call: Call) -> None:
    rows = read_log(place / "served.jsonl")
    write_log(place / "gap.jsonl", rows[50:500] + rows[510:1000])
    done = call("skew", "pay.py", "--events", "events.jsonl", "--features", "gap.jsonl", "--json")
    assert done.code == 1
    report = found(done)
    assert (report["not_served"], report["unknown"]) == (10, 0)
    assert report["outside"] == len(rows) - 950  # before the log began, and since it ended
    assert report["missing"][0] == f"{rows[500]['id']} (not served)"
    stranger = rows[5] | {"id": "unknown"}
    write_log(place / "more.jsonl", [*rows, stranger])
    done = call("skew", "pay.py", "--events", "events.jsonl", "--features", "more.jsonl")
    assert done.code == 1
    assert "unknown (no event)" in done.out
    assert "of rows are missing (--max-mismatch)" in done.out
    assert call("skew", "pay.py", "--events", "events.jsonl", "--features", "more.jsonl",
                "--max-mismatch", "0.01").code == 0  # fmt: skip


BAD: list[tuple[list[str], str]] = [
    (["nosuch.py"], "pipeline file 'nosuch.py' does not exist"),
    (["pay.py", "--features", "missing.parquet"], "there is no file missing.parquet"),
    (["pay.py", "--features", "data"], "topic 'data' does not exist on sqlite:data/bus"),
    (["pay.py", "--features", "folder.csv"], "folder.csv is a directory: name a file in it"),
    (["pay.py", "--features", "nosuch"], "topic 'nosuch' does not exist on sqlite:data/bus"),
    (["pay.py", "--features", "empty"], "topic 'empty' on sqlite:data/bus has no messages"),
    (["pay.py", "--events", "empty"], "topic 'empty' on sqlite:data/bus has no messages"),
    (["pay.py", "--features", "bare"], "offset 0: this row has no features; declare with_features"),
    (["pay.py", "--features", "cut.parquet"], "cut.parquet is not a complete Parquet file"),
    (["pay.py", "--training", "cut.parquet"], "cut.parquet is not a complete Parquet file"),
    (["pay.py", "--events", "cut.parquet"], "cut.parquet is not a complete Parquet file"),
    (["pay.py", "--features", "nothing.jsonl"], "nothing.jsonl has no rows: there is nothing to"),
    (["pay.py", "--features", "blank.jsonl"], "blank.jsonl has no rows: there is nothing to"),
    (["pay.py", "--features", "norows.parquet"], "norows.parquet has no rows"),
    (["pay.py", "--features", "text.parquet"], "column 'amount' of text.parquet has type String"),
    (["pay.py", "--training", "text.parquet"], "column 'amount' of text.parquet has type String"),
    (["pay.py", "--training", "less.parquet"], "another version of it: it lacks hour_sin"),
    (["pay.py", "--features", "less.parquet"], "another version of it: it lacks hour_sin"),
    (["pay.py", "--features", "old.jsonl"], "line 1: these features are not those of pipeline"),
    (["pay.py", "--features", "old.jsonl"], "it lacks card_amount_1h_mean and it has card_amount_"),
    (["pay.py", "--features", "mixed.jsonl"], "line 3: these features are not those of pipeline"),
    (["pay.py", "--features", "broken.jsonl"], "broken.jsonl, line 2: this is not a JSON object"),
    (["pay.py", "--features", "word.jsonl"], "line 2: Expected `float | null`, got `str`"),
    (["pay.py", "--features", "ragged.csv"], "line 3 of ragged.csv has 2 values, fewer than the"),
    (["pay.py", "--warmup-from", "no.csv"], "there is no file no.csv"),
    (["pay.py", "--features", "noid.parquet"], "they need a column 'id'"),
    (["pay.py", "--features", "others.jsonl"], "no row of others.jsonl belongs to an event of"),
    (["pay.py", "--events", "short.csv"], "no column 'merchant' in short.csv, which Payment"),
    (["pay.py", "--events", "unsorted.parquet"], "the offsets of partition 0 in unsorted.parquet"),
    (["pay.py", "--events", "typed.csv"], "can be read as Payment: Expected `float`, got `str`"),
    (["pay.py", "--warm-up", "soon"], "'soon' is not a duration"),
    (["pay.py", "--warm-up", "365d"], "give a shorter --warm-up"),
    (["pay.py", "--bus", "redis://x"], "'redis://x' is not a bus"),
]  # fmt: skip


@pytest.fixture(scope="module")
def spoilt(place: Path) -> Path:
    """Create invalid files."""
    rows = read_log(place / "served.jsonl")[:5]
    frame = table(rows)
    frame.write_parquet(place / "whole.parquet")
    (place / "cut.parquet").write_bytes((place / "whole.parquet").read_bytes()[:-20])
    (place / "nothing.jsonl").write_bytes(b"")
    (place / "blank.jsonl").write_bytes(b"\n \n\n")
    frame.clear().write_parquet(place / "norows.parquet")
    frame.with_columns(pl.lit("much").alias("amount")).write_parquet(place / "text.parquet")
    frame[:1].write_csv(place / "ragged.csv")
    with (place / "ragged.csv").open("a") as file:
        file.write("a,1\n")
    frame.drop("hour_sin").write_parquet(place / "less.parquet")
    frame.drop("id", "topic").write_parquet(place / "noid.parquet")
    old = [json.loads(json.dumps(row).replace("1h_mean", "2h_mean")) for row in rows]
    for row in old:
        row["features"].pop("merchant_amount_2h_mean")
        row["features"]["merchant_amount_1h_mean"] = 0.0
    write_log(place / "old.jsonl", old)
    write_log(place / "mixed.jsonl", [*rows[:2], *old])
    write_log(place / "others.jsonl", [row | {"id": "x", "topic": "t"} for row in rows[:1]])
    lines = (place / "served.jsonl").read_bytes().splitlines()
    (place / "broken.jsonl").write_bytes(lines[0] + b"\n" + lines[1][:50] + b"\n")
    spelt = re.sub(rb'"hour_sin":[^,]*', b'"hour_sin":"x"', lines[1])
    (place / "word.jsonl").write_bytes(lines[0] + b"\n" + spelt + b"\n")
    (place / "folder.csv").mkdir()
    events = {"id": ["a", "b"], "ts": [1, 2], "card": "c", "merchant": "m", "amount": 1.0}
    events |= {"country": "DE", "partition": [0, 0], "offset": [4, 3]}
    pl.DataFrame(events).write_parquet(place / "unsorted.parquet")
    (place / "short.csv").write_text("id,ts,card\na,1700000000000,c\n")
    (place / "typed.csv").write_text(
        "id,ts,card,merchant,amount,country\na,1700000000000,c,m,much,DE\n"
    )
    return place


def named(value: list[str] | str) -> str:
    return (value if isinstance(value, str) else " ".join(value))[:45]


@pytest.mark.parametrize(("arguments", "sentence"), BAD, ids=named)
def test_an_error_is_one_sentence_and_exit_code_2(
    arguments: list[str], sentence: str, spoilt: Path, call: Call
) -> None:
    done = call("skew", *arguments)
    assert done.code == 2, done
    assert done.err.startswith("error: ")
    assert len(done.err.splitlines()) == 1
    assert sentence in done.err
    assert done.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["pay.py", "--max-mismatch", "2"],
        ["pay.py", "--tolerance", "-1"],
        ["pay.py", "--bins", "1"],
        ["pay.py", "--max-psi", "much"],
        ["pay.py", "--training", "served.parquet", "--events", "events.jsonl"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], call: Call) -> None:
    done = call("skew", *arguments)
    assert done.code == 2
    assert "Usage: anabranch skew" in done.err


def test_a_training_set_of_served_rows_has_no_shift(place: Path, call: Call) -> None:
    done = call("skew", "pay.py", "--training", "served.parquet", "--json")
    assert done.code == 0, done
    report = found(done)
    assert report["agree"]
    assert report["training_rows"] == report["served_rows"] > 0.9 * EVENTS
    assert {each["psi"] for each in report["features"]} == {0.0}


def test_a_shifted_feature_is_reported_first(place: Path, call: Call) -> None:
    frame = pl.read_parquet(place / "served.parquet")
    moved = frame.with_columns(pl.col("amount") * 2, pl.lit(0.0).alias("country=DE"))
    moved.write_parquet(place / "moved.parquet")
    names = ("--training", "moved.parquet", "--features", "served.jsonl")
    done = call("skew", "pay.py", *names, "--json")
    assert done.code == 1
    report = found(done)
    assert not report["agree"]
    states = [(each["name"], each["state"]) for each in report["features"]]
    assert sorted(states[:2]) == [("amount", "shifted"), ("country=DE", "shifted")]
    assert {state for _, state in states[2:]} == {""}
    shown = call("skew", "pay.py", *names)
    assert shown.code == 1
    assert "2 of 31 features have shifted: their PSI is above 0.25" in shown.out
    assert call("skew", "pay.py", *names, "--max-psi", "50").code == 0
