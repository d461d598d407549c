"""A pipeline that resumes after a week gives the results of one that never stopped."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from anabranch.dataflows.bus import open_bus
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.pipelines.loader import load_pipeline
from anabranch.dataflows.recovery.state_directory import StateDirectory
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics
from anabranch.producers.simulators.faults import Faults
from anabranch.producers.simulators.payments import simulate_payments
from tests.support.history import WORLD, Message, messages_of, publish, values

DAY_MS = 86_400_000
PREDICTIONS, DEAD = "payments.predictions", "payments.dead-letters"
FAULTS = Faults(malformed=0.01, duplicates=0.02, out_of_order=0.05)
SLOW = replace(WORLD, rate=0.0015, verdict_median_s=20_000.0, unlabelled=0.2)


@pytest.fixture(scope="module")
def messages() -> list[Message]:
    """Some three weeks of payments and verdicts, in the order of their publishing."""
    batches = simulate_payments(events=2500, seed=8, settings=SLOW, faults=FAULTS)
    found = [message for batch in batches for message in messages_of(batch)]
    found.sort(key=lambda message: message.time)
    assert found[-1].time - found[0].time > 16 * DAY_MS
    return found


def payments(**rules: Any) -> Pipeline:
    found = copy.copy(load_pipeline("payments"))
    found.label = replace(found.label, **rules)
    return found


def run_pieces(
    path: Path, pipeline: Pipeline, pieces: Sequence[Sequence[Message]]
) -> tuple[list[Any], list[Any], dict[str, float]]:
    """Publish a piece, run until all of it is worked through, and so on, with one state."""
    url = f"sqlite:{path / 'bus'}"
    quality: dict[str, float] = {}
    for piece in pieces:
        publish(url, piece)
        registry = CollectorRegistry()
        telling = WorkerMetrics(pipeline.name, registry)
        bus = open_bus(url)
        try:
            with StateDirectory.open(path / "state", pipeline, bus) as opened:
                options = SourceOptions(until_end=True, limit=200)
                run_worker(pipeline, bus, options, state=opened, metrics=telling)
        finally:
            bus.close()
        quality = {
            sample.labels["metric"]: sample.value
            for family in registry.collect()
            for sample in family.samples
            if sample.name == "anabranch_model_quality"
        }
    predictions = [json.loads(value) for value in values(url, PREDICTIONS)]
    return predictions, [json.loads(value) for value in values(url, DEAD)], quality


def cut(messages: list[Message], *moments: float) -> list[list[Message]]:
    """Pieces by the time of publishing, in days from the first message."""
    times = np.array([message.time for message in messages])
    bounds = np.searchsorted(times, times[0] + np.array(moments) * DAY_MS, side="right").tolist()
    return [
        messages[low:high] for low, high in zip([0, *bounds], [*bounds, len(messages)], strict=True)
    ]


@pytest.mark.parametrize(
    "rules",
    [
        {"timeout": "2d"},
        {"timeout": "12h", "default": False, "late": "update", "update_within": "3d"},
    ],
    ids=["dropped", "assumed and corrected"],
)
def test_after_a_week_it_resumes_as_if_it_had_never_stopped(
    tmp_path: Path, messages: list[Message], rules: dict[str, Any]
) -> None:
    """One worked through every half day's messages at once; the other was stopped for a week."""
    pipeline = payments(**rules)
    live = run_pieces(tmp_path / "live", pipeline, cut(messages, *np.arange(0.5, 16, 0.5)))
    stopped = run_pieces(tmp_path / "stopped", pipeline, cut(messages, 4, 11))
    assert stopped[0] == live[0]
    assert stopped[1] == live[1]
    assert stopped[2] == live[2]
    assert len(live[0]) > 2400
    assert live[0][-1]["version"] > 1500
    reasons = {letter["reason"] for letter in live[1]}
    late = "label after timeout"
    assert (late in reasons) == ("default" not in rules)
