"""A file with integer ids and keys gives what the same events give on a topic."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from river import linear_model

from anabranch import Event, Pipeline, field, inline, window
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.replay.replay import ReplaySettings, replay
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions

T0 = 1_736_121_600_000


class Sale(Event):
    id: int
    ts: int
    card: int
    member: bool
    amount: float
    good: bool


PIPELINE = Pipeline(
    name="sales",
    event=Sale,
    label=inline("good"),
    features=[
        field("amount"),
        window("card", "amount", over="1h"),
        window("member", over="1h", stats="count"),
    ],
    model=linear_model.LogisticRegression(),
    with_features=True,
)
ROWS = [
    {"id": n, "ts": T0 + n, "card": n % 3, "member": n % 2 == 0, "amount": n / 4, "good": n > 5}
    for n in range(12)
]


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_integer_keys_of_a_file_are_those_of_a_topic(tmp_path: Path, ending: str) -> None:
    bus = MemoryBus()
    bus.create_topics({"sales.events": 1})
    values = [json.dumps(row).encode() for row in ROWS]
    bus.publisher().append("sales.events", values, times=[T0 + n for n in range(12)])
    run_worker(PIPELINE, bus, SourceOptions(until_end=True))
    served = [json.loads(value) for value in bus.values("sales.predictions")]
    assert [row["id"] for row in served] == [str(n) for n in range(12)]

    events, out = tmp_path / f"sales.{ending}", tmp_path / "rows.parquet"
    frame = pl.DataFrame(ROWS)
    if ending == "parquet":
        frame.write_parquet(events)
    elif ending == "csv":
        frame.write_csv(events)
    else:
        frame.write_ndjson(events)
    replay(PIPELINE, ReplaySettings(events=str(events), rows=out))
    rows = pl.read_parquet(out).to_dicts()
    assert [row["id"] for row in rows] == [str(n) for n in range(12)]
    for row, prediction in zip(rows, served, strict=True):
        assert {name: row[name] for name in prediction["features"]} == prediction["features"]
