"""With several workers, every step writes its state in the first epoch of a run in any case."""

from __future__ import annotations

from pathlib import Path

import pytest

from anabranch.dataflows.bus import open_bus
from anabranch.dataflows.pipelines.loader import load_pipeline
from anabranch.dataflows.recovery.resume_point import read_resume_point
from anabranch.dataflows.recovery.state_directory import StateDirectory
from tests.support.commands import Command

pytestmark = pytest.mark.stress


@pytest.mark.timeout(900)
def test_a_run_without_messages_commits_every_shard_the_models_and_the_outputs(
    tmp_path: Path,
) -> None:
    bus = open_bus(f"sqlite:{tmp_path}/data/bus")
    pipeline = load_pipeline("payments")
    bus.create_topics(dict.fromkeys(pipeline.inputs, 2))
    with Command(tmp_path, "run", "payments", "--processes", "2", "--until-end") as command:
        done = command.done(600)
    assert done.code == 0, done.err
    point = read_resume_point(tmp_path / "data" / "state" / "payments" / "recovery")
    assert sorted(point.of_step("windows_1")) == [str(shard) for shard in range(8)]
    assert list(point.of_step("models_1")) == ["0"]
    assert sorted(point.of_step("sink")) == ["000000", "000001"]
    with StateDirectory.open(
        tmp_path / "data" / "state" / "payments", pipeline, bus, workers=2
    ) as state:
        assert state.generation() == point.epoch - 1
