"""A sink waits for a bus that is unavailable, and gives up only when stopped or refused."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from typing import Any

import pytest

from anabranch.dataflows.bus import BusError, UnreachableError
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.error_guard import ErrorGuard
from anabranch.dataflows.sink.bus_sink import BusSink, part_name
from anabranch.dataflows.sink.delivery_retry import DeliveryRetry
from tests.support.output_messages import (
    EVENTS,
    INPUTS,
    OUTPUTS,
    PREDICTIONS,
    event,
    output_of,
    recovery,
)

UNAVAILABLE = UnreachableError("no broker responds")
REFUSED = BusError("1 messages could not be delivered: message too large")


class FlakyBus(MemoryBus):
    """Raises what is in ``failures``, one at each flush."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[BusError] = []
        self.append_fails: BusError | None = None
        self.ends_fail: list[BusError] = []
        self.closed = 0
        self.flushed = 0
        self.create_topics(dict.fromkeys((*INPUTS, *OUTPUTS), 2))

    def end_offsets(self, topic: str) -> list[int]:
        if self.ends_fail:
            raise self.ends_fail.pop()
        return super().end_offsets(topic)

    def publisher(self, stop: Any = None) -> Any:
        bus, publisher = self, super().publisher(stop)

        class Flaky:
            def append(self, topic: str, values: list[bytes], **columns: Any) -> None:
                if bus.append_fails:
                    raise bus.append_fails
                publisher.append(topic, values, **columns)

            def flush(self, timeout_s: float = 30.0) -> None:
                bus.flushed += 1
                if bus.failures:
                    raise bus.failures.pop()

            def close(self) -> None:
                bus.closed += 1
                self.flush()

        return Flaky()


def parts(bus: MemoryBus, count: int = 1, **options: Any) -> list[Any]:
    kept = recovery({}) if options.pop("recovers", True) else None
    sink = BusSink(bus, count, recovery=kept, **options)
    return [sink.build_part("sink", part_name(number), None) for number in range(count)]


def written(bus: MemoryBus, **options: Any) -> Any:
    (part,) = parts(bus, **options)
    part.write_batch([output_of([event(0)])])
    return part


def test_a_flush_that_fails_for_a_while_is_retried_and_reported():
    bus, reports = FlakyBus(), []
    retry = DeliveryRetry(
        on_waiting=lambda s, why: reports.append(why), first_s=0, every_s=0, poll_s=0
    )
    part = written(bus, retry=retry)
    bus.failures = [UNAVAILABLE] * 4
    bus.ends_fail = [UNAVAILABLE] * 2
    assert part.snapshot()[PREDICTIONS] == 1
    assert reports == ["no broker responds"] * 6


def test_a_final_refusal_is_raised_at_once_and_nothing_is_confirmed_afterwards():
    bus = FlakyBus()
    part = written(bus, retry=DeliveryRetry(poll_s=3600))
    bus.failures = [REFUSED]
    with pytest.raises(BusError, match="message too large"):
        part.snapshot()
    with pytest.raises(BusError, match="nothing more can be confirmed"):
        part.snapshot()
    part.close()
    assert (bus.flushed, bus.closed) == (1, 0)


@pytest.mark.stress
def test_when_stopped_it_retries_only_for_the_grace_period():
    bus, stop = FlakyBus(), threading.Event()
    part = written(bus, retry=DeliveryRetry(stop=stop, grace_s=0.3, poll_s=0.01))
    bus.failures = [UNAVAILABLE] * 10_000
    done = threading.Event()
    raised: list[BaseException] = []

    def confirm() -> None:
        try:
            part.snapshot()
        except BaseException as error:
            raised.append(error)
        done.set()

    threading.Thread(target=confirm, daemon=True).start()
    assert not done.wait(0.6)  # twice the grace period, but it was not stopped
    stop.set()
    began = time.monotonic()
    assert done.wait(10)
    assert time.monotonic() - began >= 0.25
    assert "stopped while the bus was unavailable: no broker responds" in str(raised[0])
    assert not isinstance(raised[0], UnreachableError)
    began = time.monotonic()
    part.close()
    assert time.monotonic() - began < 10  # it does not wait for the bus
    assert bus.closed == 0


