"""The topics of a pipeline on a bus: how many partitions they have, and those that it creates."""

from __future__ import annotations

from collections.abc import Sequence

from anabranch.dataflows.bus import Bus, BusError
from anabranch.dataflows.declaration.declaration import Declaration


def partition_count(pipeline: Declaration, bus: Bus) -> int:
    """How many partitions a pipeline has: as many as the input topic with most.

    Its partition n stands for partition n of every input topic that has one. The control topic need
    not exist yet (`create_control`).

    Raises:
        BusError: an input topic is missing.
    """
    topics, control = bus.topics(), pipeline.topics.control
    for topic in pipeline.inputs:
        if topic not in topics and topic != control:
            raise BusError(
                f"topic {topic!r} of pipeline {pipeline.name!r} does not exist on {bus.url}: "
                f"publish to it, or create it with `anabranch topics {pipeline.name} --create`"
            )
    return max(topics[topic] for topic in pipeline.inputs if topic in topics)


def resolve_topics(pipeline: Declaration, bus: Bus) -> None:
    """Let the topics of the pipeline be those that its patterns match on the bus now, if any.

    Raises:
        BusError: a pattern matches no topic.
    """
    if pipeline.topics.patterns:
        pipeline.topics = pipeline.topics.resolved(bus.topics())


def create_control(pipeline: Declaration, bus: Bus, partitions: int) -> None:
    """Create the control topic if it is missing; no one publishes to it before the first run.

    If there are fewer partitions than other inputs have by now, the rest is added.

    Raises:
        BusError: the bus rejected it.
    """
    if pipeline.has_rollouts:
        create_or_grow(bus, [pipeline.topics.control], partitions)


def create_or_grow(bus: Bus, topics: Sequence[str], partitions: int) -> None:
    """Create the topics that are missing, and add partitions to those that have fewer.

    One that has more keeps them: nothing is published there.

    Raises:
        BusError: the bus refused.
    """
    existing = bus.topics()
    for topic in topics:
        if existing.get(topic, partitions) < partitions:
            bus.add_partitions(topic, partitions)
    create_missing(bus, topics, partitions)


def create_missing(bus: Bus, topics: Sequence[str], partitions: int) -> list[str]:
    """Create the topics that do not exist yet, and leave the others alone; return their names.

    Raises:
        BusError: the bus refused.
    """
    existing = bus.topics()
    missing = [topic for topic in topics if topic not in existing]
    return bus.create_topics(dict.fromkeys(missing, partitions)) if missing else []
