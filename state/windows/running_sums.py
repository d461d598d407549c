"""Running sums of a key's windows: every event enters once and leaves once, whatever the width.

A key with more than `COLD` records is *hot*: it has a hot record, in which each width keeps the
sums over `(edge - width, edge]`. The edge is the latest time as of which the key was queried. ::

    log      a  b  c  d  e  f  g  h  i  j
    1 h         └──────────────────────┤ edge     start of 1 h at b
    10 m                     └─────────┤          start of 10 m at g

    next event k:  the starts slide to the right, what they pass is subtracted, k is added

Subtracting is exact to 2**-104 of the largest sum that the window ever had (`PEAK`). When the sum
of squares falls below 1e-4 of its peak, the window is summed again from the log, so that a 1e100
that left leaves no error behind. This is amortised O(1): an event is summed again only when what
left before it weighs 1e4 times as much as what remains, itself included; the next time, 1e4 times
more than that; the range of doubles allows some 150 such steps, and common data hardly any. The
same holds for the terms of statistics, none of which is negative.

A cold key needs none of this: its few records are scanned.
"""

from __future__ import annotations

import math

from anabranch.state.compile import inlined, kernel
from anabranch.state.windows.double_double import (
    Sums,
    add_sums,
    dd_add,
    no_sums,
    subtract_sums,
)
from anabranch.state.windows.event_log import HEAD, HOT, TAIL, LogArrays, after, before
from anabranch.state.windows.hot_keys import EDGE, allocate_hot
from anabranch.state.windows.panes import record_extreme, record_sums, record_term, value_term
from anabranch.state.windows.range_extremes import range_extreme
from anabranch.state.windows.window_arrays import (
    BEST,
    EVENTS,
    FIRST,
    HUGES,
    PEAK,
    PER_TERM,
    PER_WIDTH,
    PLAN,
    S1H,
    S1L,
    S2H,
    S2L,
    SIGN,
    START,
    SUMS,
    WIDTHS,
    WindowArrays,
)

LOST = 1e-4
LOST_HUGE = 1e-6


@inlined
def hot_sums(hot: int, w: int, windows: WindowArrays) -> Sums:
    """The running sums of width `w`."""
    hotf, hoti = windows.hotf, windows.hoti
    cell = FIRST + PER_WIDTH * w
    return Sums(
        hoti[hot, cell + EVENTS],
        hotf[hot, w, S1H],
        hotf[hot, w, S1L],
        hotf[hot, w, S2H],
        hotf[hot, w, S2L],
        hoti[hot, cell + HUGES],
    )


@inlined
def clear_terms(windows: WindowArrays) -> None:
    """Start summing terms, in the scratch space."""
    for t in range(len(windows.term_indices)):
        windows.terms[0, t] = windows.terms[1, t] = 0.0


@inlined
def add_terms(at: int, sign: float, windows: WindowArrays) -> None:
    """Add (sign 1) or subtract (sign -1) the record `at`, in the scratch space."""
    terms = windows.terms
    for t in range(len(windows.term_indices)):
        high, low = record_term(at, t, windows.log)
        terms[0, t], terms[1, t] = dd_add(terms[0, t], terms[1, t], sign * high, sign * low)


@inlined
def load_terms(hot: int, w: int, windows: WindowArrays) -> None:
    """Copy the running sums of terms of width `w` to the scratch space."""
    for t in range(len(windows.term_indices)):
        cell = BEST + windows.tree.shape[1] + PER_TERM * t
        windows.terms[0, t] = windows.hotf[hot, w, cell]
        windows.terms[1, t] = windows.hotf[hot, w, cell + 1]


@inlined
def store_terms(hot: int, w: int, windows: WindowArrays) -> None:
    """Make the sums of terms in the scratch space the running ones of width `w`."""
    hotf = windows.hotf
    for t in range(len(windows.term_indices)):
        cell = BEST + windows.tree.shape[1] + PER_TERM * t
        hotf[hot, w, cell], hotf[hot, w, cell + 1] = windows.terms[0, t], windows.terms[1, t]
        hotf[hot, w, cell + 2] = windows.terms[0, t]


@inlined
def scan_back(last: int, low: int, head: int, windows: WindowArrays) -> tuple[int, Sums]:
    """First position (-1: none) and sums of the records from `last` back to those after `low`.

    The sums of terms are in the scratch space.
    """
    log = windows.log
    first, sums = -1, no_sums()
    clear_terms(windows)
    at = last
    while at >= 0 and log.ts[at] > low:
        sums = add_sums(sums, record_sums(at, log.meta[SUMS], log))
        add_terms(at, 1.0, windows)
        first = at
        at = -1 if at == head else before(log.link, at)
    return first, sums


