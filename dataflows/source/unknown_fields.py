"""Counts fields of messages that their type does not have, and tells of them once."""

from __future__ import annotations

import difflib
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

from anabranch.dataflows.declaration.casts import shown
from anabranch.dataflows.declaration.shape import Shape
from anabranch.dataflows.messages.similar_names import similar_name

LOG = logging.getLogger("anabranch")
_NAMES_IN_A_LINE = 20
_LINES = 10
_NAMES = 1000  # that are remembered as told


class UnknownFields:
    """Counts the unknown fields of one topic, and logs each once.

    Args:
        topic: the topic, for the sentence.
        shape: of the type of its messages.
        on_count: called with the topic and how often each field came.
    """

    def __init__(
        self,
        topic: str,
        shape: Shape,
        on_count: Callable[[str, Mapping[str, int]], None] = lambda topic, counts: None,
    ) -> None:
        self._topic, self._shape, self._on_count = topic, shape, on_count
        self._told: set[str] = set()
        self._lines = 0

    def add(self, counts: Counter[str], examples: Mapping[str, Any]) -> None:
        """Count fields, by their paths; ``examples`` has a value of each that is new."""
        if not self._told.issuperset(counts):
            self._tell([name for name in counts if name not in self._told], examples)
        self._on_count(self._topic, counts)

    def _tell(self, names: list[str], examples: Mapping[str, Any]) -> None:
        if self._lines >= _LINES or len(self._told) > _NAMES:
            return
        self._lines += 1
        self._told.update(names)
        example = next((name for name in names if name in examples), None)
        LOG.info(
            "messages of %s have %s that %s does not declare, and %s ignored: %s%s%s%s",
            self._topic,
            "a field" if len(names) == 1 else f"{len(names)} fields",
            self._shape.message.__name__,
            "it is" if len(names) == 1 else "they are",
            ", ".join(names[:_NAMES_IN_A_LINE]),
            f" and {len(names) - _NAMES_IN_A_LINE} more" if len(names) > _NAMES_IN_A_LINE else "",
            "" if example is None else f" (such as {example}: {shown(examples[example])})",
            self._resembling(names),
        )

    def _resembling(self, names: list[str]) -> str:
        """A hint at fields with a default that may be misspelt in the declaration."""
        optional = [str(path) for f in self._shape.fields if not f.required for path in f.paths]
        for name in names:
            parent, _, own = name.rpartition(".")
            siblings = [
                declared.rpartition(".")[2]
                for declared in optional
                if declared.rpartition(".")[0] == parent
            ]
            for found in difflib.get_close_matches(own, siblings, 1, 0.8):
                declared = f"{parent}.{found}" if parent else found
                return f"; is {name} what {self._shape.message.__name__} declares as {declared}?"
        return ""


def similar_field(missing: str, unknown: Collection[str]) -> str | None:
    """The unknown field of a message that may be the one that it lacks.

    >>> similar_field("total.amount", ["total.amuont", "currency"])
    'total.amuont'
    """
    found = similar_name(missing, unknown)
    if found is None:
        end = missing.rpartition(".")[2]
        found = next((name for name in unknown if name.rpartition(".")[2] == end), None)
    return found
