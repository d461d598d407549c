"""Columns of what was decoded: a list for each field of structs, or an array that reads as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

ColumnReader = Callable[[list[Any]], tuple[list[Any], ...]]
"""Structs to columns, see `column_reader`."""


def column_reader(names: Sequence[str]) -> ColumnReader:
    """A function that reads these fields of structs, a list for each.

    It is generated, as dataclasses generate their methods: attributes that are spelt out are read
    twice as fast as by `operator.attrgetter`. The names are those of a declared type; nothing that
    arrives on a topic gets here.

    >>> from msgspec import Struct
    >>> class Point(Struct):
    ...     x: int
    ...     y: int
    >>> column_reader(["y", "x"])([Point(1, 2), Point(3, 4)])
    ([2, 4], [1, 3])
    """
    if not all(name.isidentifier() for name in names):
        raise ValueError(f"not all of {names!r} are names")
    lists = "".join(f"[struct.{name} for struct in structs], " for name in names)
    read: ColumnReader = eval(f"lambda structs: ({lists})")
    return read


class Numbers(Sequence[Any]):
    """A column of numbers in an array, which reads as a list of what msgspec would have made.

    Args:
        array: ``(rows,)``, int64 or float64.
        are_truths: they are 0.0 and 1.0, and stand for False and True.

    >>> list(Numbers(np.array([1.0, 0.0]), True)), Numbers(np.array([3]))[0]
    ([True, False], 3)
    """

    __slots__ = ("_are_truths", "array")

    def __init__(self, array: NDArray[Any], are_truths: bool = False) -> None:
        self.array, self._are_truths = array, are_truths

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, row: Any) -> Any:
        return self.tolist()[row]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.tolist())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self.array if dtype is None else self.array.astype(dtype)

    def tolist(self) -> list[Any]:
        """The values."""
        found: list[Any] = (self.array == 1.0 if self._are_truths else self.array).tolist()
        return found

    def floats(self) -> NDArray[np.float64]:
        """``(rows,) float64``; not to be written to."""
        array = self.array
        return array if array.dtype == _FLOAT64 else array.astype(_FLOAT64)


_FLOAT64 = np.dtype(np.float64)


def pick(column: Sequence[Any], rows: list[int]) -> list[Any]:
    """The values of these rows."""
    values = list(column)
    return [values[row] for row in rows]
