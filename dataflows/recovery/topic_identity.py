"""Whether the topics of a pipeline are still those that its state belongs to.

A topic that was deleted and created again has the same name and other messages, at the same
offsets: a run that resumed there would pass over some, and take outputs for published that are not.
So the manifest has the ids of all topics, which a bus gives anew whenever one is created. The
offsets in the engine's recovery store have them too (`tokens.PartitionState`): when the user has
accepted a new topic, those that belong to the former one remain until the next epoch is committed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import msgspec

from anabranch.dataflows.bus import Bus, OnOutOfRange
from anabranch.dataflows.declaration.input_topics import create_control, create_or_grow
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.recovery.manifest import Manifest, write_manifest
from anabranch.state.errors import StateError


def changed_topics(
    topics: Collection[str], before: Mapping[str, str], now: Mapping[str, str]
) -> list[str]:
    """Those of ``topics`` whose ids are known and differ."""
    return [t for t in topics if t in before and t in now and before[t] != now[t]]


def check_topics(
    manifest: Manifest,
    path: Path,
    pipeline: Pipeline,
    bus: Bus,
    on_recreated: OnOutOfRange,
    say: Callable[[str], None],
) -> Manifest:
    """Raise if a topic was deleted since, or was created again; returns the manifest as it is then.

    With ``on_recreated`` ``earliest``, ``say`` gets a line about each, and the manifest records
    that the new topics take their places. Ids that it does not have yet are added.

    Raises:
        StateError: names the topic, and what can be done.
        BusError: the bus does not respond.
    """
    outputs = pipeline.topics.outputs
    if pipeline.topics.control not in bus.topics():
        create_control(pipeline, bus, manifest.partitions)
    ids = bus.topic_ids([*pipeline.inputs, *outputs])
    inputs_gone = changed_topics(pipeline.inputs, manifest.topic_ids, ids)
    there = bus.topics()
    outputs_gone = [
        topic for topic in outputs if topic in manifest.topic_ids and topic not in there
    ]
    outputs_gone += changed_topics(outputs, manifest.topic_ids, ids)
    if on_recreated == "stop":
        for topic in inputs_gone:
            raise input_recreated(topic, path)
        for topic in outputs_gone:
            raise _output_recreated(topic, path)
    changed = manifest
    if outputs_gone:
        create_or_grow(bus, outputs_gone, manifest.partitions)
        ids |= bus.topic_ids(outputs_gone)
        ends = {topic: [0] * manifest.partitions for topic in outputs_gone}
        changed = msgspec.structs.replace(
            changed,
            output_ends={**changed.output_ends, **ends},
            not_before={t: at for t, at in changed.not_before.items() if t not in outputs_gone},
        )
        for topic in outputs_gone:
            say(f"output topic {topic} is a new one: what was published on the former one is gone")
    if inputs_gone:
        # What is on the outputs already is of the former topic, whatever offsets it names.
        ends = {topic: bus.end_offsets(topic) for topic in outputs if topic in bus.topics()}
        changed = msgspec.structs.replace(changed, not_before=ends)
        for topic in inputs_gone:
            say(f"topic {topic} is a new one: reading it from its first message on")
    changed = msgspec.structs.replace(changed, topic_ids={**changed.topic_ids, **ids})
    if changed != manifest:
        write_manifest(path, changed)
    return changed


def input_recreated(topic: str, path: Path) -> StateError:
    """The error for an input that is not the one which the state has read."""
    return StateError(
        f"topic {topic} was deleted and created again since {path} last read it, so the offsets "
        "there are of other messages: start from scratch with another --state, or keep what was "
        "learned and read the new topic from its first message on with --on-offset-out-of-range "
        "earliest"
    )


def _output_recreated(topic: str, path: Path) -> StateError:
    return StateError(
        f"output topic {topic} was deleted since {path} last published to it, and what it held is "
        "gone: start from scratch with another --state, or continue on a new one with "
        "--on-offset-out-of-range earliest"
    )
