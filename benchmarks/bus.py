"""Throughput of the two buses, and latency of a pipeline compared with a plain echo."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anabranch.dataflows.bus import Bus, TopicPartition, open_bus
from anabranch.dataflows.declaration.topics import Topics
from benchmarks.echo import echo_between, measure
from benchmarks.pipeline_program import PAYMENTS, pipeline_between
from benchmarks.report import Report, Target
from tests.support.kafka_broker import KafkaBroker, missing_tools

VALUE_BYTES = 150
MESSAGES = {1: 10_000, 10: 100_000, 1000: 500_000}  # by batch
RATES = (1_000, 10_000)


def run(quick: bool) -> Report:
    """Rates at batches of 1, 10 and 1000; latency of echo and pipeline at 1k and 10k events/s."""
    report = Report("bus", [])
    for kind, bus in _buses(report):
        for batch, count in MESSAGES.items():
            report.rows.append(_rates(kind, bus, batch, count // 5 if quick else count))
        for per_second in RATES:
            seconds = 2.0 if quick else 8.0
            report.rows.append(_echo(kind, bus, per_second, seconds))
            report.rows.append(_pipeline(kind, bus, per_second, seconds))
    report.targets = _targets(report.rows)
    report.notes.append(
        f"values of {VALUE_BYTES} bytes with keys, one partition; publishing includes the final "
        "flush; every message read is compared with what was published before it is timed"
    )
    report.notes.append(
        "latency: ms from when a message was due to be published until it (or its prediction) was "
        "read back, through another process; publisher, program, reader (and the broker) share "
        "this machine's cores"
    )
    return report


def _buses(report: Report) -> Iterator[tuple[str, Bus]]:
    with tempfile.TemporaryDirectory(prefix="anabranch-bus-") as directory:
        yield "sqlite", open_bus(f"sqlite:{Path(directory) / 'bus'}")
    reason = missing_tools()
    if reason is not None:
        report.notes.append(f"Kafka was NOT measured: {reason}")
        return
    with KafkaBroker() as broker:
        bus = open_bus(broker.url)
        _warm(bus)  # Java compiles what is hot
        yield "kafka", bus


def _warm(bus: Bus) -> None:
    bus.create_topics({"warm": 1})
    publisher = bus.publisher()
    for _ in range(200):
        publisher.append("warm", [b"x" * VALUE_BYTES] * 500)
    publisher.close()
    with _reading(bus, "warm", 0) as reader:
        _read(reader, 100_000, 1000, None)


def _rates(kind: str, bus: Bus, batch: int, count: int) -> dict[str, Any]:
    topic = f"rates-{batch}"
    bus.create_topics({topic: 1})
    values = [b"%0*d" % (VALUE_BYTES, n) for n in range(count)]
    keys = [b"card-%d" % (n % 5000) for n in range(count)]
    publisher = bus.publisher()
    publisher.append(topic, [b"first"])  # opens the topic
    publisher.flush()
    started = time.perf_counter()
    for at in range(0, count, batch):
        publisher.append(topic, values[at : at + batch], keys=keys[at : at + batch])
    publisher.flush()
    publishing = time.perf_counter() - started
    publisher.close()
    with _reading(bus, topic, 1) as reader:
        _read(reader, count, batch, (values, keys))
    with _reading(bus, topic, 1) as reader:
        reading = _read(reader, count, batch, None)
    return {
        "bus": kind,
        "batch": batch,
        "messages": count,
        "publish µs/msg": publishing / count * 1e6,
        "read µs/msg": reading / count * 1e6,
    }


@contextmanager
def _reading(bus: Bus, topic: str, start: int) -> Iterator[Any]:
    reader = bus.reader({TopicPartition(topic, 0): start})
    yield reader
    reader.close()


def _read(
    reader: Any, count: int, batch: int, wanted: tuple[list[bytes], list[bytes]] | None
) -> float:
    """Seconds from the first message read to the last of ``count``, in batches of ``batch``."""
    found, started = 0, None
    while found < count:
        for part in reader.poll(batch, 1.0):
            if started is None:
                started = time.perf_counter()
            if wanted is not None:
                here = slice(found, found + len(part.values))
                if part.values != wanted[0][here] or part.keys != wanted[1][here]:
                    raise RuntimeError(f"what was read at message {found} is not what was written")
            found += len(part.values)
    assert started is not None
    return time.perf_counter() - started


def _echo(kind: str, bus: Bus, per_second: int, seconds: float) -> dict[str, Any]:
    source, target = f"echo-in-{per_second}", f"echo-out-{per_second}"
    latency = measure(bus, source, target, echo_between, per_second, seconds)
    return {
        "bus": kind,
        "program": "plain echo",
        "events/s": per_second,
        "messages": latency.messages,
        "p50 ms": latency.p50_ms,
        "p99 ms": latency.p99_ms,
    }


def _pipeline(kind: str, bus: Bus, per_second: int, seconds: float) -> dict[str, Any]:
    name = f"latency{per_second}"
    topics = Topics().named(name)
    latency = measure(
        bus, topics.events, topics.predictions, pipeline_between, per_second, seconds, PAYMENTS
    )
    return {
        "bus": kind,
        "program": "pipeline, 24 window features",
        "events/s": per_second,
        "messages": latency.messages,
        "p50 ms": latency.p50_ms,
        "p99 ms": latency.p99_ms,
    }


def _targets(rows: list[dict[str, Any]]) -> list[Target]:
    """Bounds leave a factor of about three, as other programs may share the machine."""
    bounds = {
        ("sqlite", "publish µs/msg"): 3.0,
        ("sqlite", "read µs/msg"): 1.0,
        ("kafka", "publish µs/msg"): 8.0,
        ("kafka", "read µs/msg"): 5.0,
    }
    rates = [
        Target(f"{bus}: {column} at batch 1000", row[column], bound)
        for (bus, column), bound in bounds.items()
        for row in rows
        if row["bus"] == bus and row.get("batch") == 1000
    ]
    latency = {(r["bus"], r["program"], r["events/s"]): r["p50 ms"] for r in rows if "program" in r}
    return rates + [
        Target(
            f"{bus}: p50 at {rate:,} events/s, pipeline / echo", p50 / latency[bus, echo, rate], 5
        )
        for (bus, program, rate), p50 in latency.items()
        if program != (echo := "plain echo")
    ]