def test_within_the_grace_period_it_may_still_succeed():
    bus, stop = FlakyBus(), threading.Event()
    stop.set()
    part = written(bus, retry=DeliveryRetry(stop=stop, grace_s=10, poll_s=0))
    bus.failures = [UNAVAILABLE] * 3
    assert part.snapshot()[PREDICTIONS] == 1


def test_waiting_is_reported_after_the_first_pause_and_then_at_intervals():
    bus, reports = FlakyBus(), []
    retry = DeliveryRetry(
        on_waiting=lambda seconds, why: reports.append(seconds),
        first_s=0.05,
        every_s=0.1,
        poll_s=0.01,
    )
    part = written(bus, retry=retry)
    bus.failures = [UNAVAILABLE] * 30
    began = time.monotonic()
    part.snapshot()
    elapsed = time.monotonic() - began
    assert 2 <= len(reports) <= 1 + elapsed / 0.1
    assert reports[0] >= 0.05
    assert all(later - sooner >= 0.1 for sooner, later in pairwise(reports))


@pytest.mark.parametrize("error", [UNAVAILABLE, REFUSED])
def test_after_a_failed_append_nothing_is_confirmed(error):
    bus, guard = FlakyBus(), ErrorGuard()
    (part,) = parts(bus, guard=guard)
    bus.append_fails = error
    with pytest.raises(BusError, match=str(error)) as raised, guard.engine_running():
        part.write_batch([output_of([event(0)])])
    assert not isinstance(raised.value, UnreachableError)
    assert guard.failure is raised.value
    bus.append_fails = None
    with pytest.raises(BusError, match="nothing more can be confirmed"):
        part.snapshot()
    part.close()
    assert (bus.flushed, bus.closed) == (0, 0)


def test_nothing_is_confirmed_once_another_step_has_failed():
    bus, guard = FlakyBus(), ErrorGuard()
    part = written(bus, guard=guard)
    with pytest.raises(ZeroDivisionError):
        guard.call(lambda: 1 / 0)
    with pytest.raises(BusError, match="a step of the flow has failed"), guard.engine_running():
        part.snapshot()


def test_one_flush_confirms_all_partitions_of_a_worker():
    bus = FlakyBus()
    first, second = parts(bus, 2)
    first.write_batch([output_of([event(0)], partition=0)])
    second.write_batch([output_of([event(0), event(1)], partition=1)])
    assert first.snapshot()[PREDICTIONS] == 1
    assert second.snapshot()[PREDICTIONS] == 2
    assert bus.flushed == 1
    second.write_batch([output_of([event(2)], partition=1)])
    assert second.snapshot()[PREDICTIONS] == 3
    assert bus.flushed == 2


def test_closing_neither_publishes_nor_confirms():
    bus = FlakyBus()
    part = written(bus)
    bus.failures = [UNAVAILABLE]
    part.close()  # in the middle of an epoch: everything stays as it is
    assert (bus.flushed, bus.closed) == (0, 0)

    first, second = parts(bus, 2)
    bus.failures = []
    first.write_batch([output_of([event(1)])])
    first.snapshot()
    first.close()
    assert bus.closed == 0  # the other partition has the same publisher
    second.close()
    assert bus.closed == 1


def test_without_recovery_closing_flushes():
    bus = FlakyBus()
    part = written(bus, recovers=False)
    bus.failures = [REFUSED]
    with pytest.raises(BusError, match="message too large"):
        part.close()


def test_reading_back_is_retried_too():
    bus, reports = FlakyBus(), []
    written(bus).snapshot()
    retry = DeliveryRetry(
        on_waiting=lambda s, why: reports.append(why), first_s=0, every_s=0, poll_s=0
    )
    bus.publisher().append(EVENTS, [b""] * 10, partitions=0)
    bus.ends_fail = [UNAVAILABLE] * 3
    (part,) = parts(bus, retry=retry)
    assert reports == ["no broker responds"] * 3
    part.write_batch([output_of([event(0)])])
    assert len(bus.values(PREDICTIONS)) == 1
