"""How kernels are compiled: two decorators, typed, and a cache that can't go stale.

A kernel is a plain Python function on numpy arrays that Numba turns into machine code. The result
is kept on disk beside the source, so only the first process on a machine pays for the compiler.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
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

# Kernels allocate nothing. Without Numba's runtime an array is not counted in and out of each call,
# which would take more time than the kernels do. They keep the interpreter's lock: a worker is one
# thread, and to hand the lock over and back takes as long as a row.
_OPTIONS: dict[str, Any] = {"_nrt": False, "no_cfunc_wrapper": True}


_IMPORT = re.compile(rb"^\s*from (anabranch(?:\.\w+)+) import (\([^)]*\)|[^\n]*)", re.MULTILINE)


@cache
def _kernel_sources(source: Path) -> frozenset[Path]:
    """`source`, the files that hold kernels it may call, directly or not, and what those import."""
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
    """Digest of all sources that the machine code of kernels in `source` depends on."""
    digest = hashlib.blake2b(Path(__file__).read_bytes(), digest_size=16)
    for path in sorted(_kernel_sources(source)):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def kernel(function: Function) -> Function:
    """Compile `function` when it is first called; strict IEEE arithmetic, no fastmath.

    Numba notices a change only in the file of the kernel itself, not in the kernels it calls, and
    would go on running old code. So the cache is stamped with the sources of those, too.

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

    A call of the kernel itself looks up the types of its arguments first, which takes longer than
    the work on a few rows. Here nothing looks: dtypes and layouts must be those of the samples.

    >>> double = entry(kernel(lambda x: 2 * x), 0)
    >>> double(21)
    42
    """
    compiled: Any = function
    return cast(Function, compiled.compile(tuple(map(typeof, samples))))


def inlined(function: Function) -> Function:
    """Like `kernel`, for what kernels call on every row: its code becomes part of theirs.

    A call between kernels hands over each array as eight words, which would cost more than the
    work. What is rare is better left a call: it keeps the compiler quick.
    """
    options = {**_OPTIONS, "forceinline": True, "no_cpython_wrapper": True}
    return cast(Function, njit(**options)(function))
