"""Reads what was decided about rollouts, and asks for more: the two ends of the control topic."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

import msgspec

from anabranch.dataflows.bus import Bus, TopicPartition
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.control import Control
from anabranch.dataflows.messages.outputs import RolloutMessage
from anabranch.state.errors import InputError

_PIECE = 1000
_POLL_S = 0.1
_GRACE_S = 0.3  # for the rest of an answer of several messages


class RolloutLog:
    """Messages on a pipeline's rollouts topic, oldest first; a context manager.

    With ``most`` it begins so many messages before the end of each partition, at most.

    Raises:
        InputError: the pipeline has no rollouts, or has not run yet.
        BusError: the bus does not answer.
    """

    def __init__(self, pipeline: Pipeline, bus: Bus, most: int | None = None) -> None:
        check_steerable(pipeline, bus)
        topic = pipeline.topics.rollouts
        starts, ends = bus.start_offsets(topic), bus.end_offsets(topic)
        if most is not None:
            starts = [max(start, end - most) for start, end in zip(starts, ends, strict=True)]
        places = {TopicPartition(topic, number): start for number, start in enumerate(starts)}
        self._ends = {TopicPartition(topic, number): end for number, end in enumerate(ends)}
        self._reader = bus.reader(places)
        self._decode = msgspec.json.Decoder(RolloutMessage).decode

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._reader.close()

    def history(self, stop: threading.Event | None = None) -> list[RolloutMessage]:
        """All up to the ends that the topic had when this was opened, or until ``stop``."""
        found: list[tuple[int, RolloutMessage]] = []
        while not (stop is not None and stop.is_set()):
            positions = self._reader.positions()
            if all(positions[at] >= end for at, end in self._ends.items()):
                break
            found += self._poll(_POLL_S)
        found.sort(key=lambda each: each[0])  # stable: a partition keeps its order
        return [message for _, message in found]

    def poll(self, timeout_s: float = _POLL_S) -> list[RolloutMessage]:
        """Those that have come since, after waiting for that long at most."""
        found = sorted(self._poll(timeout_s), key=lambda each: each[0])
        return [message for _, message in found]

    def _poll(self, timeout_s: float) -> list[tuple[int, RolloutMessage]]:
        found = []
        for piece in self._reader.poll(_PIECE, timeout_s):
            for at, value in zip(piece.times.tolist(), piece.values, strict=True):
                try:
                    found.append((at, self._decode(value)))
                except (msgspec.DecodeError, UnicodeDecodeError):
                    continue  # nobody else should write there; a run says so in its log
        return found


def check_steerable(pipeline: Pipeline, bus: Bus) -> None:
    """Raise unless there is a rollout to steer.

    Raises:
        InputError: the pipeline has none, or has not run yet.
    """
    if not pipeline.has_rollouts:
        raise InputError(
            f"pipeline {pipeline.name!r} has no rollouts: declare challengers={{…}} or "
            "rollout=Shadow(), Canary(), ABTest() or Bandit(…) in it, and start it again"
        )
    there = bus.topics()
    for topic in (pipeline.topics.control, pipeline.topics.rollouts):
        if topic not in there:
            raise InputError(
                f"topic {topic!r} does not exist on {bus.url}: nobody has run the pipeline there "
                "since it has rollouts; start it with `anabranch run`"
            )


def ask(pipeline: Pipeline, bus: Bus, control: Control, timeout_s: float) -> list[RolloutMessage]:
    """Publish a control message and wait for what becomes of it; empty when nobody answers.

    Raises:
        InputError: the pipeline has no rollouts, or has not run yet.
        BusError: the bus does not answer.
    """
    with RolloutLog(pipeline, bus, most=0) as log:
        publisher = bus.publisher()
        try:
            payload = msgspec.json.encode(control)
            publisher.append(pipeline.topics.control, [payload], partitions=0)
            publisher.flush(timeout_s)
        finally:
            publisher.close()
        found: list[RolloutMessage] = []
        until = time.monotonic() + timeout_s
        while (left := until - time.monotonic()) > 0:
            answers = [each for each in log.poll(min(left, _POLL_S)) if each.answers == control.id]
            if answers and not found:
                until = time.monotonic() + _GRACE_S
            found += answers
        return found
