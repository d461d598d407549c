"""Times by which the messages of a partition are merged with those of others.

A message's time is what its producer's clock said. One clock that is fast must not put all that
follows in its partition behind the other partitions, so a time that jumps ahead counts only if the
messages that follow agree::

    times        1  2  3  64  4   5  6        with a tolerance of 5
    merge times  1  2  3   4  4   5  6        none that follows 64 is as late: it counts as the next
    reached      1  2  3   3  4   5  6

    times        1  2  3  64  65  66  67      a night without traffic
    merge times  1  2  3  64  65  66  67      all that follow have jumped as well

- A time up to the tolerance beyond the time *reached* counts as it is, however far it is behind: a
  clock that is slow moves nothing.
- One beyond is a *jump*, which the next `FOLLOWERS` messages confirm or not. Those that came at
  least as far, up to the tolerance, confirm it, as long as others are still to come that did not:
  for a while after a single fast message none does, and later all. Of the others, those that
  continue from the time reached without a jump speak against it, and one of them outweighs two
  that confirm; of those that jumped less far, one outweighs half of one. A single one of either
  kind is an outlier, if three confirm. Messages far behind the time reached say nothing.
- A jump that is not confirmed is merged with the earliest of the messages that follow, so that it
  moves ahead of no other partition, and leaves the time reached as it is.
- After a jump the time reached is that of the third that came farthest of the next `SOON`, where
  their times fall again and again: the first of them may be from the slow one of two clocks.
- A time beyond the wall clock and the tolerance never counts.
- The last message of the log has none that follows. It is merged by its own time, and the time
  reached stays where it is until others confirm it.

In a topic whose times never fall by more than the tolerance, every message is merged by its own
time, whatever was read when. A partition may be merged by times that fall: its next message is the
one that is compared with the next messages of others, so nothing has to be remembered of what was
handed over, except the time reached, against which jumps are judged.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from anabranch.state.compile import I64, kernel
from anabranch.state.durations import parse_duration_ms

FOLLOWERS: Final = 64
"""How many of the messages that follow decide whether a jump counts."""

SOON: Final = 8
"""How many of them tell how far the log has jumped."""

NEVER: Final = -(1 << 62)
"""The time reached by a partition before its first message."""

LEAST_TOLERANCE_MS: Final = 60_000
"""Clocks of one system differ, and batches overtake each other: that much is always tolerated."""

_FOREVER: Final = 1 << 62


class MergeTimes:
    """Determines the merge times of one partition's messages, in order.

    Args:
        tolerance_ms: how far a time may be beyond the time reached and still count as it is; None:
            every time counts.
        reached: the time reached before the first message (epoch ms).

    Attributes:
        reached: the time reached with the messages that are determined.

    >>> of_partition = MergeTimes(5)
    >>> of_partition.determine(np.array([1, 2, 3, 64, 4, 5, 6]), complete=True)[0]
    array([1, 2, 3, 4, 4, 5, 6])
    """

    __slots__ = ("_tolerance_ms", "_unconfirmed", "reached")

    def __init__(self, tolerance_ms: int | None, reached: int = NEVER) -> None:
        self._tolerance_ms = -1 if tolerance_ms is None else tolerance_ms
        self._unconfirmed: int | None = None  # the last message of the log, if it was a jump
        self.reached = reached

    def are_own(self, times: I64, latest_ms: int, after: int) -> int:
        """Whether all of these messages, the next ones, are merged by their own times.

        Then they are determined. Far cheaper than `determine`, and true for most topics.

        Returns:
            0 if some may not be; 1 if all are; 2 if these times rise, besides, from ``after`` on.
        """
        if self._unconfirmed is not None:
            return 0
        found = _are_own(times, self._tolerance_ms, latest_ms, self.reached, after)
        if found:
            last = int(times[-1]) if found > 1 else int(times.max())
            self.reached = max(self.reached, last)
        return found

    def determine(self, times: I64, complete: bool, latest_ms: int = _FOREVER) -> tuple[I64, I64]:
        """The merge times of the first of these messages, and the time reached with each.

        Both are ``(n,) int64``. Pass the messages that are left again, with more behind them.

        Args:
            times: of consecutive messages (epoch ms).
            complete: whether these are all messages that there are; otherwise a jump waits for its
                `FOLLOWERS`, and what follows it waits along.
            latest_ms: times beyond it never count.
        """
        before = self._unconfirmed
        if before is not None:
            times = np.concatenate([[before], times])
        merge, reached = np.empty(len(times), np.int64), np.empty(len(times), np.int64)
        done = _determine(
            times, self._tolerance_ms, latest_ms, complete, self.reached, merge, reached
        )
        if done:
            self.reached = int(reached[done - 1])
            # Only a jump that is the last message has a merge time beyond the time reached.
            is_jump = complete and int(merge[done - 1]) > self.reached
            self._unconfirmed = int(times[done - 1]) if is_jump else None
        start = min(done, 0 if before is None else 1)
        return merge[start:done], reached[start:done]


def tolerance_ms(max_clock_skew: str) -> int:
    """By how much message times may fall in the topics of a pipeline with this skew, a duration."""
    return max(parse_duration_ms(max_clock_skew), LEAST_TOLERANCE_MS)


def warm() -> None:
    """Compile the kernels, for times that can be written to and for those that can't."""
    written = np.zeros(2, np.int64)
    read = np.frombuffer(bytes(16), np.int64)
    for times in (written, read):
        MergeTimes(0).are_own(times, 0, NEVER)
        MergeTimes(0).determine(times, True)


