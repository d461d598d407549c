"""`timezone=`: times without an offset, and the clock that features read, in a zone of the user's.

The reference is Python's own `zoneinfo`, one time at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from river import linear_model

from anabranch import Event, Pipeline, day_of_week, hour_of_day, inline
from anabranch.dataflows.batch.batch import NO_ROWS, RawBatch, RawRows
from anabranch.dataflows.messages.event_time import parse_time_ms
from anabranch.dataflows.messages.local_time import LocalTime
from anabranch.dataflows.recovery.manifest import describe
from anabranch.dataflows.source.decoder import BatchDecoder
from anabranch.state.errors import DeclarationError
from tests.support.commands import Call, caller
from tests.support.history import values
from tests.support.kafka_broker import KafkaBroker

PARIS = ZoneInfo("Europe/Paris")
ZONES = ["Europe/Paris", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "Etc/GMT-14"]
HOUR = 3_600_000

PIPELINE = """
from anabranch import Event, Pipeline, day_of_week, field, hour_of_day, inline
from river import linear_model

class Pay(Event):
    id: str
    ts: str
    amount: float
    fraud: bool

pipeline = Pipeline(
    name="{name}", event=Pay, label=inline("fraud"), model=linear_model.LogisticRegression(),
    features=[hour_of_day(), day_of_week(), field("amount")], timezone="{zone}",
    with_features=True, allowed_lateness="3h",
)
"""


class Pay(Event):
    id: str
    ts: int
    fraud: bool


def pay(**changes: Any) -> Pipeline:
    declared: dict[str, Any] = {
        "name": "pay",
        "event": Pay,
        "label": inline("fraud"),
        "features": [hour_of_day(), day_of_week(), hour_of_day(cyclic=True)],
        "model": linear_model.LogisticRegression(),
    }
    return Pipeline(**declared | changes)


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2025-01-06T01:00:00", "2025-01-06T00:00:00"),
        ("2025-07-06", "2025-07-05T22:00:00"),
        ("2025-07-05T24:00:00", "2025-07-05T22:00:00"),
        ("2025-10-26T01:59:59", "2025-10-25T23:59:59"),
        ("2025-10-26T02:30:00", "2025-10-26T00:30:00"),  # comes twice: the first, in summer time
        ("2025-10-26T03:00:00", "2025-10-26T02:00:00"),
        ("2025-03-30T02:30:00", "2025-03-30T01:30:00"),  # left out: 03:30 in summer time
        ("2025-03-30T03:30:00", "2025-03-30T01:30:00"),
        ("2025-10-26T02:30:00+01:00", "2025-10-26T01:30:00"),  # an offset tells
        ("2025-10-26T02:30:00Z", "2025-10-26T02:30:00"),
    ],
)
def test_times_without_an_offset_are_of_the_zone(text: str, utc: str) -> None:
    want = round(datetime.fromisoformat(utc).replace(tzinfo=UTC).timestamp() * 1000)
    assert parse_time_ms(text, 1.0, PARIS) == want
    if len(text) == 19 and "24:" not in text:
        for fold in (0, 1):
            assert (
                parse_time_ms(datetime.fromisoformat(text).replace(fold=fold), 1.0, PARIS) == want
            )


@given(
    st.sampled_from(ZONES),
    st.lists(st.datetimes(datetime(1972, 1, 1), datetime(2090, 1, 1)), max_size=20),
    st.integers(-5, 5),
)
def test_local_times_equal_zoneinfo(name: str, moments: list[datetime], near: int) -> None:
    change = datetime(2025, 10, 26, 1) + timedelta(milliseconds=near)
    every = [*moments, change, datetime(2025, 3, 30, 1) + timedelta(milliseconds=near)]
    utc = [moment.replace(tzinfo=UTC) for moment in every]
    times = np.array([round(moment.timestamp() * 1000) for moment in utc])
    offsets = [moment.astimezone(ZoneInfo(name)).utcoffset() for moment in utc]
    want = times + [
        round(offset.total_seconds() * 1000) for offset in offsets if offset is not None
    ]
    local = LocalTime(name)
    assert local.wall_ms(times).tolist() == want.tolist()
    for time, each in zip(times, want, strict=True):
        assert local.wall_ms(np.array([time, time])).tolist() == [each, each]


def test_the_first_and_the_last_year_have_local_times() -> None:
    times = np.array([-62_135_596_800_000, 253_402_300_799_999])
    assert len(LocalTime("Asia/Kathmandu").wall_ms(times)) == 2
    for text in ("0001-01-01T00:00:00", "9999-12-31T23:59:59"):
        for zone in ("Etc/GMT-14", "Etc/GMT+12"):
            try:
                parse_time_ms(text, 1.0, ZoneInfo(zone))
            except ValueError as error:
                assert "outside the years 1 to 9999" in str(error)  # noqa: PT017


def features(pipeline: Pipeline, times: list[int]) -> np.ndarray[Any, Any]:
    values = [f'{{"id":"{n}","ts":{ts},"fraud":false}}'.encode() for n, ts in enumerate(times)]
    n = len(values)
    stamps = np.array(times, np.int64)
    rows = RawRows("pay.events", values, np.zeros(n, np.int64), np.arange(n), stamps, 0)
    raw = RawBatch("0", 0, rows, NO_ROWS, np.arange(n), 2e9, NO_ROWS)
    return BatchDecoder(pipeline, now=lambda: 2e9).decode(raw).features


def test_the_features_of_the_clock_are_those_of_the_zone() -> None:
    moments = [datetime(2025, 3, 29, 22, tzinfo=UTC) + timedelta(minutes=20 * n) for n in range(99)]
    times = [round(moment.timestamp() * 1000) for moment in moments]
    found = features(pay(timezone="Europe/Paris"), times)
    local = [moment.astimezone(PARIS) for moment in moments]
    assert np.allclose(found[:, 0], [each.hour + each.minute / 60 for each in local])
    assert found[:, 1].tolist() == [each.weekday() for each in local]
    assert not np.allclose(found, features(pay(), times))
    assert np.array_equal(features(pay(), times), features(pay(timezone="UTC"), times))
    assert np.array_equal(features(pay(), times), features(pay(timezone="Etc/UTC"), times))


@pytest.mark.parametrize(
    "name", ["Europe/Pariss", "", "Europe", "../etc/passwd", "+01:00", 5, None]
)
def test_an_unknown_zone_is_one_sentence(name: Any) -> None:
    with pytest.raises(DeclarationError, match=r"timezone .* of pipeline 'pay' is unknown here"):
        pay(timezone=name)


def test_a_state_belongs_to_its_zone() -> None:
    assert describe(pay()) == describe(pay(timezone="UTC"))
    assert "timezone" not in describe(pay())["times"]
    assert describe(pay(timezone="Europe/Paris"))["times"].endswith("timezone Europe/Paris")


@pytest.fixture
def call(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    return caller(tmp_path, capfd)


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:{tmp_path / 'bus'}"
        return
    broker: KafkaBroker = request.getfixturevalue("kafka_broker")
    yield broker.url


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_run_replay_and_skew_agree_over_both_changes_of_the_clock(
    tmp_path: Path, call: Call, url: str, suffix: str
) -> None:
    name = f"zone-{suffix}"
    (tmp_path / "pay.py").write_text(PIPELINE.format(name=name, zone="Europe/Paris"))
    nights = [datetime(2025, 3, 30), datetime(2025, 10, 26)]
    texts = [night + timedelta(minutes=30 * n) for night in nights for n in range(-10, 20)]
    rows = [
        {"id": f"e{n}", "ts": text, "amount": float(n), "fraud": n % 3 == 0}
        for n, text in enumerate(texts)
    ]
    file = tmp_path / f"e.{suffix}"
    if suffix == "parquet":
        pl.DataFrame(rows).write_parquet(file)
    elif suffix == "csv":
        pl.DataFrame(rows).write_csv(file)
    else:
        lines = (
            json.dumps(row | {"ts": text.isoformat()})
            for row, text in zip(rows, texts, strict=True)
        )
        file.write_text("\n".join(lines) + "\n")
    bus = ("--bus", url)
    assert call("publish", "pay.py", file.name, *bus).code == 0
    done = call("run", "pay.py", "--until-end", "--no-state", *bus)
    assert done.code == 0, done.err
    done = call("replay", "pay.py", "--from", file.name, "--to", "rows.parquet")
    assert done.code == 0, done.err
    replayed = pl.read_parquet(tmp_path / "rows.parquet")
    assert len(replayed) == len(rows)
    served = [json.loads(value) for value in values(url, f"{name}.predictions")]
    want = [parse_time_ms(text, 1.0, PARIS) for text in texts]
    by_id = {each["id"]: each for each in served}
    assert [by_id[row["id"]]["ts"] for row in rows] == want
    local = [datetime.fromtimestamp(ms / 1000, PARIS) for ms in want]
    hours = [by_id[row["id"]]["features"]["hour_of_day"] for row in rows]
    assert hours == [each.hour + each.minute / 60 for each in local]
    assert sorted(replayed["hour_of_day"].to_list()) == sorted(hours)
    done = call("skew", "pay.py", *bus)
    assert done.code == 0, done.out + done.err
    done = call("skew", "pay.py", "--events", file.name, *bus)
    assert done.code == 0, done.out + done.err
