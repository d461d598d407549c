"""Columns of what was decoded: a list for each field of structs, or an array that reads as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

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


@runtime_checkable
class Takes(Protocol):
    """A column that gives a column of its own kind."""

    def take(self, rows: NDArray[np.int64]) -> Any:
        """Only these rows, in this order."""

    @classmethod
    def joined(cls, pieces: Sequence[Any]) -> Any:
        """Such columns one after the other."""


Column = TypeVar("Column", bound=Sequence[Any] | NDArray[Any])


def take_rows(column: Column, rows: NDArray[np.int64]) -> Column:
    """Only these rows, in this order, of the same kind; of one that can't be picked from, a list.

    >>> take_rows(["a", "b", "c"], np.array([2, 0]))
    ['c', 'a']
    """
    if isinstance(column, list):
        return cast(Column, [column[row] for row in rows.tolist()])
    if isinstance(column, np.ndarray):
        return cast(Column, column[rows])
    if isinstance(column, Takes):
        return cast(Column, column.take(rows))
    return cast(Column, pick(column, rows.tolist()))


def join_rows(pieces: Sequence[Column]) -> Column:
    """Columns one after the other; a list where they are not of one kind.

    >>> join_rows([["a"], ["b", "c"]])
    ['a', 'b', 'c']
    """
    first = pieces[0]
    if len(pieces) == 1:
        return first
    if all(type(piece) is type(first) for piece in pieces):
        if isinstance(first, np.ndarray):
            return cast(Column, np.concatenate(pieces))
        if isinstance(first, Takes):
            return cast(Column, type(first).joined(pieces))
    return cast(Column, [value for piece in pieces for value in piece])
