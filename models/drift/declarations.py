"""Declarations of distribution monitors: `distributions=` of a pipeline, and its references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from anabranch.state.durations import format_duration_ms, parse_duration_ms
from anabranch.state.errors import DeclarationError

DISTRIBUTIONS: Final = "distributions"
"""The name under which their state is persisted beside a pipeline's models."""

PIECES: Final = 24
"""Parts of a sliding reference."""

EVENT_KINDS: Final = ("feature", "keys", "missing")
"""Kinds of columns whose values are known before an event is predicted."""

_MAX_SLOTS: Final = 2000


@dataclass(frozen=True, slots=True)
class Sliding:
    """A reference of the last ``span`` of event time: a lasting change becomes the new baseline.

    It advances by a 24th of the span at a time; changes slower than that are not detected. The bins
    stay those of the first rows.
    """

    span: str = "7d"

    def __str__(self) -> str:
        return f"the last {format_duration_ms(parse_duration_ms(self.span))}"

    def check(self, where: str) -> None:
        """Raise DeclarationError for values that are not possible."""
        if parse_duration_ms(self.span) < PIECES * 1000:
            raise DeclarationError(f"span={self.span!r} of {where} must be {PIECES}s or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seasonal:
    """A reference of the same ``slot`` of the day or week, in the first ``periods`` periods.

    The bins are determined in one period before these. A window ends with its slot if it has a
    quarter of its rows by then; so a slot should have some hundred rows.
    """

    period: str = "7d"
    slot: str = "1h"
    periods: int = 2

    def __str__(self) -> str:
        period, slot = (format_duration_ms(parse_duration_ms(t)) for t in (self.period, self.slot))
        return f"the same {slot} in the first {self.periods} × {period}"

    def check(self, where: str) -> None:
        """Raise DeclarationError for values that are not possible."""
        period, slot = parse_duration_ms(self.period), parse_duration_ms(self.slot)
        if slot < 1 or period % slot or not 2 <= period // slot <= _MAX_SLOTS:
            raise DeclarationError(
                f"period={self.period!r} of {where} must be 2 to {_MAX_SLOTS:,} times its "
                f"slot={self.slot!r}"
            )
        if type(self.periods) is not int or self.periods < 2:
            raise DeclarationError(
                f"periods={self.periods!r} of {where} must be 2 or more: one alone does not "
                "tell how much periods differ"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Distributions:
    """Monitor the distributions of features, predictions, labels and missing values.

    Attributes:
        window: rows that are compared with the reference at a time.
        reference: the baseline that windows are compared with: the first so much event time, and
            ten windows at least; or `Sliding`, the last so much; or `Seasonal`, the same hour of
            the week.
        psi: the smallest population stability index that is signalled. Below 0.1 is commonly called
            no shift, above 0.25 a large one.
        false_alarms: false alarms to accept per million rows, of all columns together.
        ignore: features that are not monitored. Those of the hour and the day never are: they
            always move.
        quarantine: kinds ("feature", "keys", "missing"): from the first window on in which one of
            them has shifted, until that is resolved, events are predicted and their labels scored,
            but not learned. With a reference that stays, what has changed for good is never
            learned.
    """

    window: int = 1000
    reference: str | Sliding | Seasonal = "1d"
    psi: float = 0.1
    false_alarms: float = 1.0
    ignore: Sequence[str] = ()
    quarantine: Sequence[str] = ()

    def check(self, where: str) -> None:
        """Check the values; ``where`` they were declared, for the message.

        Raises:
            DeclarationError: the first problem, as one sentence.
        """
        if isinstance(self.window, bool) or not isinstance(self.window, int) or self.window < 100:
            raise DeclarationError(f"window={self.window!r} of {where} must be 100 rows or more")
        for what in ("psi", "false_alarms"):
            value = getattr(self, what)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise DeclarationError(f"{what}={value!r} of {where} must be above 0")
        kinds = self.quarantine
        if isinstance(kinds, str) or not set(kinds) <= set(EVENT_KINDS):
            raise DeclarationError(
                f"quarantine={kinds!r} of {where} must name kinds of columns of events: "
                f"{', '.join(EVENT_KINDS)}"
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

    @property
    def reference_text(self) -> str:
        """The reference in words.

        >>> Distributions().reference_text, Distributions(reference=Sliding("48h")).reference_text
        ('the first 1d', 'the last 2d')
        """
        if not isinstance(self.reference, str):
            return str(self.reference)
        return f"the first {format_duration_ms(parse_duration_ms(self.reference))}"
