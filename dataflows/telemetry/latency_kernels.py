"""Counting times into the buckets of histograms, as they come: nothing is kept of a batch."""

from __future__ import annotations

from anabranch.state.compile import F64, I64, inlined, kernel


@inlined
def _place(value: float, bounds: F64, at: int) -> int:
    """The first of the rising ``bounds`` that a value does not pass, looked for from ``at`` on."""
    last = bounds.size - 1
    while at < last and value > bounds[at]:
        at += 1
    while at > 0 and value <= bounds[at - 1]:
        at -= 1
    return at


@kernel
def count_written(
    published: I64, events: I64, now: float, took: float, bounds: F64, counts: F64, sums: F64
) -> int:
    """Predictions were published at ``now`` (seconds) on messages and events of those times (ms).

    To the rows of ``(3, bounds)`` counts and the ``(3,)`` sums it adds the time since messages were
    published, since events, and what was ``took``. The bounds rise to infinity.
    """
    at = before = 0
    for i in range(published.size):
        since = now - published[i] / 1000.0
        at = _place(since, bounds, at)
        counts[0, at] += 1.0
        sums[0] += since
    for i in range(events.size):
        since = now - events[i] / 1000.0
        before = _place(since, bounds, before)
        counts[1, before] += 1.0
        sums[1] += since
    counts[2, _place(took, bounds, 0)] += published.size
    sums[2] += took * published.size
    return published.size


@kernel
def count_late(times: I64, newest: int, bounds: F64, counts: F64) -> float:
    """Event times (ms) behind the ``newest`` before each, in seconds; the sum."""
    total, at = 0.0, 0
    for i in range(times.size):
        newest = max(newest, times[i])
        late = (newest - times[i]) / 1000.0
        at = _place(late, bounds, at)
        counts[at] += 1.0
        total += late
    return total
