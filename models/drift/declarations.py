"""What is declared of the monitors of distributions: what is watched, beside what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from anabranch.state.durations import format_duration_ms, parse_duration_ms
from anabranch.state.errors import DeclarationError

DISTRIBUTIONS: Final = "distributions"
"""What they are called among the parts of a pipeline's models."""

PIECES: Final = 24
OF_EVENTS: Final = ("feature", "keys", "missing")
"""Kinds that are known of an event before it is predicted."""

_MOST_SLOTS: Final = 2000


@dataclass(frozen=True, slots=True)
class Sliding:
    """The last ``span`` of event time: what has changed for good becomes the usual.

    It moves on by a 24th at a time, and what moves more slowly than that is not seen. The bins stay
    those of the first rows.
    """

    span: str = "7d"

    def __str__(self) -> str:
        return f"the last {format_duration_ms(parse_duration_ms(self.span))}"

    def check(self, where: str) -> None:
        """Refuse what can't be. Raises DeclarationError."""
        if parse_duration_ms(self.span) < PIECES * 1000:
            raise DeclarationError(f"span={self.span!r} of {where} must be {PIECES}s or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seasonal:
    """The same ``slot`` of the first ``periods`` periods: of the day, or of the week.

    Before them, one period goes by in which the bins are laid out. A window ends with its slot, if
    it has a quarter of its rows by then; so there should be some hundred rows in a slot.
    """

    period: str = "7d"
    slot: str = "1h"
    periods: int = 2

    def __str__(self) -> str:
        period, slot = (format_duration_ms(parse_duration_ms(t)) for t in (self.period, self.slot))
        return f"the same {slot} in the first {self.periods} × {period}"

    def check(self, where: str) -> None:
        """Refuse what can't be. Raises DeclarationError."""
        period, slot = parse_duration_ms(self.period), parse_duration_ms(self.slot)
        if slot < 1 or period % slot or not 2 <= period // slot <= _MOST_SLOTS:
            raise DeclarationError(
                f"period={self.period!r} of {where} must be 2 to {_MOST_SLOTS:,} times its "
                f"slot={self.slot!r}"
            )
        if type(self.periods) is not int or self.periods < 2:
            raise DeclarationError(
                f"periods={self.periods!r} of {where} must be 2 or more: by one alone it is not "
                "known how much they differ"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Distributions:
    """Watch the distributions of features, predictions, labels and what is missing.

    Attributes:
        window: rows that are compared with the reference at a time.
        reference: what windows are compared with: the first so much event time, and ten windows at
            least; or `Sliding`, the last so much; or `Seasonal`, the same hour of the week.
        psi: the least population stability index that is signalled. Below 0.1 is usually called
            none, above 0.25 a large one.
        false_alarms: those that are allowed per million rows, of all columns together.
        ignore: features that are not watched. Those of the hour and the day never are: they always
            move.
        quarantine: kinds ("feature", "keys", "missing"): from the first window on in which one of
            them has shifted, until that is resolved, events are predicted and their labels scored,
            and nothing is learned of them. With a reference that stays, what has changed for good
            is never learned.
    """

    window: int = 1000
    reference: str | Sliding | Seasonal = "1d"
    psi: float = 0.1
    false_alarms: float = 1.0
    ignore: Sequence[str] = ()
    quarantine: Sequence[str] = ()

    def check(self, where: str) -> None:
        """Refuse what can't be.

        Raises:
            DeclarationError: in one sentence.
        """
        if isinstance(self.window, bool) or not isinstance(self.window, int) or self.window < 100:
            raise DeclarationError(f"window={self.window!r} of {where} must be 100 rows or more")
        for what in ("psi", "false_alarms"):
            value = getattr(self, what)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise DeclarationError(f"{what}={value!r} of {where} must be above 0")
        kinds = self.quarantine
        if isinstance(kinds, str) or not set(kinds) <= set(OF_EVENTS):
            raise DeclarationError(
                f"quarantine={kinds!r} of {where} must name kinds of what events tell: "
                f"{', '.join(OF_EVENTS)}"
            )
        if isinstance(self.reference, str):
            parse_duration_ms(self.reference)
        elif isinstance(self.reference, Sliding | Seasonal):
            self.reference.check(f"reference= of {where}")
        else:
            raise DeclarationError(
                f"reference={self.reference!r} of {where} must be a duration, Sliding(…) or "
                "Seasonal(…)"
            )


def told(declared: Distributions) -> str:
    """The reference, for people.

    >>> told(Distributions()), told(Distributions(reference=Sliding("48h")))
    ('the first 1d', 'the last 2d')
    """
    if not isinstance(declared.reference, str):
        return str(declared.reference)
    return f"the first {format_duration_ms(parse_duration_ms(declared.reference))}"
