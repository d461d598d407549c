"""What a time may look like, wherever one is read: in messages, in files, in each unit."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from anabranch.dataflows.messages.event_time import parse_time_ms, parse_times_ms
from anabranch.dataflows.messages.time_unit_check import TimeUnitCheck
from tests.support.commands import Call, caller

DAY = 86_400_000
T0 = 1_736_121_600_000  # 2025-01-06
PIPELINE = """
from anabranch import Event, Pipeline, field, hour_of_day, inline, window
from river import linear_model

class Pay(Event):
    id: str
    ts: {ts}
    card: str
    amount: float
    fraud: bool

pipeline = Pipeline(
    name="pay", event=Pay, label=inline("fraud"), model=linear_model.LogisticRegression(),
    features=[field("amount"), hour_of_day(), window("card", "amount", over="3h")],
    time_unit="{unit}", with_features=True,
)
"""


@pytest.mark.parametrize(
    ("value", "scale", "want"),
    [
        ("1736121600000", 1.0, T0),
        ("-1736121600000", 1.0, -T0),
        (" +1736121600000\t", 1.0, T0),
        ("1736121600", 1000.0, T0),
        ("1736121600.5", 1000.0, T0 + 500),
        ("-0.5", 1000.0, -500),
        ("1.7361216e9", 1000.0, T0),
        ("1736121600000000", 1e-3, T0),
        ("1736121600000000001", 1e-6, T0),
        ("20250106", 1.0, 20250106),
        ("2025-01-06", 1.0, T0),
        ("2025-01-06t00:00:00z", 1.0, T0),
        ("2025-01-06T00:00:00.25z", 1.0, T0 + 250),
        ("2025-01-06t01:00:00+01:00", 1.0, T0),
        ("2025-01-06 00:00:00 UTC", 1.0, T0),
        ("2025-01-05T24:00:00Z", 1.0, T0),
        ("2025-01-05t24:00z", 1.0, T0),
        ("20250105T240000", 1.0, T0),
        ("2025-01-06T24:00:00.000+24:00".replace("+24", "+23"), 1.0, T0 + 3_600_000),
        ("2024-12-31T24:00:00Z", 1.0, T0 - 5 * DAY),
        ("2016-12-31T23:59:60Z", 1.0, 1_483_228_800_000),
    ],
)
def test_numbers_as_text_and_rfc_3339_are_times(value: str, scale: float, want: int) -> None:
    assert parse_time_ms(value, scale) == want


@pytest.mark.parametrize(
    "value",
    ["", "soon", "1" * 30, "1" * 400, "1" * 5000, 10**400, "1e400", "nan", float("inf"), None, True,
     "2025-01-06T24:01:00Z", "9999-12-31T24:00:00Z", "٣" * 13, "1_000", "0x10"],
)  # fmt: skip
def test_what_is_no_time_is_refused_in_a_sentence(value: Any) -> None:
    times, bad = parse_times_ms([value, T0], 1.0)
    assert times.tolist() == [0, T0]
    assert list(bad) == [0]
    assert len(bad[0]) < 200


def test_a_number_in_another_unit_names_that_unit() -> None:
    with pytest.raises(ValueError, match="time of today in us"):
        parse_time_ms(T0 * 1000, 1.0)
    with pytest.raises(ValueError, match="time of today in ms"):
        parse_time_ms(str(T0), 1000.0)


@pytest.mark.parametrize(
    ("spans", "scale", "unit"),
    [
        ([(T0 // 1000, T0 // 1000 + 7200)], 1.0, "s"),
        ([(T0 // 1000, T0 // 1000), (T0 // 1000 + 1, T0 // 1000 + 9)], 1.0, "s"),
        ([(T0 // 1000, T0 // 1000 + 7200)], 1e-3, "ms"),
        ([(T0 // 1000, T0 // 1000 + 7200)], 1e-6, "us"),
        ([(T0, T0 + DAY)], 1.0, None),
        ([(0, 5), (T0 // 1000, T0 // 1000 + 9)], 1.0, None),  # a synthetic stream from 0 on
        ([(-(10**9), -(10**9))], 1.0, None),
    ],
)
def test_times_all_of_1970_are_told_once_with_the_unit_that_fits(
    caplog: pytest.LogCaptureFixture, spans: list[tuple[int, int]], scale: float, unit: str | None
) -> None:
    told: list[str] = []
    check = TimeUnitCheck("pay.events", scale, told.append)
    with caplog.at_level(logging.WARNING):
        for span in spans:
            check.add(*span)
    assert told == ([] if unit is None else [unit])
    assert len(caplog.records) == len(told)
    assert (check.advice or "").endswith("" if unit is None else f'declare time_unit="{unit}"')


def rows(ts: Any, scale: int = 1) -> list[dict[str, Any]]:
    return [
        {"id": f"e{n}", "ts": ts(T0 // scale + 60_000 // scale * n), "card": f"c{n % 3}",
         "amount": float(n), "fraud": n % 4 == 0}
        for n in range(60)
    ]  # fmt: skip


def write(path: Path, events: list[dict[str, Any]]) -> str:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in events))
    elif path.suffix == ".csv":
        pl.DataFrame(events).write_csv(path, quote_style="non_numeric")
    else:
        pl.DataFrame(events).write_parquet(path)
    return path.name


@pytest.fixture
def call(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    return caller(tmp_path, capfd)


@pytest.mark.parametrize("name", ["text.jsonl", "text.csv", "text.parquet"])
@pytest.mark.parametrize("unit", ["ms", "s"])
def test_times_as_text_replay_like_times_as_numbers(
    tmp_path: Path, call: Call, name: str, unit: str
) -> None:
    scale = {"ms": 1, "s": 1000}[unit]
    (tmp_path / "pay.py").write_text(PIPELINE.format(ts="int", unit=unit))
    found = []
    for each, file in ((str, name), (int, "numbers.jsonl")):
        source = write(tmp_path / file, rows(each, scale))
        done = call("replay", "pay.py", "--from", source, "--to", "rows.parquet")
        assert done.code == 0, done.err
        found.append(pl.read_parquet(tmp_path / "rows.parquet"))
    assert len(found[0]) == 60
    assert found[0].equals(found[1])


@pytest.mark.parametrize("name", ["text.jsonl", "text.csv", "text.parquet"])
def test_published_times_as_text_are_predicted_and_compared(
    tmp_path: Path, call: Call, name: str
) -> None:
    (tmp_path / "pay.py").write_text(PIPELINE.format(ts="int", unit="ms"))
    source = write(tmp_path / name, rows(str))
    bus = ("--bus", "sqlite:bus")
    assert call("publish", "pay.py", source, *bus).code == 0
    done = call("run", "pay.py", "--until-end", "--no-state", *bus)
    assert done.code == 0, done.err
    assert "dead letters: " not in done.err
    done = call("skew", "pay.py", *bus)
    assert done.code == 0, done.out + done.err
    assert "60" in done.out


@pytest.mark.parametrize("digits", [20, 30, 39])
@pytest.mark.parametrize("declared", ["int", "str"])
def test_a_csv_time_with_many_digits_is_one_dead_letter(
    tmp_path: Path, call: Call, digits: int, declared: str
) -> None:
    (tmp_path / "pay.py").write_text(PIPELINE.format(ts=declared, unit="ms"))
    events = rows(str)
    events[7]["ts"] = "1" * digits
    lines = ["id,ts,card,amount,fraud"]
    lines += [",".join(str(v).lower() for v in row.values()) for row in events]
    (tmp_path / "e.csv").write_text("\n".join(lines) + "\n")
    command = ("replay", "pay.py", "--from", "e.csv", "--to", "rows.parquet")
    done = call(*command, "--dead-letters", "dead.jsonl")
    assert done.code == 0, done.err
    (letter,) = map(json.loads, (tmp_path / "dead.jsonl").read_text().splitlines())
    assert (letter["reason"], letter["offset"]) == ("not a time", 7)
    assert len(pl.read_parquet(tmp_path / "rows.parquet")) == 59


def test_digits_beyond_any_integer_are_a_sentence(tmp_path: Path, call: Call) -> None:
    (tmp_path / "pay.py").write_text(PIPELINE.format(ts="int", unit="ms"))
    (tmp_path / "e.csv").write_text(f"id,ts,card,amount,fraud\na,{'1' * 60},c,1.0,true\n")
    for command in (
        ("replay", "pay.py", "--from", "e.csv", "--to", "rows.parquet"),
        ("publish", "pay.py", "e.csv", "--bus", "sqlite:bus"),
    ):
        done = call(*command)
        assert done.code == 1
        assert done.err.startswith("error: ")
        assert "e.csv" in done.err
        assert done.err.count("\n") == 1


def test_seconds_taken_for_milliseconds_are_told_by_every_command(
    tmp_path: Path, call: Call
) -> None:
    (tmp_path / "pay.py").write_text(PIPELINE.format(ts="int", unit="ms"))
    source = write(tmp_path / "e.jsonl", rows(int, 1000))
    bus = ("--bus", "sqlite:bus")
    advice = 'declare time_unit="s"'
    done = call("publish", "pay.py", source, *bus)
    assert (done.out.count(advice), done.err.count(advice)) == (1, 1)
    assert "e.jsonl" in done.out
    done = call("run", "pay.py", "--until-end", "--no-state", *bus)
    assert done.err.count(advice) == 2  # in the log, and below the table
    assert "pay.events" in done.err
    done = call("replay", "pay.py", "--from", source, "--to", "rows.parquet")
    assert (done.out.count(advice), done.err.count(advice)) == (1, 1)


@pytest.mark.parametrize("name", ["e.jsonl", "e.csv", "e.parquet"])
def test_a_file_in_a_smaller_unit_is_refused_with_that_unit(
    tmp_path: Path, call: Call, name: str
) -> None:
    (tmp_path / "pay.py").write_text(PIPELINE.format(ts="int", unit="s"))
    source = write(tmp_path / name, rows(int))
    for command in (
        ("publish", "pay.py", source, "--bus", "sqlite:bus"),
        ("replay", "pay.py", "--from", source, "--to", "rows.parquet"),
    ):
        done = call(*command)
        assert done.code == 1, done.out
        assert "time of today in ms" in done.err
        assert "Traceback" not in done.err
