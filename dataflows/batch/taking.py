"""Rows of a column, whatever it is made of: a list, an array, or what knows how itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.batch.columns import pick


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
