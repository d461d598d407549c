"""The values of a field by number: the first so many that come; all others share one number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

OTHER = "other"
"""What those without a number of their own are called together."""

_LONGEST = 100


class Vocabulary:
    """Numbers values of text, booleans and null in the order in which they come.

    It never forgets one. A text of more than 100 characters gets no number.

    Args:
        most: how many get a number, from 0 on. Any other value is `most`.
        names: those that have one from the start.

    Attributes:
        names: of the numbered values: a text as it is, else as JSON writes it.

    >>> countries = Vocabulary(2)
    >>> countries.codes(["US", None, "FR", "US"])
    array([0, 1, 2, 0])
    >>> countries.names, countries.name(2)
    (['US', 'null'], 'other')
    """

    def __init__(self, most: int, names: Iterable[str] = ()) -> None:
        self.most = most
        self.names = list(names)
        self._numbers: dict[Any, int] = {}  # by the value as it comes

    def codes(self, values: Sequence[Any], order: NDArray[np.int64] | None = None) -> Any:
        """The number of each value, `(rows,) int64`.

        Args:
            values: of the rows.
            order: in which they come, by row; what is no row in it is passed over. By default as
                they are given.
        """
        found: list[Any] = list(map(self._numbers.get, values))
        if None in found:
            turns = range(len(values)) if order is None else order[order < len(values)].tolist()
            for row in turns:
                if found[row] is None:
                    found[row] = self._number(values[row])
        return np.array(found, np.int64)

    def name(self, code: int) -> str:
        """What a number stands for."""
        return self.names[code] if code < len(self.names) else OTHER

    def _number(self, value: Any) -> int:
        name = text_of(value)
        if name not in self.names:
            if len(self.names) == self.most or len(name) > _LONGEST or name == OTHER:
                return self.most
            self.names.append(name)
        return self._numbers.setdefault(value, self.names.index(name))


def text_of(value: Any) -> str:
    """A text as it is; a boolean or null as JSON writes it.

    >>> text_of(True), text_of(None), text_of("DE")
    ('true', 'null', 'DE')
    """
    return value if isinstance(value, str) else "null" if value is None else str(value).lower()
