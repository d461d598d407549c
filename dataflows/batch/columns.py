"""Columns of decoded rows: lists, arrays, and column types that behave like lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.declaration.casts import join_texts

ColumnReader = Callable[[list[Any]], tuple[list[Any], ...]]
"""Structs to columns, see `column_reader`."""


def column_reader(names: Sequence[str]) -> ColumnReader:
    """A function that reads these fields of structs, one list per field.

    It is generated, as dataclasses generate their methods: attributes that are spelt out are read
    twice as fast as by `operator.attrgetter`. The names are those of a declared type; nothing that
    arrives on a topic gets here.

    >>> from msgspec import Struct
    >>> class Point(Struct):
    ...     x: int
    ...     y: int
    >>> column_reader(["y", "x"])([Point(1, 2), Point(3, 4)])
    ([2, 4], [1, 3])

    Raises:
        ValueError: a name is no Python identifier.
    """
    if not all(name.isidentifier() for name in names):
        raise ValueError(f"not all of {names!r} are names")
    lists = "".join(f"[struct.{name} for struct in structs], " for name in names)
    read: ColumnReader = eval(f"lambda structs: ({lists})")
    return read


def joined_column(columns: Sequence[Sequence[str | None]]) -> Sequence[str | None]:
    r"""Several columns of texts as one, null where any of them is; see `join_texts`.

    >>> joined_column([["a", "b/c", None], ["x", "y", "z"]])
    ['a/x', 'b\\/c/y', None]
    """
    rows = zip(*columns, strict=True)
    return [None if None in row else join_texts(row) for row in rows]


class NumberColumn(Sequence[Any]):
    """Numbers or booleans in an array, which reads as the list that msgspec would have made.

    Args:
        array: ``(rows,)``, int64 or float64.
        are_booleans: the values are 0.0 and 1.0, and stand for False and True.
        may_be_null: NaN stands for None.

    >>> list(NumberColumn(np.array([1.0, 0.0]), True)), NumberColumn(np.array([3]))[0]
    ([True, False], 3)
    """

    __slots__ = ("_are_booleans", "_may_be_null", "array")

    def __init__(
        self, array: NDArray[Any], are_booleans: bool = False, may_be_null: bool = False
    ) -> None:
        self.array, self._are_booleans, self._may_be_null = array, are_booleans, may_be_null

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, row: Any) -> Any:
        return self.tolist()[row]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.tolist())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self.array if dtype is None else self.array.astype(dtype)

    def tolist(self) -> list[Any]:
        """The values as Python objects."""
        values: list[Any] = (self.array == 1.0 if self._are_booleans else self.array).tolist()
        if self._may_be_null:
            return [None if value != value else value for value in values]
        return values

    def floats(self) -> NDArray[np.float64]:
        """The values, ``(rows,) float64``; not to be written to."""
        array = self.array
        return array if array.dtype == _FLOAT64 else array.astype(_FLOAT64)


_FLOAT64 = np.dtype(np.float64)


@runtime_checkable
class Gatherable(Protocol):
    """A column type that can be gathered from and concatenated without becoming a list."""

    def take(self, rows: NDArray[np.int64]) -> Any:
        """Only these rows, in this order."""

    @classmethod
    def joined(cls, pieces: Sequence[Any]) -> Any:
        """Concatenate columns of this type."""


Column = TypeVar("Column", bound=Sequence[Any] | NDArray[Any])


def pick(column: Sequence[Any], rows: list[int]) -> list[Any]:
    """The values of these rows."""
    values = list(column)
    return [values[row] for row in rows]


def take_rows(column: Column, rows: NDArray[np.int64]) -> Column:
    """Only these rows, in this order: a column of the same type, or a list if it can't be.

    >>> take_rows(["a", "b", "c"], np.array([2, 0]))
    ['c', 'a']
    """
    if isinstance(column, list):
        return cast(Column, [column[row] for row in rows.tolist()])
    if isinstance(column, np.ndarray):
        return cast(Column, column[rows])
    if isinstance(column, Gatherable):
        return cast(Column, column.take(rows))
    return cast(Column, pick(column, rows.tolist()))


def concat_rows(pieces: Sequence[Column]) -> Column:
    """Concatenate columns; the result is a list if they are not all of one type.

    >>> concat_rows([["a"], ["b", "c"]])
    ['a', 'b', 'c']
    """
    first = pieces[0]
    if len(pieces) == 1:
        return first
    if all(type(piece) is type(first) for piece in pieces):
        if isinstance(first, np.ndarray):
            return cast(Column, np.concatenate(pieces))
        if isinstance(first, Gatherable):
            return cast(Column, type(first).joined(pieces))
    return cast(Column, [value for piece in pieces for value in piece])
