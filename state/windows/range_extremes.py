"""Maximum and minimum over any range of a key's log, in O(log n) steps of a Fenwick tree.

The chunks of a chain are numbered 1, 2, 3, …; chunk s also holds the maximum over the chunks
`(s - lowbit(s), s]`, and a jump to chunk `s - lowbit(s)`, as in a Fenwick tree::

    chunk      1    2    3    4    5    6    7    8
    covers    [1]  [1────2]   …
                        [3]
              [1──────────────4]  [5]  [5───6]  [7]  [1 ────────────────── 8]

    maximum from the middle of chunk 1 to the middle of chunk 8:
    scan the end of 1, the start of 8, then 7 ▶ 6 (covers 5, 6) ▶ 4 reaches too far: scan 4 ▶ 3 ▶ 2

Chunks that have expired are never visited: a jump is taken only when it stays within the range.
A minimum is the maximum of negated values (`sign` -1). Reference: Fenwick, *A new data structure
for cumulative frequency tables* (1994). It costs 12 bytes per chunk of 8 events, and unlike a
monotonic queue it can be queried as of any earlier time, which late events need.
"""

from __future__ import annotations

import math

from anabranch.state.compile import F64, I64, inlined, kernel
from anabranch.state.windows.event_log import (
    HEAD,
    JUMP,
    NEXT,
    PREVIOUS,
    SEQUENCE,
    TAIL,
    LogArrays,
    touch_chunk,
)
from anabranch.state.windows.panes import record_extreme

# Chunks are renumbered from 1 beyond this, long before int32 wraps.
LAST_SEQUENCE = 1 << 30


@inlined
def scan_extreme(val: F64, first: int, last: int, sign: int) -> float:
    """Extreme over the positions `first..last` of one chunk."""
    best = -math.inf
    for at in range(first, last + 1):
        best = max(best, record_extreme(val, at, sign))
    return best


@kernel
def range_extreme(first: int, last: int, which: int, sign: int, log: LogArrays, tree: F64) -> float:
    """Extreme over the positions `first..last` of a chain, both included."""
    val, link = log.val, log.link
    start, chunk = first >> 3, last >> 3
    if start == chunk:
        return scan_extreme(val, first, last, sign)
    best = max(
        scan_extreme(val, first, start * 8 + 7, sign), scan_extreme(val, chunk * 8, last, sign)
    )
    bound = link[start, SEQUENCE]
    chunk = link[chunk, PREVIOUS]
    number = link[chunk, SEQUENCE]
    while number > bound:
        if number - (number & -number) >= bound:
            best = max(best, tree[chunk, which])
            number -= number & -number
            chunk = link[chunk, JUMP]
        else:
            best = max(best, scan_extreme(val, chunk * 8, chunk * 8 + 7, sign))
            number -= 1
            chunk = link[chunk, PREVIOUS]
    return best


@kernel
def index_chunk(chunk: int, oldest: int, which: int, sign: int, log: LogArrays, tree: F64) -> None:
    """Compute the maximum and the jump of a full chunk, from its predecessors down to `oldest`.

    `oldest` is the number of the chain's first chunk. What would reach beyond it is left out:
    only a range that starts before the log would need it.
    """
    link = log.link
    best = scan_extreme(log.val, chunk * 8, chunk * 8 + 7, sign)
    number = link[chunk, SEQUENCE]
    target = number - (number & -number)
    other, at = chunk, number - 1
    if at >= oldest:
        other = link[chunk, PREVIOUS]
        while at > target:
            best = max(best, tree[other, which])
            at -= at & -at
            if at < oldest:
                break
            other = link[other, JUMP]
    tree[chunk, which] = best
    link[chunk, JUMP] = other
    touch_chunk(chunk, log)


@kernel
def index_from(chunk: int, s: int, signs: I64, log: LogArrays, tree: F64) -> None:
    """Index the chunks of slot `s` from `chunk` up to, and without, the last one."""
    oldest = log.link[log.slot[s, HEAD] >> 3, SEQUENCE]
    last = log.slot[s, TAIL] >> 3
    while chunk != last:
        for which in range(tree.shape[1]):
            index_chunk(chunk, oldest, which, signs[which], log, tree)
        chunk = log.link[chunk, NEXT]


@kernel
def renumber(s: int, log: LogArrays) -> None:
    """Number the chunks of slot `s` from 1 again; they must be indexed after it."""
    link = log.link
    chunk = log.slot[s, HEAD] >> 3
    number = 1
    link[chunk, SEQUENCE] = number
    touch_chunk(chunk, log)
    while chunk != log.slot[s, TAIL] >> 3:
        chunk = link[chunk, NEXT]
        number += 1
        link[chunk, SEQUENCE] = number
        touch_chunk(chunk, log)
