"""Notices that a topic's numeric times are in another unit than the pipeline's ``time_unit``.

Seconds that are read as milliseconds make valid times, all of January 1970: windows and labels
would go wrong without an error. Units that are too large give times beyond the year 9999, which are
dead letters one by one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from anabranch.dataflows.messages.time_units import UNIT_HINT, fitting_unit

LOG = logging.getLogger("anabranch")
_YEAR_MS = 365 * 86_400_000  # 1970


class TimeUnitCheck:
    """Watches the times of one topic, and logs once if another unit would make them today's.

    Args:
        source: the topic or file, for the sentence.
        scale: milliseconds per unit of a number as declared.
        tell: called once with the unit that would fit.

    Attributes:
        advice: the sentence that was logged; None if there was no reason.
    """

    def __init__(
        self, source: str, scale: float, tell: Callable[[str], None] = lambda unit: None
    ) -> None:
        self._source, self._scale, self._tell = source, scale, tell
        self._earliest: int | None = None
        self._latest = 0
        self.advice: str | None = None

    def add(self, earliest_ms: int, latest_ms: int) -> None:
        """Take note of the span of valid times (epoch ms)."""
        if self._earliest is None:
            self._earliest, self._latest = earliest_ms, latest_ms
        elif earliest_ms < self._earliest or latest_ms > self._latest:
            self._earliest = min(earliest_ms, self._earliest)
            self._latest = max(latest_ms, self._latest)
        else:
            return
        if self.advice is None and self._earliest >= 0 and self._latest < _YEAR_MS:
            first, last = self._earliest / self._scale, self._latest / self._scale
            unit = fitting_unit(first, last, self._scale)
            if unit is not None:
                self._say(unit, "all in 1970")

    def add_refused(self, reasons: Iterable[str]) -> None:
        """Take note of why times were refused, as `parse_times_ms` tells it."""
        if self.advice is None and self._earliest is None:
            for reason in reasons:
                if UNIT_HINT in reason:
                    self._say(reason.partition(UNIT_HINT)[2].split(",")[0], "after the year 9999")
                    return

    def _say(self, unit: str, where: str) -> None:
        self.advice = unit_advice(self._source, unit, where)
        LOG.warning(self.advice)
        self._tell(unit)


def unit_advice(source: str, unit: str, where: str = "all in 1970 or after 9999") -> str:
    """The sentence about times that fit another unit.

    >>> unit_advice("pay.events", "s", "all in 1970")
    'the times of pay.events are all in 1970 as read; in s they are of today: declare time_unit="s"'
    """
    return (
        f"the times of {source} are {where} as read; in {unit} they are of today: declare "
        f'time_unit="{unit}"'
    )
