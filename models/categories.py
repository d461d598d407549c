"""Integer codes for the values of a categorical field; values beyond a limit share one code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

OTHER = "other"
"""The name of all values without a code of their own."""

_MAX_LENGTH = 100


class Categories:
    """Assigns codes to values of text, booleans and null, in the order in which they appear.

    A code is never reassigned. A text of more than 100 characters gets no code of its own.

    Args:
        capacity: number of values with a code of their own, from 0 on. All others have the code
            `capacity`.
        names: values that have a code from the start.

    Attributes:
        capacity: as given.
        names: by code: a text as it is, other values as JSON writes them.

    >>> countries = Categories(2)
    >>> countries.codes(["US", None, "FR", "US"])
    array([0, 1, 2, 0])
    >>> countries.names, countries.name(2)
    (['US', 'null'], 'other')
    """

    def __init__(self, capacity: int, names: Iterable[str] = ()) -> None:
        self.capacity = capacity
        self.names = list(names)
        self._codes: dict[Any, int] = {}  # by the value as it is in the event

    def codes(self, values: Sequence[Any], order: NDArray[np.int64] | None = None) -> Any:
        """The code of each value, `(rows,) int64`.

        Args:
            values: one per row.
            order: row indices in the order in which new values are assigned codes; indices beyond
                the rows are skipped. By default the order of the rows.
        """
        codes: list[Any] = list(map(self._codes.get, values))
        if None in codes:
            rows = range(len(values)) if order is None else order[order < len(values)].tolist()
            for row in rows:
                if codes[row] is None:
                    codes[row] = self._code(values[row])
        return np.array(codes, np.int64)

    def name(self, code: int) -> str:
        """The name of the value, or of all values, with this code."""
        return self.names[code] if code < len(self.names) else OTHER

    def _code(self, value: Any) -> int:
        name = text_of(value)
        if name not in self.names:
            if len(self.names) == self.capacity or len(name) > _MAX_LENGTH or name == OTHER:
                return self.capacity
            self.names.append(name)
        return self._codes.setdefault(value, self.names.index(name))


def text_of(value: Any) -> str:
    """A text as it is; a boolean or null as JSON writes it.

    >>> text_of(True), text_of(None), text_of("DE")
    ('true', 'null', 'DE')
    """
    return value if isinstance(value, str) else "null" if value is None else str(value).lower()
