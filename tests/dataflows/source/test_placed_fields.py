"""Fields that are a message's key, a header or its coordinates, on every bus."""

from __future__ import annotations

import enum
import json
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from river import linear_model

from anabranch import (
    Cast,
    DeclarationError,
    Event,
    Label,
    MemoryBus,
    Pipeline,
    Topics,
    coordinates,
    field,
    header,
    inline,
    message_key,
    one_hot,
    read_outputs,
    window,
)
from anabranch.dataflows.batch.batch import NO_ROWS, Batch, RawBatch, RawRows
from anabranch.dataflows.bus import Bus, open_bus
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.skew.arrival_order import events_from_topic
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.dataflows.source.decoder import BatchDecoder

NOW = int(time.time() * 1000)


class Kind(enum.Enum):
    WEB = "web"
    APP = "app"


class Click(Event):
    id: str = coordinates()
    user: str = message_key()
    source: str | None = header("ce_source")
    amount: float
    ts: int
    paid: bool = False


class Typed(Event):
    id: int = message_key()
    ts: int = header("time")
    kind: Kind = header("kind")
    weight: float = header("weight", default=1.5)
    urgent: Cast[bool] = header("urgent", default=False)


class Verdict(Label):
    id: str = header("about")
    ts: int
    paid: bool


def clicks(topic: str = "clicks", **more: Any) -> Pipeline:
    declared: dict[str, Any] = {
        "name": "clicks",
        "event": Click,
        "label": inline("paid"),
        "features": [field("amount"), window("user", "amount", over="1h", stats=("count",))],
        "model": linear_model.LogisticRegression(),
        "with_features": True,
        "topics": Topics(events=topic),
    }
    return Pipeline(**{**declared, **more})


def typed() -> Pipeline:
    features = [field("weight"), one_hot("kind", ("web", "app"))]
    return clicks(event=Typed, label=inline("urgent"), features=features)


def rows(
    values: Sequence[bytes], keys: Sequence[bytes | None] | None = None, headers: Any = None
) -> RawBatch:
    n = len(values)
    offsets = np.arange(7, 7 + n)
    raw = RawRows("clicks", values, np.full(n, 2), offsets, np.full(n, NOW), 2, keys, headers)
    return RawBatch("0", 0, raw, NO_ROWS, np.arange(n), NOW / 1000)


def decoded(pipeline: Pipeline, raw: RawBatch) -> tuple[Batch, list[str]]:
    batch = BatchDecoder(pipeline).decode(raw)
    return batch, [letter.detail for letter in batch.dead_letters]


def payload(**more: Any) -> bytes:
    return json.dumps({"amount": 2.0, "ts": NOW, **more}).encode()


def test_fields_from_around_the_payload() -> None:
    pipeline = clicks(
        features=[field("amount"), window("user", over="1h"), one_hot("source", "ab")]
    )
    headers = [[("ce_source", b"b"), ("ce_source", b"a")], None, [("other", b"b")]]
    batch, letters = decoded(pipeline, rows([payload()] * 3, [b"u1", b"u2", b"\xc3\xa9"], headers))
    assert letters == []
    assert list(batch.ids) == ["clicks/2/7", "clicks/2/8", "clicks/2/9"]
    assert list(batch.columns["user"]) == ["u1", "u2", "é"]
    assert list(batch.columns["source"]) == ["a", None, None]


@pytest.mark.parametrize("unusual", [b'{"amount": 2.0, "ts": "2026-01-01T00:00:00Z"}', b"not JSON"])
def test_a_message_without_a_valid_key_is_a_dead_letter(unusual: bytes) -> None:
    """Whether the others are decoded at once or one by one."""
    keys = [b"u1", None, b"\xff", b"u2"]
    batch, letters = decoded(clicks(), rows([payload()] * 4, keys))
    assert list(batch.columns["user"]) == ["u1", "u2"]
    assert list(batch.ids) == ["clicks/2/7", "clicks/2/10"]
    assert letters == [
        "Expected a text in UTF-8, got none - at the message's key",
        "Expected a text in UTF-8, got other bytes - at the message's key",
    ]
    batch, letters = decoded(clicks(), rows([payload(), unusual, payload()], [b"a", b"b", None]))
    assert "b" not in batch.columns["user"] or unusual != b"not JSON"
    assert letters[-1].endswith("at the message's key")


def test_other_types_are_made_of_the_text() -> None:
    good = [("kind", b"web"), ("time", str(NOW).encode()), ("weight", b"2.5"), ("urgent", b"1")]
    iso = [("kind", b"app"), ("time", b"2025-12-01T00:00:00Z")]
    bad = [
        ([("kind", b"tv"), ("time", b"1")], "header 'kind'"),
        ([("time", b"1")], "got none - at header 'kind'"),
        ([*good, ("weight", b"heavy")], "header 'weight'"),
    ]
    headers = [good, iso, *(each for each, _ in bad)]
    batch, letters = decoded(typed(), rows([b"{}"] * 5, [b"17", b"18", b"1", b"2", b"3"], headers))
    assert list(batch.ids) == ["17", "18"]
    assert list(batch.columns["kind"]) == ["web", "app"]
    assert list(batch.columns["weight"]) == [2.5, 1.5]
    assert batch.times.tolist() == [NOW, 1_764_547_200_000]
    for detail, (_, where) in zip(letters, bad, strict=True):
        assert where in detail


def test_a_header_needs_a_name() -> None:
    with pytest.raises(DeclarationError, match=r"header\(''\) needs the name of a header"):
        header("")


@pytest.fixture(params=["memory", "sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Bus:
    if request.param == "memory":
        return MemoryBus()
    if request.param == "sqlite":
        return open_bus(f"sqlite:{tmp_path}/bus")
    return open_bus(request.getfixturevalue("kafka_broker").url)


def test_a_run_reads_keys_and_headers(bus: Bus) -> None:
    own = uuid.uuid4().hex
    events, labels = f"e-{own}", f"l-{own}"
    bus.create_topics({events: 2, labels: 2})
    publisher = bus.publisher()
    values = [payload(amount=n) for n in range(20)]
    keys = [f"user {n % 3}".encode() for n in range(20)]
    publisher.append(events, values, keys=keys, partitions=[n % 2 for n in range(20)])
    about = [[("about", f"{events}/{n % 2}/{n // 2}".encode())] for n in range(20)]
    verdicts = [json.dumps({"ts": NOW, "paid": n % 2 == 0}).encode() for n in range(20)]
    publisher.append(labels, verdicts, partitions=[n % 2 for n in range(20)], headers=about)
    publisher.close()
    pipeline = clicks(
        name=f"p-{own}",
        label=Verdict.target("paid", timeout="1d"),
        topics=Topics(events=events, labels=labels),
    )
    run_worker(pipeline, bus, SourceOptions(until_end=True, limit=6))
    predictions = list(read_outputs(pipeline, bus=bus))
    assert {p.id for p in predictions} == {f"{events}/{n % 2}/{n // 2}" for n in range(20)}
    counts = {p.id: p.features["user_amount_1h_count"] for p in predictions if p.features}
    assert max(counts.values()) == 7
    assert len(predictions) == 20
    assert sum(bus.end_offsets(pipeline.topics.dead_letters)) == 0
    arrived = events_from_topic(pipeline, bus, events, lambda *_: None)
    assert arrived.malformed == 0
    assert set(arrived.frame["user"]) == {f"user {n}" for n in range(3)}
    assert set(arrived.frame["event id"]) == counts.keys()
