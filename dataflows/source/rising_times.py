"""Times by which the messages of a partition are merged with others: they never fall.

Messages have the time that their producer gave them, so one producer whose clock is fast could put
all that follows in its partition an hour behind the other partitions. So a time raises those after
it only if most of the next few messages agree: a message that is ahead of them by more than a
bound stays in its place, and moves nothing. Where the log jumps ahead, over a night without
traffic, the messages that follow agree.

    times     1  2  3  64  4  5          a bound of 5: most that follow 64 are far behind it
    rising    1  2  3   3  4  5
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]

FOLLOWERS = 16
"""How many of the following messages decide about a time."""

NEVER = int(np.iinfo(np.int64).min)


def confirmed(times: I64, bound_ms: int) -> NDArray[np.bool_]:
    """Which times, ``(n,) int64`` in the order of the log, most of those that follow agree with.

    One agrees if it is behind by ``bound_ms`` at most. The last time has none that follows, and is
    not confirmed.
    """
    rows = len(times)
    result = np.ones(rows, np.bool_)
    if not rows:
        return result
    result[-1] = False
    if int((np.maximum.accumulate(times) - times).max()) <= bound_ms:
        return result
    padded = np.concatenate([times, np.full(FOLLOWERS, NEVER, np.int64)])
    following = np.lib.stride_tricks.sliding_window_view(padded[1:], FOLLOWERS)
    agree = (following >= (times - bound_ms)[:, None]).sum(axis=1)
    there = np.minimum(np.arange(rows)[::-1], FOLLOWERS)
    np.greater_equal(2 * agree, there, out=result)
    result[-1] = False
    return result


def rising_times(
    times: I64, bound_ms: int | None, reached: int = NEVER, now_ms: int | None = None
) -> tuple[I64, I64]:
    """Rising times of consecutive messages, and the time reached with each, ``(n,) int64`` both.

    They differ for the last message alone: it goes by its own time, but moves nothing until one
    that follows confirms it. What is ahead of the wall clock, by more than the bound, moves nothing
    at all: its sender's clock is wrong.

    Args:
        times: of the messages, epoch ms.
        bound_ms: how far a message may be ahead of most that follow; None: any time counts.
        reached: the time reached before the first of them.
        now_ms: the wall clock; None: there is none.

    >>> rising_times(np.array([1, 2, 3, 64, 4, 5]), 5)[0].tolist()
    [1, 2, 3, 3, 4, 5]
    """
    if bound_ms is None:
        rising = np.maximum(np.maximum.accumulate(times), reached)
        return rising, rising
    counts = confirmed(times, bound_ms)
    if now_ms is not None:
        counts &= times <= now_ms + bound_ms
    clocks = np.maximum.accumulate(np.where(counts, times, NEVER))
    np.maximum(clocks, reached, out=clocks)
    rising = clocks.copy()
    if len(times):
        own = int(times[-1]) if now_ms is None else min(int(times[-1]), now_ms + bound_ms)
        rising[-1] = max(int(rising[-1]), own)
    return rising, clocks