@kernel
def _determine(
    times: I64, tolerance: int, latest: int, complete: bool, reached: int, merge: I64,
    reached_with: I64,
) -> int:  # fmt: skip
    """Fill `merge` and `reached_with`; returns for how many messages."""
    count = times.size
    for row in range(count):
        time = times[row]
        if tolerance < 0 or (time <= reached + tolerance and time <= latest):
            reached = max(reached, time)
            merge[row], reached_with[row] = time, reached
            continue
        # At the beginning there is nothing from which others could continue, so fewer count.
        end = row + 1 + (FOLLOWERS if reached > NEVER else 2 * SOON)
        if end > count:
            if not complete:
                return row
            end = count
        along, along_before, near, between = 0, 0, 0, 0
        level, earliest = reached, _FOREVER
        for other in range(row + 1, end):
            follower = times[other]
            if follower < reached - tolerance or follower > latest:
                continue
            earliest = min(earliest, follower)
            if follower >= time - tolerance:
                along += 1
                continue
            along_before = along
            if follower <= level + tolerance:
                near += 1
                level = max(level, follower)
            else:
                between += 1
        confirmed = along_before >= 3 * near and 2 * along_before >= between and along > 0
        confirmed = confirmed or (near + between <= 1 and along >= 3)
        if end == row + 1:  # it is the last message
            merge[row] = min(time, latest)
        elif confirmed and time <= latest:
            merge[row] = time
            reached = _jumped_to(times[row : row + 1 + SOON], tolerance, latest)
        elif earliest < _FOREVER:
            merge[row] = max(reached, earliest)
        else:
            merge[row] = reached
        reached_with[row] = reached
    return count


@kernel
def _are_own(times: I64, tolerance: int, latest: int, reached: int, after: int) -> int:
    rises = 2
    for row in range(times.size):
        time = times[row]
        if tolerance >= 0 and (time > reached + tolerance or time > latest):
            return 0
        if time < after:
            rises = 1
        else:
            after = time
        reached = max(reached, time)
    return rises


@kernel
def _jumped_to(times: I64, tolerance: int, latest: int) -> int:
    """How far the log has come with a jump that is the first of these."""
    first = second = third = times[0]
    falls = 0
    for row in range(1, times.size):
        time = times[row]
        falls += time < times[row - 1] - tolerance
        if time > latest:
            continue
        if time > first:
            first, second, third = time, first, second
        elif time > second:
            second, third = time, second
        elif time > third:
            third = time
    jumped: int = third if falls > 1 else times[0]
    return jumped
