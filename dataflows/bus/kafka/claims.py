"""Claims of output topics on Kafka: the metadata of offsets that a consumer group has committed.

Nothing else that a broker keeps can be written by whoever may run a pipeline, needs no topic of its
own, and goes when its topic is deleted. The group has no members; an offset stands for no position.
A broker forgets it a week after the last commit (``offsets.retention.minutes``).

Kafka has no lock that ends with a process. So an active run raises the *beat* of its claims every
few seconds. Who finds a claim of another run watches it for longer than that. Of two runs that
start at the same moment the one that wrote last keeps the claim, and the other finds that out half
a second later.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol, Self

import msgspec

from anabranch.dataflows.bus.claims import Claim, check_pipeline, here, in_use
from anabranch.dataflows.bus.kafka.settings import LOG
from anabranch.state.errors import BusError

GROUP = "anabranch-writers"
"""The consumer group whose offsets carry the claims."""

_CHECK_S = 0.5
_BEAT_S = 3.0
_WATCH_S = 9.0
_POLL_S = 0.25
_LAST_S = 2.0


class ClaimStore(Protocol):
    """Reads and writes the claims of topics on a cluster."""

    def read(self, topics: Sequence[str], timeout_s: float | None = None) -> dict[str, Claim]:
        """The claims there are, by topic."""

    def write(self, claims: Mapping[str, Claim | None], timeout_s: float | None = None) -> None:
        """Store these claims; None removes one."""


class ClaimsRefusedError(BusError):
    """Kafka does not let this user read or write claims."""


class KafkaClaims:
    """The claims of one run, kept alive by a thread.

    Raises:
        BusError: another pipeline, or another run, writes one of the topics; or Kafka does not
            respond.
    """

    def __init__(
        self,
        store: ClaimStore,
        topics: Sequence[str],
        pipeline: str,
        run: str,
        say: Callable[[str], None],
    ) -> None:
        self._store, self._topics = store, list(topics)
        self._claim = Claim(pipeline, run, here())
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._lost: BusError | None = None
        try:
            self._check(say)
            store.write(dict.fromkeys(self._topics, self._claim))
        except ClaimsRefusedError as error:
            LOG.warning(
                "whether another run writes %s can't be known, as Kafka refuses to keep claims: %s",
                ", ".join(self._topics),
                error,
            )
            return
        self._thread = threading.Thread(target=self._keep, name="output claims", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._ended.set()
        if self._thread is None:
            return
        self._thread.join(_LAST_S)
        if self._lost is None:
            last = msgspec.structs.replace(self._claim, active=False)
            with suppress(BusError):  # then the next run watches it for a while
                self._store.write(dict.fromkeys(self._topics, last), _LAST_S)
        elif error is None:
            raise self._lost

    def _check(self, say: Callable[[str], None]) -> None:
        stored = self._store.read(self._topics)
        for topic, claim in stored.items():
            check_pipeline(topic, claim, self._claim.pipeline)
        others = self._others(stored)
        if not others:
            return
        topic, claim = next(iter(others.items()))
        say(
            f"a run that has not ended in order ({claim.where}) wrote topic {topic}: watching it "
            f"for {_WATCH_S:g} s"
        )
        beating = watch(self._store, others, _WATCH_S)
        if beating is not None:
            raise in_use(beating, others[beating], self._claim.pipeline)

    def _others(self, stored: Mapping[str, Claim]) -> dict[str, Claim]:
        return {t: c for t, c in stored.items() if c.active and c.run != self._claim.run}

    def _keep(self) -> None:
        """Raise the beat, until the end or until the claims are another run's."""
        wait_s = _CHECK_S
        while not self._ended.wait(wait_s):
            wait_s = _BEAT_S
            try:
                stored = self._store.read(self._topics)
                for topic, claim in stored.items():
                    if claim.run != self._claim.run:
                        self._lost = in_use(topic, claim, claim.pipeline)
                        os.kill(os.getpid(), signal.SIGTERM)  # the run stops as by Ctrl-C
                        return
                self._claim = msgspec.structs.replace(self._claim, beat=self._claim.beat + 1)
                self._store.write(dict.fromkeys(self._topics, self._claim))
            except BusError as error:  # an outage is told of elsewhere
                LOG.debug("claims of %s not renewed: %s", ", ".join(self._topics), error)


def watch(store: ClaimStore, claims: Mapping[str, Claim], seconds: float) -> str | None:
    """The first of these claims that another process renews within so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(_POLL_S)
        for topic, claim in store.read(list(claims)).items():
            if (claim.run, claim.beat) != (claims[topic].run, claims[topic].beat):
                return topic
    return None


def release(store: ClaimStore, topics: Sequence[str]) -> None:
    """Let other pipelines claim these topics.

    Raises:
        BusError: a run is writing one of them; then none is released.
    """
    stored = store.read(topics)
    active = {topic: claim for topic, claim in stored.items() if claim.active}
    beating = watch(store, active, _WATCH_S) if active else None
    if beating is not None:
        raise BusError(
            f"topic {beating} is being written by pipeline {active[beating].pipeline!r} "
            f"({active[beating].where}): stop that run first"
        )
    store.write(dict.fromkeys(stored))
