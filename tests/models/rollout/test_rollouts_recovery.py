"""Killed in the middle of a ramp, a run decides what it would have decided."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from anabranch.dataflows.bus import TopicPartition, open_bus
from tests.support.crash_trial import Trial
from tests.support.run_result import check_once, check_same, messages

EVENTS = 20_000
ROLLOUTS = str(Path(__file__).parents[2] / "soak" / "payments_with_rollouts.py")


def filled(directory: Path) -> Trial:
    """A backlog, in whose middle somebody has said something."""
    trial = Trial(directory, f"sqlite:{directory}/bus", ROLLOUTS, faulty=True)
    trial.fill(EVENTS)
    bus = open_bus(trial.url)
    reader = bus.reader({TopicPartition("payments.events", 0): EVENTS // 2})
    (piece, *_) = reader.poll(1, 5.0)
    reader.close()
    publisher = bus.publisher()
    said = [
        {"kind": "set_traffic", "challenger": "unknown", "share": 0.5, "id": "1"},
        {"kind": "add", "challenger": "x", "model": "none@1", "id": "2"},
    ]
    publisher.append(
        "payments.control", [json.dumps(each).encode() for each in said],
        partitions=0, times=[int(piece.times[0])] * 2,
    )  # fmt: skip
    publisher.close()
    bus.close()
    return trial


@pytest.fixture(scope="module")
def unharmed(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    trial = filled(tmp_path_factory.mktemp("unharmed"))
    trial.finish("state")
    return trial


def decisions(trial: Trial) -> list[dict[str, Any]]:
    return [json.loads(value) for rows in messages(trial, "payments.rollouts") for value in rows]


def test_the_backlog_holds_a_fall_a_climb_and_responses(unharmed: Trial) -> None:
    decided = [(each["action"], each["challenger"]) for each in decisions(unharmed)]
    assert [pair for pair in decided if pair[0] != "progress"] == [
        ("started", "faster"), ("stepped", "faster"), ("stepped", "faster"),
        ("promoted", "faster"), ("started", "bayes"), ("started", "fresh-1"),
        ("rolled_back", "bayes"), ("rolled_back", "fresh-1"),
        ("started", "fresh-2"), ("rolled_back", "fresh-2"),
        ("rejected", "unknown"), ("rejected", "x"),
        ("started", "fresh-3"), ("rolled_back", "fresh-3"),
        ("started", "fresh-4"), ("rolled_back", "fresh-4"),
    ]  # fmt: skip


@pytest.mark.slow
def test_killed_again_and_again_it_decides_the_same(unharmed: Trial, tmp_path: Path) -> None:
    trial = filled(tmp_path)
    trial.kill_until("state", kills=4)
    trial.finish("state")
    check_once(trial)
    check_same(trial, "state", unharmed)
    assert decisions(trial) == decisions(unharmed)
    served = Counter(
        json.loads(value)["model"]
        for rows in messages(trial, "payments.predictions")
        for value in rows
    )
    assert served["faster"] > 1000 < served["LogisticRegression"]
