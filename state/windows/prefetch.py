"""Asking memory for what will be needed soon, so that a kernel does not wait for it row by row.

A key's slot, its running sums and the end of its log lie anywhere in some hundred megabytes. The
rows of a batch are known in advance: while one is worked on, the memory of those behind it is on
its way. Nothing is changed by it, and no result depends on it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_FOR_WRITING, _KEEP, _DATA = 1, 3, 1


def _prefetch(_context: Any, array: Any, row: Any) -> Any:
    """Begin to load the line of memory with the first cell of `array[row]`; for kernels."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        tools: Any = cgutils
        kind, _ = signature.args
        found = context.make_array(kind)(context, builder, arguments[0])
        strides = tools.unpack_tuple(builder, found.strides, kind.ndim)
        byte = ir.IntType(8).as_pointer()
        at = builder.gep(builder.bitcast(found.data, byte), [builder.mul(arguments[1], strides[0])])
        integer = ir.IntType(32)
        function = tools.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [byte, integer, integer, integer]),
            "llvm.prefetch.p0i8",
        )
        hints = [integer(each) for each in (_FOR_WRITING, _KEEP, _DATA)]
        builder.call(function, [at, *hints])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


prefetch: Any = intrinsic(_prefetch)
