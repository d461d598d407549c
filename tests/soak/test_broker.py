"""A broker is killed, or hangs, during a run: the run logs that it waits, and nothing is lost."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from anabranch.dataflows.bus import open_bus
from tests.support.crash_trial import Run, Trial
from tests.support.kafka_broker import KafkaBroker
from tests.support.run_result import check_once, check_same

EVENTS = 40_000
pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]


def waits_told(run: Run) -> int:
    """How often the run has logged that it waits, in its sink or its reader."""
    return run.said().count("waiting for the bus") + run.said().count("still waiting")


def test_a_broker_that_is_killed_and_one_that_hangs(
    kafka_broker: KafkaBroker, tmp_path: Path
) -> None:
    broker = kafka_broker
    trial = Trial(tmp_path, broker.url, batch=4, faulty=True)
    bus = open_bus(broker.url)
    known = [topic for topic in bus.topics() if topic.startswith("payments.")]
    bus.close()
    for topic in known:
        broker.delete_topic(topic)
    trial.fill(EVENTS)
    (tmp_path / "unharmed").mkdir()
    unharmed = Trial(tmp_path / "unharmed", f"sqlite:{tmp_path}/bus", faulty=True)
    unharmed.fill(EVENTS)
    unharmed.finish("state")
    with trial.start("state") as run:
        trial.wait_for_predictions(run, 500)
        broker.kill()
        run.wait_until(lambda: waits_told(run) > 0, 30)
        broker.start()
        trial.wait_for_predictions(run, 500)
        told = waits_told(run)
        broker.pause()
        time.sleep(15)  # the tested pause
        broker.resume()
        assert waits_told(run) > told
        trial.wait_for_predictions(run, 500)
        assert run.wait(120) == 0, run.said()
    check_once(trial)
    check_same(trial, "state", unharmed)