@kernel
def sum_again(hot: int, w: int, low: int, head: int, tail: int, windows: WindowArrays) -> None:
    """Sum width `w` from the log, from `tail` back to `head` or to the last record after `low`."""
    hotf, hoti = windows.hotf, windows.hoti
    first, sums = scan_back(tail, low, head, windows)
    cell = FIRST + PER_WIDTH * w
    hoti[hot, cell + START] = first
    hoti[hot, cell + EVENTS] = sums.events
    hoti[hot, cell + HUGES] = sums.huge
    hotf[hot, w, S1H], hotf[hot, w, S1L] = sums.total, sums.total_low
    hotf[hot, w, S2H], hotf[hot, w, S2L] = sums.squares, sums.squares_low
    hotf[hot, w, PEAK] = sums.squares
    store_terms(hot, w, windows)


@kernel
def update_extremes(hot: int, w: int, stale: int, s: int, windows: WindowArrays) -> None:
    """Look up those extremes of width `w` whose bit is set in `stale`."""
    log, meta = windows.log, windows.log.meta
    start = windows.hoti[hot, FIRST + PER_WIDTH * w + START]
    for which in range(windows.tree.shape[1]):
        if stale >> which & 1:
            best = -math.inf
            if start >= 0:
                best = range_extreme(
                    start, log.slot[s, TAIL], which, meta[SIGN + which], log, windows.tree
                )
            windows.hotf[hot, w, BEST + which] = best


@inlined
def subtract_record(hot: int, w: int, sums: Sums, at: int, windows: WindowArrays) -> bool:
    """Subtract the record `at` from the sums of width `w`; whether they must be summed again."""
    hotf, hoti, meta = windows.hotf, windows.hoti, windows.log.meta
    cell = FIRST + PER_WIDTH * w
    lost = False
    if meta[SUMS]:
        hotf[hot, w, S1H], hotf[hot, w, S1L] = dd_add(
            hotf[hot, w, S1H], hotf[hot, w, S1L], -sums.total, -sums.total_low
        )
        hotf[hot, w, S2H], hotf[hot, w, S2L] = dd_add(
            hotf[hot, w, S2H], hotf[hot, w, S2L], -sums.squares, -sums.squares_low
        )
        lost = hotf[hot, w, S2H] < LOST * hotf[hot, w, PEAK]
        if sums.huge:
            hoti[hot, cell + HUGES] -= sums.huge
            left = math.fabs(hotf[hot, w, S1H])
            lost |= hoti[hot, cell + HUGES] == 0 or left < LOST_HUGE * math.fabs(sums.total)
    for t in range(len(windows.term_indices)):
        term = BEST + windows.tree.shape[1] + PER_TERM * t
        high, low = record_term(at, t, windows.log)
        hotf[hot, w, term], hotf[hot, w, term + 1] = dd_add(
            hotf[hot, w, term], hotf[hot, w, term + 1], -high, -low
        )
        lost |= hotf[hot, w, term] < LOST * hotf[hot, w, term + 2]
    return lost


@inlined
def slide(hot: int, w: int, low: int, s: int, windows: WindowArrays) -> None:
    """Let the records of width `w` with time up to `low` leave its window."""
    log, hotf, hoti, meta = windows.log, windows.hotf, windows.hoti, windows.log.meta
    cell = FIRST + PER_WIDTH * w
    at = hoti[hot, cell + START]
    if at < 0 or log.ts[at] > low:
        return
    tail = log.slot[s, TAIL]
    stale = 0
    while at >= 0 and log.ts[at] <= low:
        sums = record_sums(at, meta[SUMS], log)
        for which in range(windows.tree.shape[1]):
            if record_extreme(log.val, at, meta[SIGN + which]) >= hotf[hot, w, BEST + which]:
                stale |= 1 << which
        leaving = at
        at = -1 if at == tail else after(log.link, at)
        hoti[hot, cell + START] = at
        hoti[hot, cell + EVENTS] -= sums.events
        if at < 0:
            hoti[hot, cell + EVENTS] = hoti[hot, cell + HUGES] = 0
            hotf[hot, w, :BEST] = 0.0
            hotf[hot, w, BEST : BEST + windows.tree.shape[1]] = -math.inf
            hotf[hot, w, BEST + windows.tree.shape[1] :] = 0.0
            return
        if subtract_record(hot, w, sums, leaving, windows):
            sum_again(hot, w, log.ts[at] - 1, at, tail, windows)
    if stale:
        update_extremes(hot, w, stale, s, windows)


@kernel
def slide_call(hot: int, w: int, low: int, s: int, windows: WindowArrays) -> None:
    """`slide` as a call, where it is rare."""
    slide(hot, w, low, s, windows)


@inlined
def move_edge(hot: int, edge: int, s: int, windows: WindowArrays) -> None:
    """Move the right edge of all windows forward to `edge`."""
    meta = windows.log.meta
    if edge > windows.hoti[hot, EDGE]:
        windows.hoti[hot, EDGE] = edge
        for w in range(meta[WIDTHS]):
            slide(hot, w, edge - meta[PLAN + w], s, windows)


