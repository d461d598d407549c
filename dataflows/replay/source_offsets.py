"""Opens the inputs of a replay, and determines the offsets at which a run would continue.

A topic of the pipeline has offsets, and so has a file with the columns partition and offset. For
any other file it is unknown which of its rows are on the topic as well, so the user has to say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

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
"""Where a run starts on a topic for which the replay has no offsets: at its start or its end."""


@dataclass(frozen=True, slots=True)
class ReplaySource:
    """The opened inputs of a replay.

    Attributes:
        bus: a bus with the input topics of the pipeline.
        total: an upper bound of the number of messages.
        start_offsets: where a run would continue, for topics whose history has no offsets.
    """

    bus: HistoryBus
    total: int
    start_offsets: dict[TopicPartition, int]


def is_file(name: str) -> bool:
    """Whether ``name`` names a file rather than a topic.

    >>> is_file("payments.events"), is_file("payments.parquet")
    (False, True)
    """
    return Path(name).suffix.lower() in FORMATS or Path(name).is_file()


def open_source(
    pipeline: Pipeline,
    events: str | None,
    labels: str | None,
    bus: Bus | None,
    *,
    resumable: bool,
    continue_at: ContinueAt | None = None,
    check: Callable[[], None] = lambda: None,
) -> ReplaySource:
    """Open the files and topics of a replay.

    Args:
        pipeline: whose inputs are read.
        events, labels: a file or topic each; without ``events`` the pipeline's own topics; without
            ``labels`` its own labels topics belong to its own events topics, and there are none
            otherwise.
        bus: needed for topics, and for ``resumable``.
        resumable: whether a run will continue from the replay's state.
        continue_at: where that run starts on topics for which there are no offsets.
        check: called now and then; may raise to stop.

    Raises:
        InputError: a file can't be used, or it is unknown where a run would continue.
        BusError: a topic is missing, or the bus does not respond.
    """
    topics = pipeline.topics
    fixed: dict[str, int] = {}
    if resumable and bus is not None:
        partition_count(pipeline, bus)  # raises if an input is missing
        fixed = bus.topics()
    own = events is None or events == topics.events
    sources: Mapping[str, str | None] = (
        {each: each for each in topics.all_events} if events is None else {topics.events: events}
    )
    histories = [
        _open(pipeline, name, each, bus, fixed.get(name), check) for name, each in sources.items()
    ]
    if pipeline.has_label_topic:
        sources = {topics.labels: labels}
        if labels is None and own:
            sources = {each: each for each in topics.all_labels}
        histories += [
            _open(pipeline, name, each, bus, fixed.get(name), check, is_label=True)
            for name, each in sources.items()
        ]
    elif labels is not None:
        raise InputError(
            f"the labels of pipeline {pipeline.name!r} are in its events: leave out --labels"
        )
    control = _open_control(pipeline, own, bus) if pipeline.has_rollouts else None
    topics_read = histories if control is None else [*histories, control]
    if isinstance(control, EmptyTopic):
        control.widen(max(len(history.ends) for history in histories))
    start_offsets = {}
    if resumable:
        assert bus is not None
        start_offsets = _start_offsets(histories, bus, continue_at)
        if isinstance(control, EmptyTopic):
            start_offsets |= _control_offsets(control, bus, continue_at)
    elif continue_at is not None:
        raise InputError("--continue-at needs --state, which writes a state to continue from")
    total = sum(count for history in topics_read for count in history.counts)
    history_bus = HistoryBus(topics_read, bus if resumable else None)
    return ReplaySource(history_bus, total, start_offsets)


def _open(
    pipeline: Pipeline,
    topic: str,
    source: str | None,
    bus: Bus | None,
    partitions: int | None,
    check: Callable[[], None],
    is_label: bool = False,
) -> History:
    if source is None:
        return EmptyTopic(topic, partitions or 1)
    if not is_file(source):
        if bus is None:
            raise InputError(f"{source!r} is not a file, and topics need a bus")
        return BusTopic(topic, bus, source)
    label, path = pipeline.label, Path(source)
    message: type[msgspec.Struct]
    if isinstance(label, Delayed) and is_label:
        message, time, id = label.type, label.time, label.id
    else:
        message, time, id = pipeline.event, pipeline.time, pipeline.id
    table = FileTable.open(path, message, time, pipeline.time_unit, id, pipeline.zone)
    return FileTopic(topic, table, partitions, check)


def _open_control(pipeline: Pipeline, own: bool, bus: Bus | None) -> BusTopic | EmptyTopic:
    """The commands that the pipeline got while it read its events topic; files have none."""
    topics = pipeline.topics
    if own and bus is not None and topics.control in bus.topics():
        return BusTopic(topics.control, bus, topics.control)
    return EmptyTopic(topics.control, 1)


def _control_offsets(
    control: EmptyTopic, bus: Bus, continue_at: ContinueAt | None
) -> dict[TopicPartition, int]:
    """Where a run starts on the control topic: after old commands, except with `earliest`."""
    if control.name not in bus.topics():
        offsets = [0] * len(control.ends)
    elif continue_at == "earliest":
        offsets = bus.start_offsets(control.name)
    else:
        offsets = bus.end_offsets(control.name)
    return {TopicPartition(control.name, number): at for number, at in enumerate(offsets)}


def _start_offsets(
    histories: list[History], bus: Bus, continue_at: ContinueAt | None
) -> dict[TopicPartition, int]:
    """Where a run would continue on topics whose histories have no offsets of them."""
    unknown = [history for history in histories if not _knows_offsets(history)]
    for history in histories:
        if isinstance(history, FileTopic) and history.table.has_positions:
            _check_copy(history, bus)
    if continue_at is None and unknown:
        raise InputError(
            f"it is unknown which messages of {unknown[0].name} on {bus.url} this replay covers: "
            f"use a file with the columns {' and '.join(POSITION_COLUMNS)}, or say where a run "
            "continues: --continue-at earliest if the topic holds what comes after the replay, "
            "--continue-at latest if all that is on it now was replayed"
        )
    if continue_at is not None and not unknown:
        raise InputError("--continue-at is not needed, as the offsets are known: leave it out")
    offsets_of = bus.end_offsets if continue_at == "latest" else bus.start_offsets
    return {
        TopicPartition(history.name, number): offset
        for history in unknown
        for number, offset in enumerate(offsets_of(history.name))
    }


def _knows_offsets(history: History) -> bool:
    if isinstance(history, FileTopic):
        return history.table.has_positions
    return isinstance(history, BusTopic) and history.source == history.name


def _check_copy(history: FileTopic, bus: Bus) -> None:
    """Raise unless the file's offsets are plausible for its topic; align its empty partitions."""
    starts, ends = bus.start_offsets(history.name), bus.end_offsets(history.name)
    for number, end in enumerate(history.ends):
        if history.counts[number] and not starts[number] <= end <= ends[number]:
            raise InputError(
                f"{history.table.path} ends at offset {end:,} of partition {number}, and topic "
                f"{history.name} on {bus.url} holds {starts[number]:,} to {ends[number]:,}: the "
                "file was made from another topic, or the messages after it have been deleted"
            )
    history.start_at(starts)
