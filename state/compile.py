"""How kernels are compiled: typed decorators, and a disk cache that is never stale.

A kernel is a plain Python function on NumPy arrays that Numba compiles to machine code. The result
is cached on disk beside the source, so only the first process on a machine pays for compilation.

A kernel that works on many arrays takes them as a `NamedTuple`. Inside compiled code that is free.
In a call from Python it is free only through `entry`: the dispatcher of a plain kernel recognises
the types of arrays and tuples in 0.1 µs, but needs 2 µs for a named tuple.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit, typeof
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., Any])

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]

_PACKAGE = Path(__file__).parents[1]
_MARK = b"anabranch.state.compile"

# Kernels allocate nothing. Without Numba's runtime, arrays are not reference-counted in each call,
# which would take more time than the kernels do. They keep the GIL: a worker is one thread, and to
# release and reacquire the lock takes as long as a row.
_OPTIONS: dict[str, Any] = {"_nrt": False, "no_cfunc_wrapper": True}


_IMPORT = re.compile(rb"^\s*from (anabranch(?:\.\w+)+) import (\([^)]*\)|[^\n]*)", re.MULTILINE)


@cache
def _kernel_sources(source: Path) -> frozenset[Path]:
    """`source`, the files with kernels that it may call, directly or not, and what those import."""
    seen = {source}
    to_read = [source]
    while to_read:
        for module, names in _IMPORT.findall(to_read.pop().read_bytes()):
            folder = _PACKAGE.joinpath(*module.decode().split(".")[1:])
            modules = [folder.with_suffix(".py")]
            modules += [folder / f"{name}.py" for name in re.findall(r"\w+", names.decode())]
            for path in modules:
                if path not in seen and path.is_file():
                    seen.add(path)  # its constants and types may be compiled in
                    if _MARK in path.read_bytes():
                        to_read.append(path)
    return frozenset(seen)


@cache
def _fingerprint(source: Path) -> str:
    """Digest of all sources on which the machine code of the kernels in `source` depends."""
    digest = hashlib.blake2b(Path(__file__).read_bytes(), digest_size=16)
    for path in sorted(_kernel_sources(source)):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def kernel(function: Function) -> Function:
    """Compile `function` on its first call, with strict IEEE arithmetic (no fastmath).

    Numba notices a change only in the file of the kernel itself, not in the kernels that it calls,
    and would keep running old code. So the cache is stamped with the sources of those, too.

    >>> @kernel
    ... def twice(x):
    ...     return 2 * x
    >>> twice(21)
    42
    """
    source = Path(function.__code__.co_filename)
    compiled: Any = njit(cache=source.exists(), **_OPTIONS)(function)
    index = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    if index is not None and hasattr(index, "_source_stamp"):
        index._source_stamp = _fingerprint(source)
    return cast(Function, compiled)


def entry(function: Function, *samples: Any) -> Function:
    """The machine code of a kernel for arguments of the types of `samples`.

    A call of the kernel itself first looks up the types of its arguments, which takes longer than
    the work on a few rows. Here nothing is checked: dtypes and layouts must be the samples'.

    >>> double = entry(kernel(lambda x: 2 * x), 0)
    >>> double(21)
    42
    """
    compiled: Any = function
    return cast(Function, compiled.compile(tuple(map(typeof, samples))))


def inlined(function: Function) -> Function:
    """Like `kernel`, for what kernels call on every row: its code is inlined into theirs.

    A call between kernels passes each array as eight words, which would cost more than the work.
    What is rarely executed is better left a call, which keeps compilation fast.
    """
    options = {**_OPTIONS, "forceinline": True, "no_cpython_wrapper": True}
    return cast(Function, njit(**options)(function))


def numbered(functions: Sequence[Callable[[Any], float]]) -> Callable[[int, Any], float]:
    """An inlined kernel `(number, argument)` that calls the function of that number.

    Calls through function pointers can't be inlined; this is compiled to a jump table. It returns
    0.0 for a number without a function.

    >>> choose = numbered([lambda x: x / 2, lambda x: x * 2])
    >>> call = kernel(lambda number, x: choose(number, x))
    >>> call(0, 8.0), call(1, 8.0), call(2, 8.0)
    (4.0, 16.0, 0.0)
    """

    @inlined
    def none(number: int, argument: Any) -> float:
        return 0.0

    chosen: Callable[[int, Any], float] = none
    for number in reversed(range(len(functions))):
        chosen = _either(number, inlined(functions[number]), chosen)
    return chosen


def _either(
    own: int, function: Callable[[Any], float], others: Callable[[int, Any], float]
) -> Callable[[int, Any], float]:
    @inlined
    def choose(number: int, argument: Any) -> float:
        if number == own:
            return function(argument)
        return others(number, argument)

    return choose
