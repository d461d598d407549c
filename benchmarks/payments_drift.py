"""Fraud moves to other merchants: what is served over the following day, with and without rollouts.

Everything runs as it would live: the payments pipeline with one column per merchant bucket, on
simulated traffic with verdicts that come twenty minutes later. Its model learns with AdaGrad, whose
steps have become small by the time of the drift: it goes stale.

* *alone*: nothing else.
* *on_drift*: a fresh model of the same kind starts when the loss is signalled to have grown.
* *oracle*: it has lived in the changed world from the first event on, for as long as the others in
  the old one, and is judged on the same day of it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from river import linear_model, optim, preprocessing

from anabranch import Canary, Challenger, hashed, monitor
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.pipelines.payments import pipeline as payments
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.producers.publish import publish
from anabranch.producers.simulators.by_name import simulate

DAY = 86_400  # payments: one per second


def model() -> Any:
    """Learns less and less from each label."""
    return preprocessing.StandardScaler() | linear_model.LogisticRegression(
        optimizer=optim.AdaGrad(0.02)
    )


def pipeline(on_drift: bool) -> Pipeline:
    """The payments, with the merchant itself among the features."""
    declared = replace(
        payments,
        features=[*payments.features, hashed("merchant", buckets=512)],
        model=model(),
        monitors=[monitor("loss", loss="brier", delta=0.01)],
    )
    if not on_drift:
        return declared
    return replace(
        declared,
        on_drift=Challenger(model=model(), warmup_rows=2000, burn_in=1000),
        rollout=Canary(alpha=0.05),
    )


@dataclass(frozen=True, slots=True)
class Served:
    """The mean Brier score of what was served on the last day, and when a fresh model led."""

    loss: float
    led_after: float


def served(declared: Pipeline, seed: int, drift_at: int, events: int) -> Served:
    """Run the pipeline on simulated payments, of which the last day is judged by the truth."""
    bus = MemoryBus()
    bus.create_topics(dict.fromkeys(declared.inputs, 1))
    messages = list(simulate("payments", seed=seed, events=events, drift_at=drift_at))
    publish(bus, messages, topics={"events": "payments.events", "labels": "payments.labels"})
    run_worker(declared, bus, SourceOptions(limit=1000, until_end=True))
    truth = {
        verdict["id"]: verdict["fraud"]
        for verdict in map(json.loads, bus.values(declared.topics.labels))
    }
    day = list(map(json.loads, bus.values(declared.topics.predictions)))[-DAY:]
    judged = [(each["score"], truth[each["id"]]) for each in day if each["id"] in truth]
    scores, fraud = np.array(judged, np.float64).T
    led_after = np.nan
    if declared.rollout is not None:
        fresh = [number for number, each in enumerate(day) if each["model"].startswith("fresh")]
        led_after = float(fresh[0]) if fresh else np.nan
    return Served(float(np.square(scores - fraud).mean()), led_after)


def drifted_day(seed: int, before: int) -> dict[str, Any]:
    """One world: all three, on the day that follows ``before`` payments."""
    events = before + DAY
    alone = served(pipeline(False), seed, before, events)
    adapting = served(pipeline(True), seed, before, events)
    oracle = served(pipeline(False), seed, 0, events)
    return {
        "seed": seed,
        "brier alone": alone.loss,
        "with on_drift": adapting.loss,
        "oracle": oracle.loss,
        "gap closed": (alone.loss - adapting.loss) / (alone.loss - oracle.loss),
        "payments until it led": adapting.led_after,
    }
