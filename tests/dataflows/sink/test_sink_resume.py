"""The sink in the real engine with its recovery store: crashes, and each message once."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.inputs import AbortExecution, FixedPartitionedSource, StatefulSourcePartition
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.run import cli_main

from anabranch.dataflows.bus import Bus, TopicPartition, open_bus
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.sink.bus_sink import BusSink, part_name
from tests.support.kafka_broker import free_ports
from tests.support.output_messages import (
    EVENTS,
    INPUTS,
    OUTPUTS,
    PREDICTIONS,
    Row,
    event,
    expected,
    on_outputs,
    output_of,
    recovery,
)
from tests.support.waiting import GENEROUS_S

pytestmark = pytest.mark.stress

PARTITIONS = 2


def row(offset: int) -> Row:
    """Every tenth is rejected for two reasons, some raise alarms, some give nothing."""
    return event(
        offset,
        predicted=offset % 10 not in (3, 7),
        reasons=("odd", "late") if offset % 10 == 3 else (),
        subjects=("loss",) if offset % 17 == 0 else (),
        actions=("promoted", "started") if offset % 23 == 0 else (),
    )


class Rows(FixedPartitionedSource[Any, int]):
    """Offsets 0 to ``count`` of each partition, in pieces of random size.

    ``may_continue`` says before each piece whether the flow may continue.
    """

    def __init__(self, count: int, may_continue: Callable[[int], bool]) -> None:
        self.count = count
        self.may_continue = may_continue

    def list_parts(self) -> list[str]:
        return [str(number) for number in range(PARTITIONS)]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> Any:
        return _RowsPartition(int(for_part), resume_state or 0, self)


class _RowsPartition(StatefulSourcePartition[Any, int]):
    def __init__(self, number: int, at: int, source: Rows) -> None:
        self.number, self.at, self.source = number, at, source

    def next_batch(self) -> list[Any]:
        stop = min(self.at + random.randint(1, 40), self.source.count)
        if stop == self.at:
            raise StopIteration
        if not self.source.may_continue(stop - self.at):
            raise AbortExecution
        start, self.at = self.at, stop
        return [(self.number, start, stop)]

    def snapshot(self) -> int:
        return self.at


def run(
    bus: Bus,
    store: Path,
    count: int,
    may_continue: Callable[[int], bool],
    epoch_s: float,
    run_number: int,
    process: int = 0,
    addresses: list[str] | None = None,
) -> None:
    def outputs(pieces: list[Any]) -> list[Any]:
        return [
            (part_name(number), output_of(list(map(row, range(start, stop))), number, run_number))
            for number, start, stop in pieces
        ]

    flow = Dataflow("toy")
    rows = op.input("rows", flow, Rows(count, may_continue))
    items = op.flat_map_batch("outputs", rows, outputs)
    since = {TopicPartition(topic, number): 0 for topic in OUTPUTS for number in range(PARTITIONS)}
    op.output("sink", items, BusSink(bus, PARTITIONS, recovery=recovery(since)))
    cli_main(
        flow,
        process_id=process if addresses else None,
        addresses=addresses,
        epoch_interval=timedelta(seconds=epoch_s),
        recovery_config=RecoveryConfig(str(store)),
    )


def prepare(bus: Bus, store: Path, count: int) -> None:
    bus.create_topics(dict.fromkeys((*INPUTS, *OUTPUTS), PARTITIONS))
    for number in range(PARTITIONS):
        bus.publisher().append(EVENTS, [b""] * count, partitions=number)
    store.mkdir()
    init_db_dir(str(store), 1)


def values(bus: Bus, partition: int) -> dict[str, list[bytes]]:
    messages: dict[str, list[bytes]] = {}
    for topic in OUTPUTS:
        at, end = TopicPartition(topic, partition), bus.end_offsets(topic)[partition]
        reader = bus.reader({at: 0})
        messages[topic] = []
        while reader.positions()[at] < end:
            messages[topic] += [value for piece in reader.poll(5000) for value in piece.values]
        reader.close()
    return messages


def check_each_once(bus: Bus, count: int) -> None:
    for partition in range(PARTITIONS):
        assert on_outputs(values(bus, partition)) == expected(map(row, range(count)), partition)


@pytest.mark.parametrize("epoch_s", [0.0, 0.002])
def test_aborted_repeatedly_each_message_is_published_once(tmp_path, epoch_s):
    bus, count = MemoryBus(), 3000
    prepare(bus, tmp_path / "store", count)
    emitted = 0
    for run_number in range(10):
        left = random.randint(0, 900)

        def may_continue(rows: int) -> bool:
            nonlocal left, emitted
            left -= rows
            emitted += rows if left >= 0 else 0
            return left >= 0

        run(bus, tmp_path / "store", count, may_continue, epoch_s, run_number)
    left = 10**9
    run(bus, tmp_path / "store", count, may_continue, epoch_s, 99)
    run(bus, tmp_path / "store", count, may_continue, epoch_s, 100)  # all is done: nothing more
    check_each_once(bus, count)
    assert emitted > PARTITIONS * count  # else nothing was replayed


def slowly(_rows: int) -> bool:
    time.sleep(0.001)
    return True


def work(
    url: str, store: Path, count: int, run_number: int, process: int, addresses: list[str]
) -> None:
    run(open_bus(url), store, count, slowly, 0.05, run_number, process, addresses)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2])
def test_killed_repeatedly_each_message_is_published_once(tmp_path, processes):
    """kill -9 of processes that publish to the embedded bus."""
    url, store, count = f"sqlite:{tmp_path / 'bus'}", tmp_path / "store", 12_000
    bus = open_bus(url)
    prepare(bus, store, count)
    spawn = multiprocessing.get_context("spawn")
    kills = 0
    while True:
        addresses = [f"127.0.0.1:{port}" for port in free_ports(processes)]
        if processes == 1:
            addresses = []
        children = [
            spawn.Process(target=work, args=(url, store, count, kills, process, addresses))
            for process in range(processes)
        ]
        before = sum(bus.end_offsets(PREDICTIONS))
        for child in children:
            child.start()
        kill_at = before + random.randint(1, 3000) if kills < 3 else 10**9
        deadline = time.monotonic() + 120
        while children[0].is_alive() and sum(bus.end_offsets(PREDICTIONS)) < kill_at:
            assert time.monotonic() < deadline
            children[0].join(0.002)
        if not children[0].is_alive():
            break
        for child in children:
            child.kill()
        for child in children:
            child.join()
        kills += 1
    for child in children:
        child.join(GENEROUS_S)
    assert [child.exitcode for child in children] == [0] * processes
    assert kills == 3
    check_each_once(bus, count)
    runs = {value.split(b'"version":')[1][:2] for value in values(bus, 0)[PREDICTIONS]}
    assert len(runs) >= 2
