"""Where a replay reads, and where a run that goes on from it would: the offsets behind the history.

A topic of the pipeline knows its offsets, and so does a file that has kept them. Of any other file
nobody can know which of its rows are on the topic as well, so its user must say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from anabranch.dataflows.bus import Bus, TopicPartition
from anabranch.dataflows.declaration.input_topics import partition_count
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.files.file_rows import POSITION_COLUMNS, FileTable
from anabranch.dataflows.files.file_topic import FileTopic
from anabranch.dataflows.messages.inputs import Delayed
from anabranch.dataflows.replay.bus_topic import BusTopic
from anabranch.dataflows.replay.history_bus import EmptyTopic, History, HistoryBus
from anabranch.producers.files.formats import FORMATS
from anabranch.state.errors import InputError

ContinueAt = Literal["earliest", "latest"]
"""Where on a topic a run begins whose state knows no offset of it: at its first message, or end."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The messages of a pipeline's inputs, and where they are from; ``total`` is how many at most.

    ``places`` are where a run would go on, of topics whose offsets the history does not know.
    """

    bus: HistoryBus
    total: int
    places: dict[TopicPartition, int]


def is_file(name: str) -> bool:
    """Whether ``name`` is that of a file rather than of a topic.

    >>> is_file("payments.events"), is_file("payments.parquet")
    (False, True)
    """
    return Path(name).suffix.lower() in FORMATS or Path(name).is_file()


def open_origin(
    pipeline: Pipeline,
    events: str,
    labels: str | None,
    bus: Bus | None,
    *,
    going_on: bool,
    continue_at: ContinueAt | None = None,
    check: Callable[[], None] = lambda: None,
) -> Origin:
    """Look at files and topics. ``bus`` is needed for topics, and when a run shall be ``going_on``.

    ``check`` is asked now and then, and may raise to end it.

    Raises:
        InputError: a file can't be used, or where a run would go on is not known.
        BusError: a topic is missing, or the bus does not answer.
    """
    fixed = partition_count(pipeline, bus) if going_on and bus is not None else None
    topics = pipeline.topics
    histories = [_open(pipeline, topics.events, events, bus, fixed, check)]
    if pipeline.has_label_topic:
        if labels is None and events == topics.events:
            labels = topics.labels
        histories.append(_open(pipeline, topics.labels, labels, bus, fixed, check))
    elif labels is not None:
        raise InputError(
            f"the labels of pipeline {pipeline.name!r} are in its events: leave out --labels"
        )
    control = _open_control(pipeline, events, bus) if pipeline.has_rollouts else None
    everything = histories if control is None else [*histories, control]
    partitions = _common_count(everything)
    places = {}
    if going_on:
        assert bus is not None
        places = _places(histories, bus, continue_at)
        if isinstance(control, EmptyTopic):
            places |= _behind_control(control, bus, continue_at)
    elif continue_at is not None:
        raise InputError("--continue-at is for --state, which leaves a state to go on from")
    total = sum(count for history in everything for count in history.counts)
    return Origin(HistoryBus(everything, partitions), total, places)


def _open(
    pipeline: Pipeline,
    topic: str,
    source: str | None,
    bus: Bus | None,
    partitions: int | None,
    check: Callable[[], None],
) -> History:
    if source is None:
        return EmptyTopic(topic, partitions or 1)
    if not is_file(source):
        if bus is None:
            raise InputError(f"{source!r} is no file, and topics need a bus")
        return BusTopic(topic, bus, source)
    label, path = pipeline.label, Path(source)
    if isinstance(label, Delayed) and topic == pipeline.topics.labels:
        table = FileTable.open(path, label.type, label.time, pipeline.time_unit, label.id)
    else:
        table = FileTable.open(path, pipeline.event, pipeline.time, pipeline.time_unit, pipeline.id)
    return FileTopic(topic, table, partitions, check)


def _open_control(pipeline: Pipeline, events: str, bus: Bus | None) -> BusTopic | EmptyTopic:
    """What was said to the pipeline while its own events came; files know nothing of that."""
    topics = pipeline.topics
    if events == topics.events and bus is not None and topics.control in bus.topics():
        return BusTopic(topics.control, bus, topics.control)
    return EmptyTopic(topics.control, 1)


def _behind_control(
    control: EmptyTopic, bus: Bus, continue_at: ContinueAt | None
) -> dict[TopicPartition, int]:
    """Where a run begins to listen: behind all that was said to others, unless it is told to."""
    if control.name not in bus.topics():
        offsets = [0] * len(control.ends)
    elif continue_at == "earliest":
        offsets = bus.start_offsets(control.name)
    else:
        offsets = bus.end_offsets(control.name)
    return {TopicPartition(control.name, number): at for number, at in enumerate(offsets)}


def _common_count(histories: list[History]) -> int:
    """One partition count for all; files and what is empty adapt themselves."""
    fixed = {len(each.ends) for each in histories if isinstance(each, BusTopic)}
    most = max(len(history.ends) for history in histories)
    if len(fixed) > 1 or (fixed and most > min(fixed)):
        listed = ", ".join(f"{each.name} has {len(each.ends)}" for each in histories)
        raise InputError(
            f"events and labels need equal partition counts, for an event and its label have the "
            f"same number: {listed}"
        )
    for history in histories:
        if not isinstance(history, BusTopic):
            history.widen(most)
    return most


def _places(
    histories: list[History], bus: Bus, continue_at: ContinueAt | None
) -> dict[TopicPartition, int]:
    """Where a run would go on, of topics whose offsets the histories do not know."""
    strange = [history for history in histories if not _knows_offsets(history)]
    for history in histories:
        if isinstance(history, FileTopic) and history.table.has_positions:
            _check_copy(history, bus)
    if continue_at is None and strange:
        raise InputError(
            f"nobody knows which messages of {strange[0].name} on {bus.url} this replay stands "
            f"for: a file can say so in columns {' and '.join(POSITION_COLUMNS)}; else say where "
            "to go on: --continue-at earliest if the topic holds what comes after the replay, "
            "--continue-at latest if all that is on it now was replayed"
        )
    if continue_at is not None and not strange:
        raise InputError("--continue-at is not needed: offsets are known; leave it out")
    ask = bus.end_offsets if continue_at == "latest" else bus.start_offsets
    return {
        TopicPartition(history.name, number): offset
        for history in strange
        for number, offset in enumerate(ask(history.name))
    }


def _knows_offsets(history: History) -> bool:
    if isinstance(history, FileTopic):
        return history.table.has_positions
    return isinstance(history, BusTopic) and history.source == history.name


def _check_copy(history: FileTopic, bus: Bus) -> None:
    """Raise unless what the file says can be of the topic; empty partitions begin with it."""
    starts, ends = bus.start_offsets(history.name), bus.end_offsets(history.name)
    for number, end in enumerate(history.ends):
        if history.counts[number] and not starts[number] <= end <= ends[number]:
            raise InputError(
                f"{history.table.path} ends at offset {end:,} of partition {number}, and topic "
                f"{history.name} on {bus.url} holds {starts[number]:,} to {ends[number]:,}: the "
                "file was made of another topic, or the messages behind it are gone"
            )
    history.start_at(starts)
