"""Topics that hold more than events: filters, events and labels on one topic, tombstones."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from river import anomaly, linear_model

from anabranch import (
    Cast,
    Debezium,
    DeclarationError,
    Event,
    Json,
    Label,
    MemoryBus,
    MessagePack,
    Pipeline,
    Prediction,
    Topics,
    field,
    inline,
    path,
    read_outputs,
    window,
)
from anabranch.dataflows.check.report import check
from anabranch.dataflows.check.sample import Sample
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.dataflows.source.decoder import BatchDecoder
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics
from tests.support.commands import caller

T0 = 1_700_000_000_000


class Purchase(Event):
    id: str
    ts: int
    user: str
    amount: float


class Inlined(Purchase):
    big: bool


class Refund(Label):
    id: str
    ts: int
    bad: bool = True


def pipeline(**changes: Any) -> Pipeline:
    options: dict[str, Any] = {
        "name": "shop",
        "topics": Topics(events="shop.all", labels="shop.all"),
        "event": Purchase,
        "label": Refund.target("bad", timeout="1h", default=False),
        "features": [field("amount"), window("user", "amount", over="1h")],
        "model": linear_model.LogisticRegression(),
        "where": {"type": "purchase"},
        "label_where": {"type": ["refund", "chargeback"]},
        "with_features": True,
    }
    return Pipeline(**(options | changes))


def message(i: int) -> dict[str, Any]:
    """Of every four messages two are purchases, one a view, one the refund of a purchase."""
    base = {"ts": T0 + 1000 * i, "type": ("purchase", "view", "purchase", "refund")[i % 4]}
    if i % 4 == 3:
        return base | {"id": str(i - 1)}
    return base | {"id": str(i), "user": f"u{i % 3}", "amount": float(i)}


def run(declared: Pipeline, values: list[bytes], limit: int) -> tuple[MemoryBus, dict[str, float]]:
    bus, metrics = MemoryBus(), WorkerMetrics("shop")
    bus.create_topics(dict.fromkeys(declared.inputs, 1))
    times = [T0 + 1000 * i for i in range(len(values))]
    bus.publisher().append("shop.all", values, times=times)
    run_worker(declared, bus, SourceOptions(until_end=True, limit=limit), metrics=metrics)
    metrics.flush()
    found: dict[str, float] = {}
    for each in metrics.registry.collect():
        for sample in each.samples:
            if sample.name in (
                "anabranch_filtered_messages_total",
                "anabranch_learned_labels_total",
            ):
                found[sample.name] = sample.value
    return bus, found


@pytest.mark.parametrize("format", [Json(), MessagePack()])
@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_one_topic_holds_events_and_labels(format: Any, limit: int) -> None:
    encode = msgspec.json.encode if format == Json() else msgspec.msgpack.encode
    values = [encode(message(i)) for i in range(200)]
    values[41] = b"\xc1"  # no purchase is lost
    declared = pipeline(format=format)
    assert declared.inputs == ("shop.all",)
    bus, counted = run(declared, values, limit)
    predictions = list(read_outputs(declared, Prediction, bus=bus))
    assert [each.id for each in predictions] == [
        str(i) for i in range(200) if message(i)["type"] == "purchase"
    ]
    for each in predictions:
        own = [
            message(i)["amount"]
            for i in range(each.offset + 1)
            if message(i)["type"] == "purchase" and i % 3 == each.offset % 3
        ]
        assert each.features is not None
        assert [v for name, v in each.features.items() if "mean" in name] == [
            pytest.approx(sum(own) / len(own))
        ]
    letters = [json.loads(each) for each in bus.values("shop.dead-letters")]
    assert [(each["offset"], each["reason"]) for each in letters] == [
        (41, "not JSON" if format == Json() else "malformed message")
    ]
    assert counted["anabranch_filtered_messages_total"] == 49  # views
    assert counted["anabranch_learned_labels_total"] >= 50


def test_a_shared_topic_needs_conditions() -> None:
    with pytest.raises(DeclarationError, match="tell them apart with where= and label_where="):
        pipeline(where=None)
    with pytest.raises(DeclarationError, match="tell them apart"):
        pipeline(label_where=None)


def test_check_reads_the_rows_and_what_is_beside_them() -> None:
    class Change(Event):
        id: str = path("row.id")
        ts: int
        amount: Cast[float]
        op: str = path("$.op")

    declared = pipeline(
        event=Change, format=Debezium(), where={"$.op": "c"}, label_where=None, label=None,
        topics=Topics(events="shop.all"), model=anomaly.HalfSpaceTrees(),
        features=[field("amount")],
    )  # fmt: skip
    values = [
        json.dumps({"op": op, "after": {"row": {"id": str(i)}, "ts": T0, "amount": "2.5"}}).encode()
        for i, op in enumerate("ccu")
    ]
    places = np.arange(3)
    sample = Sample("shop.all", False, values, places + T0, places * 0, places, 3)
    found = check(declared, sample, None)
    assert found.ok
    assert [(each.name, each.present, each.misfits) for each in found.events.fields.fields] == [
        ("row.id", 2, []), ("ts", 2, []), ("amount", 2, []), ("op", 2, []),
    ]  # fmt: skip


def test_what_is_said_of_labels_needs_labels() -> None:
    for option in ({"label_where": {"type": "refund"}}, {"label_format": Json()}):
        with pytest.raises(DeclarationError, match="of labels on a topic of their own"):
            pipeline(
                label=inline("big"),
                event=Inlined,
                topics=Topics(events="a"),
                **({"label_where": None} | option),
            )


def test_filters_leave_the_fast_path_to_what_they_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    slow: Counter[str] = Counter()
    decode_events = BatchDecoder._decode_events

    def counted(self: BatchDecoder, rows: Any) -> Any:
        slow["batches"] += 1
        return decode_events(self, rows)

    monkeypatch.setattr(BatchDecoder, "_decode_events", counted)
    values = [msgspec.json.encode(message(i)) for i in range(400)]
    bus, _ = run(pipeline(), values, 100)
    assert len(bus.values("shop.predictions")) == 200
    assert not slow

    def changed(i: int) -> bytes:
        row = message(i) | {"type": ("purchase", "view")[i % 2]}
        return json.dumps({"op": "cu"[i % 2], "before": None, "after": row, "ts_ms": 1}).encode()

    declared = pipeline(
        format=Debezium(), label=Refund.target("bad"), topics=Topics(events="shop.all"),
        label_where=None,
    )  # fmt: skip
    plain = [row for row in map(message, range(400)) if "user" in row]
    bus, counts = run(
        declared, [changed(row_of["ts"] // 1000 - T0 // 1000) for row_of in plain], 64
    )
    wanted = sum((row["ts"] // 1000 - T0 // 1000) % 2 == 0 for row in plain)
    assert len(bus.values("shop.predictions")) == wanted
    assert counts["anabranch_filtered_messages_total"] == len(plain) - wanted
    assert not slow


def test_tombstones_and_deletes_among_changes() -> None:
    def changed(i: int, op: str) -> bytes:
        row = {"id": str(i), "ts": T0 + i, "user": "u", "amount": 1.0}
        body = {"op": op, "before": row if op == "d" else None, "after": None if op == "d" else row}
        return json.dumps(body).encode()

    values = [changed(1, "c"), b"", changed(2, "d"), changed(3, "u"), b'{"op":"d","before":null}']
    declared = pipeline(
        format=Debezium(), where=None, label_where=None, topics=Topics(events="shop.all"),
        label=Refund.target("bad"),
    )  # fmt: skip
    bus, counted = run(declared, values, 100)
    predictions = list(read_outputs(declared, Prediction, bus=bus))
    assert [each.id for each in predictions] == ["1", "2", "3"]
    assert counted["anabranch_filtered_messages_total"] == 1
    (letter,) = [json.loads(each) for each in bus.values("shop.dead-letters")]
    assert (letter["offset"], letter["reason"]) == (4, "does not fit the type")
    assert "REPLICA IDENTITY" in letter["detail"]


def test_files_are_the_fields_whatever_the_format(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    call = caller(tmp_path, capfd)
    (tmp_path / "shop.py").write_text(
        "from river import linear_model\n"
        "from anabranch import *\n"
        "class Purchase(Event):\n    id: str\n    ts: int\n    amount: float\n"
        "class Refund(Label):\n    id: str\n    ts: int\n    bad: bool = True\n"
        "pipeline = Pipeline(name='shop', event=Purchase, format=Debezium(MessagePack()),\n"
        "    where={'type': 'purchase'}, features=[field('amount')],\n"
        "    label=Refund.target('bad', timeout='1h', default=False),\n"
        "    model=linear_model.LogisticRegression())\n"
    )
    rows, labels = tmp_path / "rows.jsonl", tmp_path / "labels.jsonl"
    rows.write_text('{"id": "a", "ts": 1700000000000, "amount": 2.5}\n')
    labels.write_text('{"id": "a", "ts": 1700000000001}\n')
    checked = call("check", "shop.py", rows)
    assert checked.code == 0, checked
    published = call("publish", "shop.py", rows)
    assert published.code != 0
    assert "would be published as JSON, and the events of pipeline 'shop' are" in published.err
    replayed = call(
        "replay", "shop.py", "--from", rows, "--labels", labels, "--to", "features.parquet"
    )
    assert replayed.code == 0, replayed
    (row,) = pl.read_parquet(tmp_path / "features.parquet").to_dicts()
    assert row["amount"] == 2.5
    assert True in row.values(), "the label was learned"
