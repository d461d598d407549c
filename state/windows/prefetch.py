"""Prefetching what the next rows will need, so that a kernel does not wait for memory row by row.

A key's slot, its running sums and the end of its log lie anywhere in some hundred megabytes. The
rows of a batch are known in advance: while one is processed, memory for the next ones is loaded, in
the order in which their addresses become known::

    row + 12    the slot of its key
    row + 8     by the slot: the hot record, the first and the last record of the log
    row + 4     by the hot record: where each width starts
    row         all of it is in the cache

It modifies nothing, and no result depends on it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from anabranch.state.compile import I64, inlined
from anabranch.state.windows.event_log import COUNT, HEAD, HOT, TAIL, LogArrays
from anabranch.state.windows.window_arrays import (
    FIRST,
    PER_WIDTH,
    START,
    WIDTHS,
    WindowArrays,
)

_FOR_WRITING, _KEEP, _DATA = 1, 3, 1
_SLOT, _RECORD, _STARTS = 12, 8, 4


def _prefetch(_context: Any, array: Any, row: Any) -> Any:
    """Start loading the cache line of the first cell of `array[row]`; for kernels."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        tools: Any = cgutils
        kind, _ = signature.args
        struct = context.make_array(kind)(context, builder, arguments[0])
        strides = tools.unpack_tuple(builder, struct.strides, kind.ndim)
        byte = ir.IntType(8).as_pointer()
        offset = builder.mul(arguments[1], strides[0])
        address = builder.gep(builder.bitcast(struct.data, byte), [offset])
        integer = ir.IntType(32)
        function = tools.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [byte, integer, integer, integer]),
            "llvm.prefetch.p0i8",
        )
        hints = [integer(each) for each in (_FOR_WRITING, _KEEP, _DATA)]
        builder.call(function, [address, *hints])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


prefetch: Any = intrinsic(_prefetch)


@inlined
def prefetch_rows(row: int, slots: I64, windows: WindowArrays) -> None:
    """Before `row` is processed: load memory for the rows after it."""
    slot, ts, val, link, meta = windows.log
    hotf, hoti = windows.hotf, windows.hoti
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
def prefetch_slot(s: int, log: LogArrays) -> None:
    """Before slot `s` is swept: load memory for the slots after it."""
    if s + _STARTS < log.slot.shape[0] and log.slot[s + _STARTS, COUNT] > 0:
        prefetch(log.ts, log.slot[s + _STARTS, HEAD])
