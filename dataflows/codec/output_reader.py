"""Reads the output topics of a pipeline as typed messages, from Python."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar, overload

import msgspec

from anabranch.dataflows.bus import Bus, BusError, TopicPartition, open_bus
from anabranch.dataflows.bus.read_to_end import at_end, before_end, ends_now
from anabranch.dataflows.codec import codec_of
from anabranch.dataflows.codec.json_codec import JsonCodec
from anabranch.dataflows.codec.protocol import Codec
from anabranch.dataflows.declaration.declaration import Declaration
from anabranch.dataflows.declaration.topics import Topics
from anabranch.dataflows.messages.outputs import (
    Cause,
    DeadLetter,
    DriftSignal,
    Prediction,
    Ranking,
    RolloutMessage,
)
from anabranch.state.errors import InputError

_BATCH = 1000
_POLL_S = 0.1

_TOPIC_OF: dict[type[Any], str] = {
    Prediction: "predictions",
    Ranking: "predictions",
    DeadLetter: "dead_letters",
    DriftSignal: "drift",
    RolloutMessage: "rollouts",
}

Output = TypeVar("Output", bound=msgspec.Struct)
Start = Literal["earliest", "latest"] | Mapping[int, int]
"""Where to start: at an end of the topic, or at an offset by partition (else at the earliest)."""


class OutputReader(Generic[Output]):
    """An iterator over the messages of one output topic; made by `read_outputs`.

    Messages of a partition come in the order of their offsets. The reader is closed when the
    iteration ends, and by `close` or the end of a ``with`` block.
    """

    def __init__(
        self,
        topic: str,
        output: type[Output],
        codec: Codec,
        *,
        bus: Bus,
        start: Start,
        follow: bool,
    ) -> None:
        self.topic = topic
        self._output = output
        self._decode, self._errors = codec.decoder(output), codec.errors
        self._position = _start_offsets(bus, topic, start)
        self._coordinates: Cause | None = None
        offsets = {TopicPartition(topic, n): offset for n, offset in self._position.items()}
        self._ends = None if follow else ends_now(bus, offsets)
        self._pending: deque[tuple[int, int, bytes]] = deque()
        self._closed = threading.Event()
        self._reading = threading.Lock()  # `close` may come from another thread
        self._owned_bus: Bus | None = None
        self._reader = bus.reader(offsets)

    @property
    def position(self) -> dict[int, int]:
        """The offset after the last message returned, by partition: ``start=`` to continue here."""
        return dict(self._position)

    @property
    def coordinates(self) -> Cause | None:
        """Where the message that was returned last is in the output topic; None before the first.

        (The message's own fields ``topic``, ``partition`` and ``offset`` are those of its cause.)
        """
        return self._coordinates

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Output:
        """The next message; without ``follow`` the end of the topic ends the iteration.

        Raises:
            InputError: the message is not of the expected type. The next call continues after it.
            BusError: the topic was deleted, or messages were removed before they could be read.
        """
        while not self._pending or self._closed.is_set():
            with self._reading:
                ended = self._closed.is_set() or self._at_end()
                if not ended:
                    self._fetch()
            if ended:
                self.close()
                raise StopIteration
        partition, offset, payload = self._pending.popleft()
        self._position[partition] = offset + 1
        self._coordinates = Cause(self.topic, partition, offset)
        try:
            return self._decode(payload)
        except self._errors as error:
            raise InputError(
                f"the message at offset {offset} of partition {partition} of topic {self.topic} "
                f"is no {self._output.__name__}: {error}"
            ) from None

    def _at_end(self) -> bool:
        return self._ends is not None and at_end(self._reader.positions(), self._ends)

    def _fetch(self) -> None:
        slices = self._reader.poll(_BATCH, _POLL_S)
        for piece in slices:
            each = piece if self._ends is None else before_end(piece, self._ends)
            if each is None:
                continue
            offsets = each.offsets.tolist()
            for offset, payload in zip(offsets, each.values, strict=True):
                self._pending.append((each.partition, offset, payload))
        if not slices and not self._at_end():
            self._closed.wait(_POLL_S / 10)  # a bus in memory does not wait in `poll`

    def close(self) -> None:
        """Stop reading; from another thread this ends a reader that follows. Idempotent."""
        self._closed.set()
        with self._reading:
            self._reader.close()
            if self._owned_bus is not None:
                self._owned_bus.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@overload
def read_outputs(
    pipeline: Declaration | str,
    *,
    bus: Bus | str,
    start: Start = "earliest",
    follow: bool = False,
) -> OutputReader[Prediction]: ...


@overload
def read_outputs(
    pipeline: Declaration | str,
    output: type[Output],
    *,
    bus: Bus | str,
    start: Start = "earliest",
    follow: bool = False,
) -> OutputReader[Output]: ...


def read_outputs(
    pipeline: Declaration | str,
    output: type[Any] = Prediction,
    *,
    bus: Bus | str,
    start: Start = "earliest",
    follow: bool = False,
) -> OutputReader[Any]:
    """Read what a pipeline has published: predictions, or another type of output.

    ::

        from anabranch import DeadLetter, open_bus, read_outputs

        for prediction in read_outputs("payments", bus="sqlite:data/bus"):
            print(prediction.id, prediction.prediction, prediction.score)

        bus = open_bus("kafka://localhost:9092")
        with read_outputs("payments", DeadLetter, bus=bus, follow=True) as dead_letters:
            for dead_letter in dead_letters:
                alert(dead_letter.reason, dead_letter.detail)

    Args:
        pipeline: a `Pipeline`, its file such as ``"fraud.py"``, or its name. By its name alone it
            is found if its topics bear that name, or if it is shipped, or in NAME.py of the working
            directory.
        output: `Prediction`, `Ranking` (of a pipeline with ``candidates``), `DeadLetter`,
            `DriftSignal` or `RolloutMessage`.
        bus: a bus, or its URL; a bus that is opened for the URL is closed with the reader.
        start: ``"earliest"``, ``"latest"``, or the offset to start at by partition, such as
            `OutputReader.position` of an earlier reader.
        follow: wait for further messages, until the reader is closed, in place of ending at the
            end that the topic has now.

    Raises:
        InputError: ``output`` is no type of output, or not that of this pipeline.
        DeclarationError: the file of the pipeline can't be loaded.
        BusError: the bus can't be reached, or the topic or an offset does not exist.

    >>> from anabranch import DeadLetter, MemoryBus
    >>> bus = MemoryBus()
    >>> bus.create_topics({"payments.dead-letters": 1})
    ['payments.dead-letters']
    >>> bus.publisher().append("payments.dead-letters", [
    ...     b'{"topic":"payments.events","partition":0,"offset":7,"reason":"late","detail":"-"}'
    ... ])
    >>> reader = read_outputs("payments", DeadLetter, bus=bus)
    >>> [letter.reason for letter in reader], reader.position
    (['late'], {0: 1})
    """
    if output not in _TOPIC_OF:
        listed = ", ".join(each.__name__ for each in _TOPIC_OF)
        raise InputError(f"{output!r} is no type of output: read one of {listed}")
    if not isinstance(bus, str):
        return _open(pipeline, output, bus, start, follow)
    opened = open_bus(bus)
    try:
        reader = _open(pipeline, output, opened, start, follow)
    except BaseException:
        opened.close()
        raise
    reader._owned_bus = opened
    return reader


def _open(
    pipeline: Declaration | str, output: type[Any], bus: Bus, start: Start, follow: bool
) -> OutputReader[Any]:
    declared = _declared(pipeline, output, bus) if isinstance(pipeline, str) else pipeline
    role = _TOPIC_OF[output]
    if declared is None:
        # Of a pipeline of which only the name is known: the default topic and format.
        topic, codec = Topics().named(str(pipeline)).of_role(role), JsonCodec()
        return OutputReader(topic, output, codec, bus=bus, start=start, follow=follow)
    expected = Prediction if declared.candidates is None else Ranking
    if output in (Prediction, Ranking) and output is not expected:
        raise InputError(
            f"pipeline {declared.name!r} publishes no {output.__name__} messages: read "
            f"{expected.__name__}"
        )
    topic = declared.topics.of_role(role)
    codec_there = codec_of(declared, topic)
    return OutputReader(topic, output, codec_there, bus=bus, start=start, follow=follow)


def _declared(name: str, output: type[Any], bus: Bus) -> Declaration | None:
    """The pipeline that ``name`` refers to; None if its topic bears its name, or it is unknown."""
    if Topics().named(name).of_role(_TOPIC_OF[output]) in bus.topics():
        return None
    from anabranch.dataflows.pipelines.loader import find_pipeline

    return find_pipeline(name)


def _start_offsets(bus: Bus, topic: str, start: Start) -> dict[int, int]:
    topics = bus.topics()
    if topic not in topics:
        raise BusError(
            f"topic {topic!r} does not exist on {bus.url}: run the pipeline there first, or, if "
            "its topics have names of their own, give read_outputs the pipeline, not its name"
        )
    if start == "latest":
        return dict(enumerate(bus.end_offsets(topic)))
    offsets = dict(enumerate(bus.start_offsets(topic)))
    if start == "earliest":
        return offsets
    if not isinstance(start, Mapping):
        raise InputError(
            f"start={start!r} must be 'earliest', 'latest', or offsets by partition, such as "
            "{0: 17}"
        )
    unknown = [number for number in start if number not in offsets]
    if unknown:
        raise InputError(
            f"start= names partition {unknown[0]!r}, but topic {topic!r} has partitions "
            f"0 to {len(offsets) - 1}"
        )
    return {**offsets, **start}
