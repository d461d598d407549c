"""A small pipeline with state, run by the command line in this process, and its expected output."""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from anabranch.dataflows.batch.batch import RawBatch
from anabranch.dataflows.bus import Bus, TopicPartition, open_bus
from anabranch.dataflows.bus.partitioner import partition_of_key
from anabranch.dataflows.pipelines.loader import load_pipeline
from anabranch.dataflows.recovery.state_directory import StateDirectory
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.dataflows.source.event_time_merge import MergedReader
from tests.support.commands import Call, Done

T0 = 1_700_000_000_000
MINUTE = 60_000
PARTITIONS = 3
PIPELINE = """
from river import linear_model, preprocessing

from anabranch import Event, Label, Pipeline, field, since_last, window


class Trade(Event):
    id: str
    ts: int
    account: str
    amount: float


class Verdict(Label):
    id: str
    ts: int
    fraud: bool


pipeline = Pipeline(
    name="trades",
    event=Trade,
    label=Verdict.target("fraud", timeout="2h"),
    features=[
        field("amount"),
        window("account", "amount", over="10m", stats=("count", "sum")),
        since_last("account", within="2h"),
    ],
    model=preprocessing.StandardScaler() | linear_model.LogisticRegression(),
    metrics=("LogLoss",),
    allowed_lateness="5m",
    dedup_window="1h",
    with_features=True,
)
"""
Json = dict[str, Any]


def trades(count: int, seed: int = 1) -> list[tuple[str, Json]]:
    """Trades and labels in order of publishing, each with its account.

    About one per minute. Some are out of order, some late, and some duplicates.
    """
    chance = random.Random(seed)
    sent: list[tuple[int, int, str, Json]] = []
    for i in range(count):
        ts = T0 + i * MINUTE // 2
        account = f"account {chance.randrange(8)}"
        trade = {"id": f"t{i}", "ts": ts, "account": account, "amount": float(i * 13 % 101)}
        sent_at = ts + chance.choice([0, 0, 0, 2, 4, 9]) * MINUTE
        sent.append((sent_at, len(sent), account, trade))
        if chance.random() < 0.1:
            sent.append((sent_at + chance.randrange(30) * MINUTE, len(sent), account, trade))
        verdict = {"id": f"t{i}", "ts": ts + 20 * MINUTE, "fraud": i * 13 % 101 > 50}
        sent.append((ts + 20 * MINUTE, len(sent), account, verdict))
    return [(account, message) for _, _, account, message in sorted(sent, key=lambda s: s[:2])]


def publish(bus: Bus, messages: list[tuple[str, Json]]) -> None:
    """Publish each to the partition of its account, with its event time as publishing time."""
    publisher = bus.publisher()
    for account, message in messages:
        topic = "trades.labels" if "fraud" in message else "trades.events"
        place = partition_of_key(account.encode(), PARTITIONS)
        publisher.append(
            topic, [json.dumps(message).encode()], partitions=place, times=[message["ts"]]
        )
    publisher.close()


def read(bus: Bus, topic: str) -> list[list[Json]]:
    """All messages of a topic, by partition."""
    found: list[list[Json]] = [[] for _ in range(PARTITIONS)]
    reader = bus.reader({TopicPartition(topic, number): 0 for number in range(PARTITIONS)})
    while slices := reader.poll(10_000):
        for part in slices:
            found[part.partition] += map(json.loads, part.values)
    reader.close()
    return found


class StopAfter(threading.Event):
    """A stop event that is set after so many calls, so that a run always ends at the same row."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._left = times

    def is_set(self) -> bool:
        self._left -= 1
        return self._left < 0


@contextmanager
def stopping_after(batches: int | None) -> Iterator[threading.Event]:
    """A stop event that is set once so many batches were read; None: never."""
    stop, read = threading.Event(), MergedReader.read
    left = -1 if batches is None else batches
    if not left:
        stop.set()

    def counting(reader: MergedReader, timeout_s: float = 0.0) -> RawBatch | None:
        nonlocal left
        batch = read(reader, timeout_s)
        if batch is not None:
            left -= 1
            if not left:
                stop.set()
        return batch

    with patch.object(MergedReader, "read", counting):
        yield stop


OUTPUTS = ("trades.predictions", "trades.dead-letters", "trades.drift")


@dataclass(frozen=True, slots=True)
class Kept:
    """A directory with a bus, a pipeline file and a state directory; ``call`` runs commands."""

    directory: Path
    call: Call

    @property
    def state(self) -> Path:
        return self.directory / "state"

    def open_bus(self) -> Bus:
        return open_bus(f"sqlite:{self.directory / 'bus'}")

    def publish(self, messages: list[tuple[str, Json]]) -> None:
        bus = self.open_bus()
        bus.create_topics({"trades.events": PARTITIONS, "trades.labels": PARTITIONS})
        publish(bus, messages)
        bus.close()

    def declare(self, old: str = "", new: str = "") -> None:
        """Write the pipeline file, with a change."""
        assert old in PIPELINE
        (self.directory / "flow.py").write_text(PIPELINE.replace(old, new) if old else PIPELINE)

    def run(self, *more: object, state: object = "state", epoch: str = "1ms") -> Done:
        """Run to the end of what is published."""
        options = (
            "--bus",
            "sqlite:bus",
            "--state",
            state,
            "--until-end",
            "--checkpoint-interval",
            epoch,
        )
        return self.call("run", "flow.py", *options, *more)

    def run_until(self, reads: int, batch: int = 5, epoch_s: float = 0.001) -> bool:
        """Run in this process and stop after so many reads; returns whether it was stopped."""
        pipeline = load_pipeline(str(self.directory / "flow.py"))
        bus = self.open_bus()
        try:
            with (
                stopping_after(reads) as stop,
                StateDirectory.open(self.state, pipeline, bus) as state,
            ):
                options = SourceOptions(limit=batch, until_end=True, stop=stop)
                run_worker(pipeline, bus, options, checkpoint_interval_s=epoch_s, state=state)
        finally:
            bus.close()
        return stop.is_set()

    def outputs(self) -> dict[str, list[list[Json]]]:
        """Everything that was published, by topic and partition."""
        bus = self.open_bus()
        try:
            return {topic: read(bus, topic) for topic in OUTPUTS}
        finally:
            bus.close()

    def copy(self, to: Path, call: Call) -> Kept:
        """A copy in another directory."""
        shutil.copytree(self.directory, to, dirs_exist_ok=True)
        return Kept(to, call)


def refused(done: Done, *words: str) -> str:
    """Assert that the command failed with one sentence with these words, and no traceback."""
    lines = done.err.splitlines()
    said = [line for line in lines if line.startswith("error: ")]
    assert done.code == 1, done
    assert len(said) == 1, done.err
    assert lines[-1] == said[0], done.err
    for noise in ("Traceback", "panicked", "thread '", "RUST_BACKTRACE", "Error:"):
        assert noise not in done.err, done.err
    for word in words:
        assert word in said[0], said[0]
    return said[0]


def went_well(done: Done) -> None:
    """Assert that the command succeeded."""
    assert done.code == 0, done.err
    assert "error" not in done.err
    assert "Traceback" not in done.err


def check_once(outputs: dict[str, list[list[Json]]]) -> None:
    """Assert that no two messages of an output have the same cause."""
    for topic, by_partition in outputs.items():
        marks = Counter(
            (row["topic"], row["partition"], row["offset"], row.get("reason"))
            for rows in by_partition
            for row in rows
        )
        assert all(times == 1 for times in marks.values()), topic
