"""Logs what a run publishes beside predictions: drift, rollout decisions and dead letters."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable

from anabranch.dataflows.messages.outputs import DeadLetter, DriftSignal, RolloutMessage
from anabranch.models.rollout.decision import CHAMPION_FAILED, ROLLED_BACK

DRIFT = logging.getLogger("anabranch.drift")
ROLLOUT = logging.getLogger("anabranch.rollout")
DEAD_LETTERS = logging.getLogger("anabranch.dead_letters")
_EVERY_S = 60.0
_WARNED = (ROLLED_BACK, CHAMPION_FAILED)


class StreamLog:
    """Logs drift and decisions one by one, and dead letters in sum, once a minute at most.

    ``topic`` is that of dead letters.
    """

    def __init__(self, topic: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._topic, self._clock = topic, clock
        self._next_at = 0.0
        self._dead: Counter[str] = Counter()

    def signals(self, signals: Iterable[DriftSignal]) -> None:
        """Log drift as a warning, the rest as information."""
        for each in signals:
            DRIFT.log(
                logging.WARNING if each.severity == "drift" else logging.INFO,
                "%s %r: %s, detected by %s at %s partition %d offset %d",
                each.kind, each.subject, each.severity, each.detector, each.topic, each.partition,
                each.offset,
                extra={"subject": each.subject, "kind": each.kind, "severity": each.severity},
            )  # fmt: skip

    def decisions(self, decisions: Iterable[RolloutMessage]) -> None:
        """Log rollbacks and failures of the champion as warnings, the rest as information."""
        for each in decisions:
            ROLLOUT.log(
                logging.WARNING if each.action in _WARNED else logging.INFO,
                "%s %s: %s", each.challenger or each.champion, each.action, each.reason,
                extra={"action": each.action, "challenger": each.challenger},
            )  # fmt: skip

    def dead_letters(self, records: Iterable[DeadLetter]) -> None:
        """Count messages that could not be used."""
        self._dead.update(record.reason for record in records)
        self.flush()

    def flush(self) -> None:
        """Log the sum of dead letters if one is due; to be called now and then."""
        if self._dead and self._clock() >= self._next_at:
            self.finish()

    def finish(self) -> None:
        """Log the sum of those that were not logged yet."""
        if not self._dead:
            return
        self._next_at = self._clock() + _EVERY_S
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self._dead.most_common())
        DEAD_LETTERS.warning(
            "%d messages could not be used (%s): see %s", self._dead.total(), reasons, self._topic,
            extra={"reasons": dict(self._dead)},
        )  # fmt: skip
        self._dead.clear()
