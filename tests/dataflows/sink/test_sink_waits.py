"""A sink whose bus is away waits and says so; it gives up only when told, or for good reason."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from typing import Any

import pytest

from anabranch.dataflows.bus import BusError, UnreachableError
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.error_guard import Guard
from anabranch.dataflows.sink.bus_sink import BusSink, part_name
from anabranch.dataflows.sink.delivery_retry import Patience
from tests.support.sink_rows import EVENTS, INPUTS, MARKING, OUTPUTS, PREDICTIONS, event, outgoing
from tests.support.waiting import GENEROUS_S

pytestmark = pytest.mark.stress

AWAY = UnreachableError("nobody answers")
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
    options.setdefault("since", {})
    sink = BusSink(bus, count, marking=MARKING, **options)
    return [sink.build_part("sink", part_name(number), None) for number in range(count)]


def written(bus: MemoryBus, **options: Any) -> Any:
    (part,) = parts(bus, **options)
    part.write_batch([outgoing([event(0)])])
    return part


def test_a_flush_that_fails_for_a_while_is_waited_for_and_said():
    bus, told = FlakyBus(), []
    patience = Patience(waiting=lambda s, why: told.append(why), first_s=0, every_s=0, nap_s=0)
    part = written(bus, patience=patience)
    bus.failures = [AWAY] * 4
    bus.ends_fail = [AWAY] * 2
    assert part.snapshot()[PREDICTIONS] == 1
    assert told == ["nobody answers"] * 6


def test_what_is_refused_for_good_is_raised_at_once_and_nothing_is_confirmed_afterwards():
    bus = FlakyBus()
    part = written(bus, patience=Patience(nap_s=3600))
    bus.failures = [REFUSED]
    with pytest.raises(BusError, match="message too large"):
        part.snapshot()
    with pytest.raises(BusError, match="nothing more can be confirmed"):
        part.snapshot()
    part.close()
    assert (bus.flushed, bus.closed) == (1, 0)


def test_told_to_stop_it_tries_for_the_grace_only():
    bus, stop = FlakyBus(), threading.Event()
    part = written(bus, patience=Patience(stop=stop, grace_s=0.3, nap_s=0.01))
    bus.failures = [AWAY] * 10_000
    done = threading.Event()
    raised: list[BaseException] = []

    def confirm() -> None:
        try:
            part.snapshot()
        except BaseException as error:
            raised.append(error)
        done.set()

    threading.Thread(target=confirm, daemon=True).start()
    assert not done.wait(0.6)  # twice the grace, but nobody has told it to stop
    stop.set()
    begun = time.monotonic()
    assert done.wait(GENEROUS_S)
    assert time.monotonic() - begun >= 0.25
    assert "stopped while the bus was away: nobody answers" in str(raised[0])
    assert not isinstance(raised[0], UnreachableError)
    tries = bus.flushed
    part.close()
    assert bus.flushed == tries  # it gives up at once
    assert bus.closed == 0


def test_within_the_grace_it_may_still_succeed():
    bus, stop = FlakyBus(), threading.Event()
    stop.set()
    part = written(bus, patience=Patience(stop=stop, grace_s=10, nap_s=0))
    bus.failures = [AWAY] * 3
    assert part.snapshot()[PREDICTIONS] == 1


def test_it_is_told_after_the_first_pause_and_then_now_and_again():
    bus, told = FlakyBus(), []
    patience = Patience(
        waiting=lambda seconds, why: told.append(seconds), first_s=0.05, every_s=0.1, nap_s=0.01
    )
    part = written(bus, patience=patience)
    bus.failures = [AWAY] * 30
    begun = time.monotonic()
    part.snapshot()
    elapsed = time.monotonic() - begun
    assert 2 <= len(told) <= 1 + elapsed / 0.1
    assert told[0] >= 0.05
    assert all(later - sooner >= 0.1 for sooner, later in pairwise(told))


@pytest.mark.parametrize("error", [AWAY, REFUSED])
def test_a_failed_append_is_the_end(error):
    bus, guard = FlakyBus(), Guard()
    (part,) = parts(bus, guard=guard)
    bus.append_fails = error
    with pytest.raises(BusError, match=str(error)) as raised, guard.watching():
        part.write_batch([outgoing([event(0)])])
    assert not isinstance(raised.value, UnreachableError)
    assert guard.failure is raised.value
    bus.append_fails = None
    with pytest.raises(BusError, match="nothing more can be confirmed"):
        part.snapshot()
    part.close()
    assert (bus.flushed, bus.closed) == (0, 0)


def test_nothing_is_confirmed_once_another_step_has_failed():
    bus, guard = FlakyBus(), Guard()
    part = written(bus, guard=guard)
    with pytest.raises(ZeroDivisionError):
        guard.call(lambda: 1 / 0)
    with pytest.raises(BusError, match="a step of the flow has failed"), guard.watching():
        part.snapshot()


def test_one_flush_confirms_all_partitions_of_a_worker():
    bus = FlakyBus()
    first, second = parts(bus, 2)
    first.write_batch([outgoing([event(0)], partition=0)])
    second.write_batch([outgoing([event(0), event(1)], partition=1)])
    assert first.snapshot()[PREDICTIONS] == 1
    assert second.snapshot()[PREDICTIONS] == 2
    assert bus.flushed == 1
    second.write_batch([outgoing([event(2)], partition=1)])
    assert second.snapshot()[PREDICTIONS] == 3
    assert bus.flushed == 2


def test_closing_publishes_and_confirms_nothing():
    bus = FlakyBus()
    part = written(bus)
    bus.failures = [AWAY]
    part.close()  # in the middle of an epoch: as it is
    assert (bus.flushed, bus.closed) == (0, 0)

    first, second = parts(bus, 2)
    bus.failures = []
    first.write_batch([outgoing([event(1)])])
    first.snapshot()
    first.close()
    assert bus.closed == 0  # the other partition has the same publisher
    second.close()
    assert bus.closed == 1


def test_without_recovery_what_was_written_is_flushed_when_it_closes():
    bus = FlakyBus()
    part = written(bus, since=None)
    bus.failures = [REFUSED]
    with pytest.raises(BusError, match="message too large"):
        part.close()


def test_reading_back_waits_for_the_bus_too():
    bus, told = FlakyBus(), []
    written(bus).snapshot()
    patience = Patience(waiting=lambda s, why: told.append(why), first_s=0, every_s=0, nap_s=0)
    bus.publisher().append(EVENTS, [b""] * 10, partitions=0)
    bus.ends_fail = [AWAY] * 3
    (part,) = parts(bus, patience=patience)
    assert told == ["nobody answers"] * 3
    part.write_batch([outgoing([event(0)])])
    assert len(bus.values(PREDICTIONS)) == 1
