"""Loads what the windows of the next rows will touch, in the order in which it becomes known.

::

    row + 12    the slot of its key
    row + 8     by the slot: the hot record, the first and the last record of the log
    row + 4     by the hot record: where each width starts
    row         all of it is in the cache
"""

from __future__ import annotations

from anabranch.state.compile import F64, I32, I64, inlined
from anabranch.state.windows.event_log import COUNT, HEAD, HOT, TAIL
from anabranch.state.windows.prefetch import prefetch
from anabranch.state.windows.running_sums import FIRST, PER_WIDTH, START, WIDTHS

_SLOT, _RECORD, _STARTS = 12, 8, 4


@inlined
def look_ahead(
    row: int, slots: I64, slot: I32, ts: I64, val: F64, link: I32, hotf: F64, hoti: I64, meta: I64
) -> None:
    """Before `row` is worked on: load for those behind it. It changes nothing."""
    rows = len(slots)
    if row + _STARTS < rows:
        s = slots[row + _STARTS]
        if s >= 0 and slot[s, COUNT] > 0 and slot[s, HOT] >= 0:
            hot = slot[s, HOT]
            for w in range(meta[WIDTHS]):
                start = hoti[hot, FIRST + PER_WIDTH * w + START]
                if start >= 0:
                    prefetch(ts, start)
                    prefetch(val, start)
    if row + _RECORD < rows:
        s = slots[row + _RECORD]
        if s >= 0 and slot[s, COUNT] > 0:
            tail = slot[s, TAIL]
            prefetch(ts, slot[s, HEAD])
            prefetch(ts, tail)
            prefetch(val, tail)
            prefetch(link, tail >> 3)
            if slot[s, HOT] >= 0:
                prefetch(hoti, slot[s, HOT])
                for w in range(meta[WIDTHS]):
                    prefetch(hotf[slot[s, HOT]], w)
    if row + _SLOT < rows and slots[row + _SLOT] >= 0:
        prefetch(slot, slots[row + _SLOT])


@inlined
def sweep_ahead(s: int, slot: I32, ts: I64) -> None:
    """Before slot `s` is swept: load for those behind it."""
    if s + _STARTS < slot.shape[0] and slot[s + _STARTS, COUNT] > 0:
        prefetch(ts, slot[s + _STARTS, HEAD])
