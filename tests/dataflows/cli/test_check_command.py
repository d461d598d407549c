"""``anabranch check``: what fits, what does not and why, without publishing anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest

from anabranch.dataflows.bus import open_bus
from anabranch.producers.files import csv_files
from tests.support.commands import Call, caller

T = 1_736_121_600_000
DECLARED = """
import msgspec
from river import linear_model
from anabranch import Event, Label, Pipeline, field, window

class Payment(Event):
    id: str
    ts: int
    card: str
    amount: float
    note: str | None = None

class Verdict(Label):
    id: str
    ts: int
    fraud: bool

pipeline = Pipeline(
    name="pay",
    event=Payment,
    label=Verdict.target("fraud", timeout="1d"),
    features=[field("amount"), window("card", "amount", over="1h", stats=("mean",))],
    model=linear_model.LogisticRegression(),
)
"""
Rows = list[dict[str, Any]]


@pytest.fixture
def call(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    (tmp_path / "pay.py").write_text(DECLARED)
    return caller(tmp_path, capfd)


def payments(count: int, **changed: Any) -> Rows:
    rows = [
        {"id": str(n), "ts": T + 1000 * n, "card": f"c{n % 3}", "amount": n / 2}
        for n in range(count)
    ]
    return [row | changed for row in rows]


def verdicts(count: int, name: str = "{}") -> Rows:
    return [{"id": name.format(n), "ts": T + 60_000 + n, "fraud": n % 2 == 0} for n in range(count)]


def write(path: Path, rows: Rows) -> None:
    path.write_bytes(msgspec.json.Encoder().encode_lines(rows))


def publish(directory: Path, topic: str, rows: Rows, partitions: int = 1) -> None:
    bus = open_bus(f"sqlite:{directory / 'data/bus'}")
    bus.create_topics({topic: partitions})
    publisher = bus.publisher()
    times = [row["ts"] if isinstance(row.get("ts"), int) else T for row in rows]
    publisher.append(topic, [msgspec.json.encode(row) for row in rows], times=times)
    publisher.close()
    bus.close()


def fields(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in report["events"]["fields"]["fields"]}


def test_what_fits_fits(tmp_path: Path, call: Call) -> None:
    write(tmp_path / "events.jsonl", payments(20))
    write(tmp_path / "labels.jsonl", verdicts(10))
    done = call("check", "pay.py", "events.jsonl", "--labels", "labels.jsonl")
    assert done.code == 0, done
    assert "all fits: 20 events and 10 labels" in done.out
    assert "labels: 10 of 10 join one of the 20 events" in done.out
    assert not (tmp_path / "data").exists()


def test_each_field_is_judged_by_itself(tmp_path: Path, call: Call) -> None:
    """Also where a message has more than one fault, of which the decoder names the first."""
    rows = payments(10)
    for row in rows[:4]:
        row["amount"] = str(row["amount"])
    for row in rows[2:5]:
        row["card"] = 7
    rows[9]["note"] = None
    del rows[9]["card"]
    write(tmp_path / "events.jsonl", rows)
    done = call("check", "pay.py", "events.jsonl", "--json")
    assert done.code == 1, done
    report = json.loads(done.out)
    found = fields(report)
    assert found["amount"]["misfits"] == [
        {
            "why": "expected float, got str",
            "count": 4,
            "example": '"0.0"',
            "place": "row 1",
            "castable": 4,
        }
    ]
    assert [(m["why"], m["count"], m["place"]) for m in found["card"]["misfits"]] == [
        ("expected str, got int", 3, "row 3"),
        ("it is not there", 1, "row 10"),
    ]
    assert (found["id"]["present"], found["id"]["misfits"]) == (10, [])
    assert (found["note"]["present"], found["note"]["nulls"]) == (1, 1)
    assert report["events"]["fit"] == 4
    reasons = [(each["reason"], each["count"]) for each in report["events"]["reasons"]]
    assert reasons == [("does not fit the type", count) for count in (3, 2, 1)]
    text = call("check", "pay.py", "events.jsonl")
    assert text.code == 1
    assert "6 of 10 events would be dead letters" in text.out
    assert "Cast[float]" in text.out


def test_labels_of_events_that_do_not_fit(tmp_path: Path, call: Call) -> None:
    rows = payments(10)
    for row in rows[:4]:
        row["amount"] = None
    write(tmp_path / "events.jsonl", rows)
    write(tmp_path / "labels.jsonl", [*verdicts(10), *verdicts(1, "x")])
    arguments = ("check", "pay.py", "events.jsonl", "--labels", "labels.jsonl")
    joined = json.loads(call(*arguments, "--json").out)["join"]
    assert (joined["joined"], joined["of_refused"], joined["label_ids"]) == (6, 4, ["x"])
    assert "4 labels are of events that would be dead letters" in call(*arguments).out


def test_a_misspelt_field_is_paired_with_the_declared_one(tmp_path: Path, call: Call) -> None:
    rows = [{"amout" if k == "amount" else k: v for k, v in row.items()} for row in payments(5)]
    write(tmp_path / "events.jsonl", rows)
    done = call("check", "pay.py", "events.jsonl", "--json")
    report = json.loads(done.out)
    assert fields(report)["amount"]["similar"] == "amout"
    (unknown,) = report["events"]["fields"]["unknown"]
    assert (unknown["name"], unknown["similar"], unknown["count"]) == ("amout", "amount", 5)
    text = call("check", "pay.py", "events.jsonl").out
    assert "did you mean 'amount'?" in text


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_tables(suffix: str, tmp_path: Path, call: Call) -> None:
    rows = payments(6)
    frame = pl.DataFrame(rows).with_columns(pl.col("id").cast(pl.Float64))
    path = tmp_path / f"events.{suffix}"
    frame.write_csv(path) if suffix == "csv" else frame.write_parquet(path)
    write(tmp_path / "labels.jsonl", verdicts(6))
    done = call("check", "pay.py", path.name, "--labels", "labels.jsonl")
    assert done.code == 0, done
    assert "6 of 6 join" in done.out


@pytest.mark.parametrize(
    ("label_id", "differ"),
    [
        ("o-{}", "in what is around their digits"),
        ("{}.0", "in a decimal point"),
        (" {}", "in blanks around them"),
        ("00{}", "in leading zeros"),
        ("z", None),
    ],
)
def test_labels_that_find_nothing(
    label_id: str, differ: str | None, tmp_path: Path, call: Call
) -> None:
    write(tmp_path / "events.jsonl", payments(30)[5:])
    write(tmp_path / "labels.jsonl", verdicts(20, label_id)[5:])
    arguments = ("check", "pay.py", "events.jsonl", "--labels", "labels.jsonl")
    done = call(*arguments, "--json")
    assert done.code == 1, done
    joined = json.loads(done.out)["join"]
    assert (joined["joined"], joined["differ"]) == (0, differ)
    text = call(*arguments).out
    assert f"{label_id.format(5)!r}" in text
    assert "events '5'" in text


def test_dead_letters_of_every_kind_and_the_order_of_times(tmp_path: Path, call: Call) -> None:
    rows = payments(12)
    rows[3]["ts"] = T - 5_000_000  # late
    rows[4]["id"] = "2"  # a repeat
    rows[5]["amount"] = 1e300  # fits the type; no model takes it, which `run` finds later
    rows[6]["ts"] = "soon"
    rows[7]["ts"] = T  # out of order, but not late
    lines = [msgspec.json.encode(row) for row in rows] + [b"\x00\x00\x00\x00\x07{}"]
    (tmp_path / "events.jsonl").write_bytes(b"\n".join(lines))
    done = call("check", "pay.py", "events.jsonl", "--json")
    report = json.loads(done.out)["events"]
    found = {each["reason"]: (each["count"], each["place"]) for each in report["reasons"]}
    assert found == {
        "late": (1, "row 4"),
        "duplicate id": (1, "row 5"),
        "not a time": (1, "row 7"),
        "not JSON": (1, "row 13"),
    }
    details = {each["reason"]: each["detail"] for each in report["reasons"]}
    assert "Confluent schema-registry prefix, schema id 7" in details["not JSON"]
    assert (report["times"]["out_of_order"], report["times"]["behind_ms"]) == (1, 5000)
    assert report["times"]["earliest"] == T


def test_paths_and_casts(tmp_path: Path, call: Call) -> None:
    (tmp_path / "shop.py").write_text(
        DECLARED.replace("amount: float", 'amount: Cast[float] = path("total.amount")')
        .replace("id: str", "id: int", 1)
        .replace("import Event", "import Cast, path, Event")
    )
    rows = [
        {"id": n, "ts": T + n, "card": "c", "total": {"amount": amount, "tax": 1}}
        for n, amount in enumerate(["1.50", 2, "x", None])
    ]
    del rows[1]["total"]["tax"]
    write(tmp_path / "events.jsonl", [*rows, {"id": 9, "ts": T, "card": "c"}])
    write(tmp_path / "labels.jsonl", verdicts(2))
    arguments = ("check", "shop.py", "events.jsonl", "--labels", "labels.jsonl", "--json")
    done = call(*arguments)
    assert done.code == 1, done
    report = json.loads(done.out)
    amount = fields(report)["total.amount"]
    assert (amount["present"], amount["nulls"]) == (4, 1)
    assert [(each["count"], each["place"]) for each in amount["misfits"]] == [
        (1, "row 3"), (1, "row 4"), (1, "row 5"),
    ]  # fmt: skip
    assert amount["misfits"][2]["why"] == "it is not there"
    (unknown,) = report["events"]["fields"]["unknown"]
    assert (unknown["name"], unknown["count"]) == ("total.tax", 3)
    assert not report["events"]["fields"]["refused"]
    assert (report["events"]["fit"], report["join"]["joined"]) == (2, 2)


def test_seconds_are_told(tmp_path: Path, call: Call) -> None:
    rows = [row | {"ts": row["ts"] // 1000} for row in payments(3)]
    write(tmp_path / "events.jsonl", rows)
    done = call("check", "pay.py", "events.jsonl", "--json")
    times = json.loads(done.out)["events"]["times"]
    assert times["unit"] == "s"
    assert 'time_unit="s"' in times["advice"]
    text = call("check", "pay.py", "events.jsonl")
    assert (text.out + text.err).count("time_unit=") == 1


def test_a_topic_is_read_at_its_start_and_its_end(tmp_path: Path, call: Call) -> None:
    rows = payments(1000)
    rows[1]["amount"] = None
    rows[500]["amount"] = None  # in neither half of the sample
    rows[999]["card"] = None
    publish(tmp_path, "pay.events", rows)
    publish(tmp_path, "pay.labels", verdicts(10))
    done = call("check", "pay.py", "--rows", 100, "--json")
    assert done.code == 1, done
    report = json.loads(done.out)
    assert (report["events"]["read"], report["events"]["total"]) == (100, 1000)
    misfits = {name: each["misfits"] for name, each in fields(report).items() if each["misfits"]}
    assert {name: each[0]["place"] for name, each in misfits.items()} == {
        "amount": "partition 0, offset 1",
        "card": "partition 0, offset 999",
    }
    assert report["labels"]["source"] == "pay.labels"
    assert report["join"]["joined"] == 9  # the tenth event is not in the sample, nor is one refused
    assert "partition 0, offset 999" in call("check", "pay.py", "pay.events", "--rows", 100).out


def test_text_from_data_is_printed_as_it_is(tmp_path: Path, call: Call) -> None:
    write(tmp_path / "events.jsonl", payments(2, **{"[red]x[/red]": "\x1b[31m", "card": "[b]"}))
    done = call("check", "pay.py", "events.jsonl")
    assert "[red]x[/red]" in done.out
    assert "[b]" in done.out
    assert "\x1b" not in done.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nothing.csv",), "there is no file nothing.csv"),
        (("nothing",), "topic 'nothing' does not exist"),
        (("events.jsonl", "--labels", "no.csv"), "there is no file no.csv"),
        (("short.csv",), "line 3 of short.csv has 2 values"),
        (("order.csv",), "no column 'id' for the id of Payment, but 'order_id'"),
    ],
)
def test_what_cannot_be_read_is_a_sentence_and_exit_code_2(
    arguments: tuple[str, ...], says: str, tmp_path: Path, call: Call
) -> None:
    write(tmp_path / "events.jsonl", payments(3))
    publish(tmp_path, "other", [])
    (tmp_path / "short.csv").write_text(f"id,ts,card,amount\na,{T},c,1\nb,{T}\n")
    (tmp_path / "order.csv").write_text(f"order_id,ts,card,amount\na,{T},c,1\n")
    done = call("check", "pay.py", *arguments)
    assert done.code == 2, done
    assert says in done.err.replace("\n", " ")
    assert "Traceback" not in done.err


def test_publish_stops_where_no_row_fits(tmp_path: Path, call: Call) -> None:
    write(tmp_path / "events.jsonl", [row | {"amount": "1,5"} for row in payments(30)])
    done = call("publish", "pay.py", "events.jsonl")
    assert done.code == 1, done
    assert "none of the first 30 rows of events.jsonl fits Payment: nothing was" in done.err
    assert "does not fit the type" in done.err
    assert "$.amount" in done.err
    assert call("topics").out.count("pay.") == 0


def test_publish_tells_of_rows_that_do_not_fit(tmp_path: Path, call: Call) -> None:
    rows = payments(30)
    rows[3]["amount"] = "1,5"
    write(tmp_path / "events.jsonl", rows)
    done = call("publish", "pay.py", "events.jsonl")
    assert done.code == 0, done
    assert "published 30 events" in done.out
    assert "1 of the first 30 rows of events.jsonl would be dead letters" in done.out


def test_several_topics_keys_and_headers(tmp_path: Path, call: Call) -> None:
    (tmp_path / "shop.py").write_text(
        DECLARED.replace(
            "    card: str", '    card: str = message_key()\n    source: str = header("src")'
        )
        .replace("import Event", "import header, message_key, pattern, Topics, Event")
        .replace('name="pay",', 'name="pay", topics=Topics(events=pattern("shop[.].*")),')
    )
    bus = open_bus(f"sqlite:{tmp_path / 'data/bus'}")
    bus.create_topics({"shop.eu": 1, "shop.us": 2})
    publisher = bus.publisher()
    for number, topic in enumerate(("shop.eu", "shop.us")):
        rows = [{"id": f"{number}-{n}", "ts": T + 10 * n + number, "amount": 1.0} for n in range(5)]
        values = [msgspec.json.encode(row) for row in rows]
        headers = [[("src", b"web")]] * 4 + [None]
        publisher.append(
            topic, values, keys=[b"c"] * 5, headers=headers, times=[row["ts"] for row in rows]
        )
    publisher.close()
    bus.close()
    done = call("check", "shop.py", "--json")
    assert done.code == 1, done
    events = json.loads(done.out)["events"]
    assert (events["read"], events["fit"]) == (10, 8)
    assert events["source"] == "shop.eu, shop.us"
    (reason,) = events["reasons"]
    assert reason["count"] == 2
    assert reason["place"] == "shop.eu, partition 0, offset 4"


def test_publish_says_what_was_published_before_a_damaged_line(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_files, "CSV_BLOCK_BYTES", 200)
    lines = "".join(f"p{n},{T + n},c,1\n" for n in range(40))
    (tmp_path / "events.csv").write_text(f"id,ts,card,amount\n{lines}p41,{T}")
    done = call("publish", "pay.py", "events.csv")
    assert done.code == 1, done
    assert "line 42 of events.csv has 2 values, fewer than the 4 columns" in done.err
    assert "(published 40 events to pay.events in" in done.err.replace("\n", " ")
