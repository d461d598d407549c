"""The fields that the messages of a sample have, at any depth, and what their values are."""

from __future__ import annotations

import datetime
import decimal
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from anabranch.dataflows.declaration.casts import cast_to, text_of
from anabranch.dataflows.declaration.shape import Path, Step
from anabranch.dataflows.messages.event_time import parse_time_ms
from anabranch.dataflows.messages.time_units import TIME_UNITS_MS, fitting_unit
from anabranch.state.arrays import LARGEST
from anabranch.state.errors import DeclarationError

MOST_FIELDS = 300
_MOST_DEPTH = 12
_NUMBER = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?\s*", re.ASCII)
_SHOWN = 60


@dataclass(slots=True)
class Type:
    """What a field is declared as.

    Attributes:
        annotation: without null: ``float``, ``str``, …
        cast: whether values of other types are cast to it.
        kind: number, boolean, text, or other: a list, which no feature uses.
    """

    annotation: str
    cast: bool
    kind: str


@dataclass(eq=False)
class SampledField:
    """One field of a sample's messages.

    Attributes:
        steps: its path.
        total: how many messages there are.
        rows: the messages that have it, null aside.
        values: its value in each of them.
        nulls: in how many it is null.
        optional: whether the messages' schema says that it may be null.
        typed: whether its values are converted to the declared type when they are read, as those
            of a CSV are.
    """

    steps: tuple[Step, ...]
    total: int
    rows: list[int] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    nulls: int = 0
    optional: bool = False
    typed: bool = False

    @property
    def path(self) -> str:
        return str(Path(self.steps))

    @property
    def name(self) -> str:
        """The last key of its path."""
        return str(next(step for step in reversed(self.steps) if isinstance(step, str)))

    @property
    def always(self) -> bool:
        """Whether every message has it, and none as null."""
        return len(self.values) == self.total

    @property
    def present(self) -> bool:
        """Whether it can be relied on: every message has it, and its schema does not allow null."""
        return self.always and not self.optional

    @cached_property
    def counts(self) -> Counter[str]:
        """How often each value occurs, by its text."""
        return Counter(map(_text, self.values))

    @property
    def is_constant(self) -> bool:
        """Whether it tells no message from another."""
        return len(self.counts) == 1 and self.total > 1 and self.always

    @property
    def is_unique(self) -> bool:
        return len(self.counts) == len(self.values)

    @property
    def example(self) -> str:
        """A value as text on one line, shortened."""
        text = repr(self.values[0]) if self.values else "null"
        return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"

    @cached_property
    def type(self) -> Type:
        """The type that all values have, or can be cast to."""
        kinds = {_kind(value) for value in self.values}
        if kinds & {"list", "object", "other"}:
            return Type("list" if kinds == {"list"} else "object", False, "other")
        if kinds <= {"bool"}:
            return Type("bool", False, "boolean")
        if kinds <= {"int"}:
            return Type("int", False, "number")
        if kinds <= {"int", "float"}:
            return Type("float", False, "number")
        if kinds == {"text"}:
            return self._of_text()
        if kinds == {"time"}:
            return Type("str", False, "text")
        for annotation, python, kind in (
            ("bool", bool, "boolean"),
            ("float", float, "number"),
            ("str", str, "text"),
        ):
            if self._all(cast_to(python)):
                return Type(annotation, True, kind)
        return Type("object", False, "other")

    def _of_text(self) -> Type:
        """Of texts: numbers where some have a decimal point and no one has a leading zero."""
        if all(_NUMBER.fullmatch(value) for value in self.values):
            numbers = [value.strip().lstrip("+-") for value in self.values]
            plain = all(not n.startswith("0") or n in ("0",) or n[1:2] == "." for n in numbers)
            if plain and any("." in n for n in numbers) and self._all(cast_to(float)):
                return Type("float", True, "number")
        return Type("str", False, "text")

    def _all(self, cast: Callable[[Any], Any]) -> bool:
        try:
            for value in self.values:
                cast(value)
        except (ValueError, ArithmeticError, TypeError):
            return False
        return True

    @cached_property
    def numbers(self) -> list[float] | None:
        """Its values as numbers; None if they are none, or beyond what a model can use."""
        if self.type.kind == "text" and not all(
            isinstance(value, str) and _NUMBER.fullmatch(value) for value in self.values
        ):
            return None
        try:
            numbers = [float(value) for value in self.values if not isinstance(value, bool)]
        except (ValueError, TypeError, OverflowError):
            return None
        fine = all(math.isfinite(number) and abs(number) <= LARGEST for number in numbers)
        return numbers if numbers and fine else None

    @cached_property
    def truths(self) -> set[bool] | None:
        """Its values as booleans: true and false, 0 and 1, yes and no; None if they are not."""
        cast = cast_to(bool)
        try:
            return {cast(value) for value in self.values}
        except (ValueError, ArithmeticError, TypeError):
            return None

    @cached_property
    def time_unit(self) -> str | None:
        """The unit in which all values are times of today, ``iso`` for texts; None: no times."""
        numbers = self.numbers
        if numbers is not None:
            low, high = min(numbers), max(numbers)
            for unit, scale in TIME_UNITS_MS.items():
                other = next(each for each in TIME_UNITS_MS.values() if each != scale)
                if fitting_unit(low, high, scale) is None and fitting_unit(low, high, other):
                    return unit
            return None
        return "iso" if self._all(lambda value: parse_time_ms(value, 1.0)) else None

    def times_ms(self, unit: str) -> list[int]:
        """Its values as times, epoch ms."""
        scale = TIME_UNITS_MS.get(unit, 1.0)
        return [parse_time_ms(value, scale) for value in self.values]


