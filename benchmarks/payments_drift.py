"""Fraud moves to other merchants: the served loss on the following day, with and without rollouts.

Everything runs as in production: the payments pipeline with one column per merchant bucket, on
simulated traffic with labels that arrive twenty minutes later. Its model learns with AdaGrad, whose
steps have become small by the time of the drift, so that it adapts slowly.

* *alone*: the champion only.
* *on_drift*: a new model of the same kind is started when the loss is signalled to have increased.
* *oracle*: a model trained on the changed distribution from the first event on, for as long as the
  others on the old one, and evaluated on the same day.
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
    """A model whose learning rate decreases with every label."""
    return preprocessing.StandardScaler() | linear_model.LogisticRegression(
        optimizer=optim.AdaGrad(0.02)
    )


def pipeline(on_drift: bool) -> Pipeline:
    """The payments pipeline, with the merchant itself among the features."""
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
    """The mean Brier score served on the last day, and when a new model became champion."""

    loss: float
    led_after: float


def served(declared: Pipeline, seed: int, drift_at: int, events: int) -> Served:
    """Run the pipeline on simulated payments; the last day is evaluated with the true labels."""
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
        "payments until it was champion": adapting.led_after,
    }
