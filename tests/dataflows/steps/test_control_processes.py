"""Rollouts are steered while worker processes run, are killed and start again: once each.

The command line is used as people use it; a deployment that obeys stands in for one that judges.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from anabranch.dataflows.bus import open_bus
from tests.support.checkpoint_pipeline import PARTITIONS, PIPELINE, T0, Json, publish, read, trades
from tests.support.commands import Command, Done
from tests.support.crash_trial import children, kill
from tests.support.waiting import GENEROUS_S, wait_until

ROOT = str(Path(__file__).parents[3])
ALL = trades(120, seed=5)
HALF = len(ALL) // 2

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at /proc"),
    pytest.mark.stress,
]


def declare(directory: Path) -> None:
    text = PIPELINE.replace("Pipeline, field", "Pipeline, Shadow, field")
    text = text.replace("with_features=True,", "rollout=Shadow(),")
    obey = (
        "import pytest\n"
        "from tests.support.scripted_deployment import obey\n\n"
        "obey(pytest.MonkeyPatch())\n"
    )
    (directory / "flow.py").write_text(text + obey)


@pytest.mark.timeout(900)
def test_each_command_is_followed_once_whatever_is_killed(tmp_path: Path) -> None:
    """First one of two workers is, then their supervisor as well."""
    declare(tmp_path)
    bus = open_bus(f"sqlite:{tmp_path}/data/bus")
    bus.create_topics({"trades.events": PARTITIONS, "trades.labels": PARTITIONS})
    publish(bus, ALL[:HALF])
    environment = {"PYTHONPATH": os.pathsep.join([ROOT, os.environ.get("PYTHONPATH", "")])}

    def say(*words: str) -> Done:
        arguments = ("rollout", "flow.py", *words, "--json")
        with Command(tmp_path, *arguments, **environment) as command:
            return command.done(2 * GENEROUS_S)

    def start(*more: str) -> Command:
        return Command(
            tmp_path, "run", "flow.py", "--processes", 2, "--checkpoint-interval", "200ms",
            "--batch-size", 5, *more,
            **environment,
        )  # fmt: skip

    def predicted() -> int:
        topics = bus.topics()
        if "trades.predictions" not in topics:
            return 0
        return sum(bus.end_offsets("trades.predictions"))

    with start() as command:
        wait_until(lambda: predicted() > 20)
        first = say("start", "tree", "--timeout", "150s")
        assert first.code == 0, first.err
        wait_until(lambda: len(children(command.process.pid)) == 2)
        kill(children(command.process.pid)[0])
        publish(bus, ALL[HALF:])
        promoted = say("promote", "tree", "--timeout", "150s")
        assert promoted.code == 0, promoted.err
        kill(command.process.pid)
    unanswered = say("pause", "--timeout", "100ms")  # nobody runs: it is followed later
    assert unanswered.code == 3
    with start("--until-end") as command:
        done = command.done(2 * GENEROUS_S)
    assert done.code == 0, done.err

    told = [each for part in read(bus, "trades.rollouts") for each in part]
    assert [each["action"] for each in told] == ["started", "promoted", "ended", "paused"]
    assert told[0]["request_id"] == json.loads(first.out)[0]["request_id"]
    assert [each["offset"] for each in told] == sorted(each["offset"] for each in told)
    assert T0 <= told[0]["ts"] <= told[-1]["ts"]
    check_events(bus_outputs(tmp_path), bus.end_offsets("trades.events"))
    bus.close()


def bus_outputs(directory: Path) -> list[Json]:
    bus = open_bus(f"sqlite:{directory}/data/bus")
    topics = ("trades.predictions", "trades.dead-letters")
    found = [each for topic in topics for part in read(bus, topic) for each in part]
    bus.close()
    return found


def check_events(found: list[Json], ends: list[int]) -> None:
    """Every event has its prediction or its dead letter, once."""
    places = Counter((e["partition"], e["offset"]) for e in found if e["topic"] == "trades.events")
    assert places == {(number, at): 1 for number, end in enumerate(ends) for at in range(end)}
