"""What a run logs of what its stream told: drift, decisions, and messages that can't be used."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable

from anabranch.dataflows.messages.outputs import DeadLetter, DriftSignal, RolloutMessage
from anabranch.models.rollout.decision import CHAMPION_FAILED, ROLLED_BACK

LOG = logging.getLogger(__name__)
_EVERY_S = 60.0
_WARNED = (ROLLED_BACK, CHAMPION_FAILED)


class StreamLog:
    """Drift and decisions are logged one by one, dead letters summed up once a minute at most.

    ``topic`` is that of dead letters.
    """

    def __init__(self, topic: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._topic, self._clock = topic, clock
        self._next_at = 0.0
        self._dead: Counter[str] = Counter()

    def signals(self, signals: Iterable[DriftSignal]) -> None:
        """Monitors have seen something: drift is a warning, the rest is information."""
        for each in signals:
            LOG.log(
                logging.WARNING if each.severity == "drift" else logging.INFO,
                "%s %r: %s, by %s, seen at %s %d, %d",
                each.kind, each.subject, each.severity, each.detector, each.topic, each.partition,
                each.offset,
                extra={"subject": each.subject, "kind": each.kind, "severity": each.severity},
            )  # fmt: skip

    def decisions(self, decisions: Iterable[RolloutMessage]) -> None:
        """A rollout has gone on, or has ended."""
        for each in decisions:
            LOG.log(
                logging.WARNING if each.action in _WARNED else logging.INFO,
                "%s %s: %s", each.challenger or each.champion, each.action, each.reason,
                extra={"action": each.action, "challenger": each.challenger},
            )  # fmt: skip

    def dead_letters(self, letters: Iterable[DeadLetter]) -> None:
        """Messages could not be used."""
        self._dead.update(letter.reason for letter in letters)
        self.flush()

    def flush(self) -> None:
        """Sum up the dead letters, if it is time; to be called now and then."""
        if self._dead and self._clock() >= self._next_at:
            self.finish()

    def finish(self) -> None:
        """Sum up those that were not told of yet."""
        if not self._dead:
            return
        self._next_at = self._clock() + _EVERY_S
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self._dead.most_common())
        LOG.warning(
            "%d messages can't be used (%s): see %s", self._dead.total(), reasons, self._topic,
            extra={"reasons": dict(self._dead)},
        )  # fmt: skip
        self._dead.clear()
