"""A process whose engine has failed ends with its code, without being torn down."""

from __future__ import annotations

import os
from pathlib import Path

from anabranch.dataflows.bus import open_bus
from tests.support.commands import run_command

PIPELINE = """
import atexit, sys
from river import base
from anabranch import Event, Pipeline, field, inline

# Runs only if Python is torn down.
atexit.register(lambda: print("torn down", file=sys.stderr, flush=True))

class Boom(base.Classifier):
    def learn_one(self, x, y):
        if x["size"] == 77.0:  # not when a copy is tried as the pipeline is declared
            raise ValueError("boom")
    def predict_proba_one(self, x):
        return {True: 0.5, False: 0.5}

class Thing(Event):
    id: str
    ts: int
    size: float
    good: bool

pipeline = Pipeline(
    name="boom", event=Thing, label=inline("good"), features=[field("size")], model=Boom(),
    max_model_failures=0)
"""


def published(directory: Path) -> None:
    (directory / "boom.py").write_text(PIPELINE)
    bus = open_bus(f"sqlite:{directory}/data/bus")
    bus.create_topics({"boom.events": 1})
    publisher = bus.publisher()
    publisher.append("boom.events", [b'{"id":"1","ts":1700000000000,"size":77.0,"good":true}'])
    publisher.close()


def test_a_worker_that_refuses_leaves_at_once_with_its_sentence(tmp_path: Path) -> None:
    published(tmp_path)
    done = run_command(
        tmp_path, "run", "boom.py", "--state", "state", "--until-end",
        ANABRANCH_SUPERVISED=str(os.getpid()), ANABRANCH_ERROR_FILE=str(tmp_path / "error"),
    )  # fmt: skip
    assert done.code == 4
    assert "no longer has the lock" in (tmp_path / "error").read_text()
    assert "torn down" not in done.err


def test_a_run_whose_engine_fails_leaves_with_its_output_written(tmp_path: Path) -> None:
    published(tmp_path)
    done = run_command(tmp_path, "run", "boom.py", "--no-state", "--until-end")
    assert done.code == 1
    assert "boom" in done.err
    assert "torn down" not in done.err


def test_a_command_that_ends_well_or_before_the_engine_is_torn_down(tmp_path: Path) -> None:
    published(tmp_path)
    done = run_command(tmp_path, "topics", "boom.py")
    assert (done.code, done.err) == (0, "torn down\n")
    done = run_command(tmp_path, "run", "boom.py", "--bus", "sqlite:empty")
    assert done.code == 1
    assert done.err.endswith("torn down\n")