def sampled_fields(
    messages: Sequence[dict[str, Any]],
    typed: bool = False,
    nullable: Collection[tuple[Step, ...]] = (),
) -> list[SampledField]:
    """The fields of messages, in the order in which they come first.

    Objects are looked into, lists are not. A field that can't be declared is left out, and so are
    those beyond `MOST_FIELDS`. ``nullable`` are the paths that may be null by their schema.
    """
    found: dict[tuple[Step, ...], SampledField] = {}
    for row, message in enumerate(messages):
        for steps, value in _leaves(message, ()):
            each = found.get(steps)
            if each is None:
                if len(found) >= MOST_FIELDS or not _declarable(steps):
                    continue
                each = found[steps] = SampledField(
                    steps, len(messages), optional=steps in nullable, typed=typed
                )
            if value is None or (isinstance(value, float) and math.isnan(value)):
                each.nulls += 1
            else:
                each.rows.append(row)
                each.values.append(value)
    # An object that is null in some messages is none of its own: its fields are missing there.
    parents = {steps[:n] for steps in found for n in range(1, len(steps))}
    return [each for steps, each in found.items() if steps not in parents]


def _leaves(value: dict[str, Any], above: tuple[Step, ...]) -> Iterator[tuple[Any, Any]]:
    for name, inner in value.items():
        steps = (*above, name)
        if isinstance(inner, dict) and inner and len(steps) < _MOST_DEPTH:
            yield from _leaves(inner, steps)
        else:
            yield steps, inner


def _declarable(steps: tuple[Step, ...]) -> bool:
    if any('"' in step or "\\" in step for step in steps if isinstance(step, str)):
        return False  # msgspec has no such names
    try:
        return Path.parse(str(Path(steps))).steps == steps
    except DeclarationError:
        return False


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int"
    if isinstance(value, float | decimal.Decimal):
        return "float"
    if isinstance(value, str):
        return "text"
    if isinstance(value, datetime.date):
        return "time"
    if isinstance(value, list | tuple):
        return "list"
    return "object" if isinstance(value, dict) else "other"


def _text(value: Any) -> str:
    try:
        return text_of(value)
    except ValueError:
        return repr(value)