@inlined
def enter(hot: int, w: int, at: int, sums: Sums, value: float, windows: WindowArrays) -> None:
    """Let one event, in the record `at`, enter the window of width `w`."""
    hotf, hoti, meta = windows.hotf, windows.hoti, windows.log.meta
    cell = FIRST + PER_WIDTH * w
    if hoti[hot, cell + START] < 0:
        hoti[hot, cell + START] = at
    hoti[hot, cell + EVENTS] += sums.events
    if meta[SUMS]:
        hoti[hot, cell + HUGES] += sums.huge
        hotf[hot, w, S1H], hotf[hot, w, S1L] = dd_add(
            hotf[hot, w, S1H], hotf[hot, w, S1L], sums.total, sums.total_low
        )
        hotf[hot, w, S2H], hotf[hot, w, S2L] = dd_add(
            hotf[hot, w, S2H], hotf[hot, w, S2L], sums.squares, sums.squares_low
        )
        hotf[hot, w, PEAK] = max(hotf[hot, w, PEAK], hotf[hot, w, S2H])
    for which in range(windows.tree.shape[1]):
        best = max(hotf[hot, w, BEST + which], meta[SIGN + which] * value)
        hotf[hot, w, BEST + which] = best
    for t in range(len(windows.term_indices)):
        term = BEST + windows.tree.shape[1] + PER_TERM * t
        hotf[hot, w, term], hotf[hot, w, term + 1] = dd_add(
            hotf[hot, w, term], hotf[hot, w, term + 1], value_term(value, t, windows.log), 0.0
        )
        hotf[hot, w, term + 2] = max(hotf[hot, w, term + 2], hotf[hot, w, term])


@kernel
def make_hot(s: int, windows: WindowArrays) -> None:
    """Give the cold slot `s` a hot record: build its windows as of its last record."""
    slot, hoti, meta = windows.log.slot, windows.hoti, windows.log.meta
    hot = allocate_hot(hoti, meta)
    slot[s, HOT] = hot
    hoti[hot, EDGE] = windows.log.ts[slot[s, TAIL]]
    for w in range(meta[WIDTHS]):
        low = hoti[hot, EDGE] - meta[PLAN + w]
        sum_again(hot, w, low, slot[s, HEAD], slot[s, TAIL], windows)
        update_extremes(hot, w, 3, s, windows)


@kernel
def late_sums(
    w: int, time: int, last: int, later: int, later_sums: Sums, s: int, windows: WindowArrays
) -> tuple[int, Sums]:
    """First position and sums of width `w` as of `time`, which is before the edge.

    `last` is the last record up to `time`; the `later` records after it sum to `later_sums`. ::

        log         a  b  c  d  e  f  g  h  i  j
        the edge's           └────────────────┤
        as of g's      └───────────┤              add b c, subtract h i j

    Where the windows do not overlap, or the difference would cancel, the window is summed again.
    The sums of terms are in the scratch space.
    """
    log, hotf, meta = windows.log, windows.hotf, windows.log.meta
    hot, head = log.slot[s, HOT], log.slot[s, HEAD]
    low = time - meta[PLAN + w]
    start = windows.hoti[hot, FIRST + PER_WIDTH * w + START]
    if last < 0 or start < 0 or log.ts[start] > time or later_sums.huge > 0:
        return scan_back(last, low, head, windows)
    running = hot_sums(hot, w, windows)
    sums = subtract_sums(running, later_sums)
    cancels = meta[SUMS] != 0 and sums.squares < 10 * LOST * running.squares
    load_terms(hot, w, windows)
    if len(windows.term_indices) > 0:
        at = log.slot[s, TAIL]
        for _ in range(later):
            add_terms(at, -1.0, windows)
            at = before(log.link, at)
        for t in range(len(windows.term_indices)):
            whole = hotf[hot, w, BEST + windows.tree.shape[1] + PER_TERM * t]
            cancels |= windows.terms[0, t] < 10 * LOST * whole
    if cancels:
        return scan_back(last, low, head, windows)
    while start != head:
        at = before(log.link, start)
        if log.ts[at] <= low:
            break
        sums = add_sums(sums, record_sums(at, meta[SUMS], log))
        add_terms(at, 1.0, windows)
        start = at
    return start, sums


@inlined
def sum_last(records: int, s: int, log: LogArrays) -> Sums:
    """Sums of the last `records` records of slot `s`."""
    sums = no_sums()
    at = log.slot[s, TAIL]
    for left in range(records, 0, -1):
        sums = add_sums(sums, record_sums(at, log.meta[SUMS], log))
        if left > 1:
            at = before(log.link, at)
    return sums
