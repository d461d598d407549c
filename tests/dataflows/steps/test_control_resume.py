"""Control and decisions over the lives of a state: once each, and rollouts that come and go.

Everything runs in this process, on a backlog of three partitions.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.pipelines.loader import load_pipeline
from anabranch.dataflows.recovery.resume_point import read_resume_point
from anabranch.dataflows.recovery.state_directory import StateDirectory
from anabranch.dataflows.replay.replay import ReplaySettings, replay
from anabranch.dataflows.replay.source_offsets import open_source
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions
from tests.dataflows.source.test_source_resume import run
from tests.support.checkpoint_pipeline import MINUTE, PARTITIONS, PIPELINE, T0, publish, trades
from tests.support.scripted_deployment import use_scripted_controller

MESSAGES = trades(150, seed=3)
CONTROL, ROLLOUTS = "trades.control", "trades.rollouts"
KINDS = ("start", "pause", "resume", "promote", "rollback", "remove")
COMMANDS = [(i % PARTITIONS, 2 * i, KINDS[i % 6]) for i in range(30)]  # partition, minute, kind
Messages = list[list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def _scripted_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    use_scripted_controller(monkeypatch)


def declared(directory: Path, rollout: str = "rollout=Shadow(),") -> Pipeline:
    file = directory / "flow.py"
    text = PIPELINE.replace("Pipeline, field", "Pipeline, Shadow, field")
    file.write_text(text.replace("with_features=True,", f"with_features=True,\n    {rollout}"))
    return load_pipeline(str(file))


def say(bus: MemoryBus, commands: list[tuple[int, int, str]]) -> None:
    """Control messages with partition and minute; the id says which of all it is."""
    bus.create_topics({CONTROL: PARTITIONS})
    for partition, minute, kind in commands:
        message = {"kind": kind, "id": f"{partition}/{minute}", "challenger": "tree"}
        bus.publisher().append(
            CONTROL,
            [json.dumps(message).encode()],
            partitions=partition,
            times=[T0 + minute * MINUTE],
        )


def bus_with(commands: list[tuple[int, int, str]]) -> MemoryBus:
    bus = MemoryBus()
    bus.create_topics({"trades.events": PARTITIONS, "trades.labels": PARTITIONS})
    publish(bus, MESSAGES)
    say(bus, commands)
    return bus


def messages_of(bus: MemoryBus, topic: str = ROLLOUTS) -> Messages:
    """All messages, by partition; without the events that `ScriptedController` has only counted."""
    found = [[*map(json.loads, log.values)] for log in bus.logs(topic)]
    for each in (each for part in found for each in part if "reason" in each):
        each["reason"] = each["reason"].rpartition(" and ")[2]
    return found


def request_ids(bus: MemoryBus) -> list[str]:
    return sorted(each["request_id"] for part in messages_of(bus) for each in part)


def test_a_run_that_is_stopped_anywhere_follows_each_command_once(tmp_path):
    pipeline, whole = declared(tmp_path), bus_with(COMMANDS)
    run(pipeline, whole, tmp_path / "whole")
    counts = Counter(request_ids(whole))
    assert counts == {f"{p}/{m}": 2 if kind == "promote" else 1 for p, m, kind in COMMANDS}
    assert messages_of(whole, "trades.dead-letters") != [[]] * PARTITIONS
    for seed in range(3):
        chance, bus = random.Random(seed), bus_with(COMMANDS)
        state, stops = tmp_path / f"state-{seed}", 0
        while run(
            pipeline,
            bus,
            state,
            reads=chance.randrange(3, 25),
            batch=chance.randrange(1, 9),
            epoch_s=chance.choice([0.001, 0.003, 60]),
        ):
            stops += 1
        assert stops > 2
        for topic in (ROLLOUTS, "trades.dead-letters", "trades.drift"):
            assert messages_of(bus, topic) == messages_of(whole, topic)


def test_a_crash_after_publishing_publishes_no_decision_twice(tmp_path):
    """The state is put back to before the decisions, which are on the topic already."""
    import shutil

    pipeline, bus = declared(tmp_path), bus_with(COMMANDS)
    assert run(pipeline, bus, tmp_path / "state", reads=40, batch=3)
    shutil.copytree(tmp_path / "state", tmp_path / "before")
    known = len(request_ids(bus))
    assert run(pipeline, bus, tmp_path / "state", reads=15, batch=3)
    published = len(request_ids(bus))
    assert 0 < known < published < 35
    run(pipeline, bus, tmp_path / "before", batch=5)
    whole = bus_with(COMMANDS)
    run(pipeline, whole, tmp_path / "whole")
    assert messages_of(bus) == messages_of(whole)


def offsets(state: Path) -> dict[tuple[str, int], int]:
    parts = read_resume_point(state / "recovery").partitions()
    return {(t, number): offset for number, part in parts for t, offset in part.offsets.items()}


def test_a_state_resumes_when_rollouts_are_added_removed_and_added_again(tmp_path):
    state = tmp_path / "state"
    plain, with_rollout = declared(tmp_path, ""), declared(tmp_path)
    bus = MemoryBus()
    bus.create_topics({"trades.events": PARTITIONS, "trades.labels": PARTITIONS})
    publish(bus, MESSAGES[:100])
    run(plain, bus, state)
    # What others have published there before is none of this state's business.
    bus.create_topics({ROLLOUTS: PARTITIONS})
    foreign = b'{"action":"started","challenger":"tree","rollout":"rollout-1",'
    foreign += b'"topic":"trades.control","partition":0,"offset":0,"request_id":"foreign"}'
    bus.publisher().append(ROLLOUTS, [foreign], partitions=0)

    publish(bus, MESSAGES[100:200])
    say(bus, [(0, 1, "start"), (1, 1, "pause")])
    run(with_rollout, bus, state)
    assert request_ids(bus) == ["0/1", "1/1", "foreign"]
    assert offsets(state)[CONTROL, 0] == 1

    publish(bus, MESSAGES[200:250])
    say(bus, [(0, 2, "resume")])
    run(plain, bus, state)
    assert request_ids(bus) == ["0/1", "1/1", "foreign"]
    assert offsets(state)[CONTROL, 0] == 1

    publish(bus, MESSAGES[250:])
    run(with_rollout, bus, state)
    assert request_ids(bus) == ["0/1", "0/2", "1/1", "foreign"]
    assert offsets(state)[CONTROL, 0] == 2

    outputs = ("trades.predictions", "trades.dead-letters")
    of_events = [e for topic in outputs for part in messages_of(bus, topic) for e in part]
    of_events = [(e["partition"], e["offset"]) for e in of_events if e["topic"] == "trades.events"]
    assert sorted(of_events) == [
        (number, offset)
        for number, end in enumerate(bus.end_offsets("trades.events"))
        for offset in range(end)
    ]


def test_a_new_state_that_begins_at_the_end_follows_no_old_command(tmp_path):
    pipeline, bus = declared(tmp_path), bus_with(COMMANDS)
    run_from_the_end(pipeline, bus, tmp_path / "state")
    assert request_ids(bus) == []


def test_an_existing_state_executes_earlier_commands_at_any_start_offset(tmp_path):
    plain, with_rollout = declared(tmp_path, ""), declared(tmp_path)
    bus = bus_with(COMMANDS[:2])
    run(plain, bus, tmp_path / "state")
    run_from_the_end(with_rollout, bus, tmp_path / "state")
    assert request_ids(bus) == ["0/0", "1/2"]


def run_from_the_end(pipeline: Pipeline, bus: MemoryBus, path: Path) -> None:
    with StateDirectory.open(path, pipeline, bus) as state:
        run_worker(pipeline, bus, SourceOptions(until_end=True, start_offset="latest"), state=state)


# Replay.


def test_a_replay_of_its_own_topics_reads_commands_sent_meanwhile(tmp_path):
    pipeline, bus = declared(tmp_path), bus_with(COMMANDS)
    source = open_source(pipeline, "trades.events", None, bus, resumable=True)
    assert source.bus.end_offsets(CONTROL) == bus.end_offsets(CONTROL)
    assert source.start_offsets == {}
    settings = ReplaySettings(
        events="trades.events", rows=tmp_path / "rows.parquet", state=tmp_path / "state"
    )
    found = replay(pipeline, settings, bus)
    assert found.offsets[CONTROL, 0] == bus.end_offsets(CONTROL)[0]
    assert request_ids(bus) == []
    say(bus, [(0, 90, "start")])
    run(pipeline, bus, tmp_path / "state")
    assert request_ids(bus) == ["0/90"]


def test_a_replay_of_files_ignores_commands_and_resumes_after_them(tmp_path):
    pipeline, bus = declared(tmp_path), bus_with(COMMANDS)
    events = [message for _, message in MESSAGES if "fraud" not in message]
    file = tmp_path / "events.jsonl"
    file.write_text("\n".join(map(json.dumps, events)))
    places = {
        at: open_source(
            pipeline, str(file), None, bus, resumable=True, continue_at=at
        ).start_offsets  # type: ignore[arg-type]
        for at in ("latest", "earliest")
    }
    assert [places["latest"][CONTROL, n] for n in range(PARTITIONS)] == bus.end_offsets(CONTROL)
    assert [places["earliest"][CONTROL, n] for n in range(PARTITIONS)] == [0, 0, 0]
    alone = open_source(pipeline, str(file), None, None, resumable=False)
    assert alone.bus.end_offsets(CONTROL) == [0]


def test_a_replay_resumes_at_the_start_of_a_control_topic_that_is_not_there_yet(tmp_path):
    pipeline, bus = declared(tmp_path), MemoryBus()
    bus.create_topics({"trades.events": PARTITIONS, "trades.labels": PARTITIONS})
    publish(bus, MESSAGES)
    source = open_source(pipeline, "trades.events", None, bus, resumable=True)
    assert source.start_offsets == {(CONTROL, number): 0 for number in range(PARTITIONS)}
