"""Rollouts in a stream: the damage of bad challengers before rollback, and the cost of shadows.

How such a comparison misleads, and how that is avoided:

* A challenger that is bad from the start. These are as good as the champion until the middle of the
  stream: a copy of the champion's own model breaks there.
* Labels that arrive at once. Here they arrive 500 events later, during which a loss can't be known.
* A shadow that costs little because its model is cheap. The time of the shadow's own predictions
  and updates is measured alone, on the same rows in the same batches, and subtracted.
* A noisy machine. Costs are the best of many rounds, in which all variants take turns.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from river import linear_model, optim, preprocessing

from anabranch.models.learners.compiled import learner_for
from anabranch.models.learners.learner import Learner, Predictions, Task
from anabranch.models.prequential.batch import EventBatch, LabelBatch
from anabranch.models.prequential.model_set import PrequentialSettings
from anabranch.models.prequential.prequential import Prequential
from anabranch.models.rollout import decision as d
from anabranch.models.rollout.deployment import Deployment
from anabranch.models.rollout.policies import Canary, Guardrails, Policy, Shadow
from anabranch.models.rollout.serving import Serving
from benchmarks.payments_drift import drifted_day
from benchmarks.report import Report, Target

F64 = NDArray[np.float64]
WIDTH = 12
NAMES = tuple(f"f{i}" for i in range(WIDTH))
DELAY = 500  # events
BATCH = 1000
_SLOW_US = 300.0


def model() -> Any:
    """The model of champion and challengers: small steps, scaled features."""
    return preprocessing.StandardScaler() | linear_model.LogisticRegression(
        optimizer=optim.SGD(0.01)
    )


def learner() -> Learner:
    return learner_for(model(), NAMES, Task.BINARY)


class Breaks(Learner):
    """A good learner that changes its predictions by `how` once it has learned `after` rows."""

    def __init__(self, after: int, how: Callable[[F64], F64]) -> None:
        self._good = learner()
        self._after, self._how = after, how
        self.task, self.names, self.version = Task.BINARY, NAMES, 0

    def run(self, features: F64, op: Any, row: Any, target: Any) -> Predictions:
        learned = self.version + np.cumsum(op)[op == 0]
        predictions = self._good.run(features, op, row, target)
        self.version = self._good.version
        broken = learned >= self._after
        if broken.any():
            predictions.values[broken] = self._how(predictions.values[broken])
        return predictions


def noise(values: F64) -> F64:
    return np.random.default_rng(1).random(values.size)


def nothing(values: F64) -> F64:
    return np.full(values.size, math.nan)


def slow(values: F64) -> F64:
    time.sleep(values.size * 2 * _SLOW_US / 1e6)
    return values


def stream(events: int, seed: int = 1) -> tuple[F64, F64]:
    """Features and labels, about one in twenty true."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(events, WIDTH))
    odds = features[:, :4].sum(axis=1) - 4.5
    return features, (rng.random(events) < 1 / (1 + np.exp(-odds))).astype(np.float64)


def step(policy: Policy, **challengers: Any) -> Prequential:
    deployment = Deployment("champion", list(challengers), policy, Task.BINARY, "benchmark")
    learners = {"champion": learner(), **challengers}
    return Prequential(learners, PrequentialSettings(rollouts=Serving(deployment, Task.BINARY)))


def feed(to: Prequential, features: F64, values: F64, first: int, end: int) -> Any:
    """Run events `first` to before `end`, each followed by the label of `DELAY` events before."""
    ids = [f"e{i}" for i in range(first, end)]
    labelled = np.arange(max(first - DELAY, 0), end - DELAY) if end > DELAY else np.arange(0)
    count = end - first
    order = np.arange(count + labelled.size)
    if labelled.size:
        lead = count - labelled.size
        order[lead:] = np.stack(
            [np.arange(lead, count), np.arange(count, count + labelled.size)], axis=1
        ).ravel()[: labelled.size + count - lead]
    return to.run(
        EventBatch(
            features=features[first:end],
            times=np.arange(first, end) * 1000,
            ids=ids,
            keys=[f"user{i * 7919 % 100_003}" for i in range(first, end)],
        ),
        LabelBatch(
            ids=[f"e{i}" for i in labelled.tolist()],
            values=values[labelled],
            times=(labelled + DELAY) * 1000,
        ),
        order=order,
    ).served


def bad_challenger(name: str, how: Callable[[F64], F64], events: int) -> dict[str, Any]:
    """One challenger that breaks in the middle of its first step, at 1 % of the keys."""
    features, values = stream(events)
    guardrails = Guardrails(latency_us=_SLOW_US / 2) if name == "becomes slow" else Guardrails()
    policy = Canary(
        steps=(0.01, 0.5, 1.0), min_duration="10d", guardrails=guardrails, min_effect=0.0
    )
    breaks = events // 2
    to = step(policy, bad=Breaks(breaks - DELAY, how))
    served = before = 0
    ended: int | None = None
    for first in range(0, events, BATCH):
        out = feed(to, features, values, first, min(first + BATCH, events))
        by = np.array(out.models) == "bad"
        served += int(by.sum())
        before += int(by[: max(breaks - first, 0)].sum())
        for decision, row in out.decisions:
            if decision.action == d.ROLLED_BACK:
                count = min(first + BATCH, events) - first
                event = row if row < count else row - count + max(first - DELAY, 0) - first + DELAY
                ended = first + event
                reason = decision.reason
    if ended is None:
        return {
            "challenger": name, "events until rolled back": math.nan, "bad predictions served": 1.0
        }  # fmt: skip
    bad = served - before
    return {
        "challenger": name,
        "events until rolled back": ended - breaks + 1,
        "bad predictions served": bad,
        "share of all traffic": bad / events,
        "reason": reason,
    }


def cost(events: int, rounds: int) -> list[dict[str, Any]]:
    """Microseconds per event (and its label) of each further shadow, without its own work."""
    features, values = stream(events)
    alone = [math.inf, math.inf, math.inf]
    own = math.inf
    shadows = (0, 1, 4)
    for _ in range(rounds):
        for place, count in enumerate(shadows):
            policy = Shadow(report_every=10**9, guardrails=Guardrails(loss_ratio=1e9), alpha=1e-6)
            to = step(policy, **{f"s{i}": learner() for i in range(count)})
            for first in range(0, 4 * BATCH, BATCH):
                feed(to, features, values, first, first + BATCH)
            gc.collect()
            for first in range(4 * BATCH, events - BATCH + 1, BATCH):
                began = time.perf_counter()
                feed(to, features, values, first, first + BATCH)
                alone[place] = min(alone[place], time.perf_counter() - began)
        mine = learner()
        op = np.tile(np.array([0, 1], np.uint8), BATCH)
        rows = np.arange(BATCH).repeat(2)
        target = values[:BATCH].repeat(2)
        for _ in range(20):
            began = time.perf_counter()
            mine.run(features[:BATCH], op, rows, target)
            own = min(own, time.perf_counter() - began)
    us = [1e6 * seconds / BATCH for seconds in alone]
    more = (us[2] - us[1]) / 3
    return [
        {"models": "champion alone", "us per event": us[0]},
        {"models": "with one shadow", "us per event": us[1]},
        {"models": "with four shadows", "us per event": us[2]},
        {"models": "each further shadow", "us per event": more},
        {"models": "of that, its own predictions and updates", "us per event": 1e6 * own / BATCH},
        {"models": "of that, rollouts", "us per event": more - 1e6 * own / BATCH},
    ]


def run(quick: bool) -> Report:
    """Bad challengers, drift of the champion, and the cost of shadows."""
    events = 20_000 if quick else 100_000
    rows = [
        bad_challenger("becomes noise", noise, events),
        bad_challenger("becomes NaN", nothing, events),
        bad_challenger("becomes slow", slow, events),
    ]
    days = [drifted_day(seed, 60_000) for seed in ((5,) if quick else (5, 6, 7, 8))]
    alone, adapting, oracle = (
        sum(day[who] for day in days) for who in ("brier alone", "with on_drift", "oracle")
    )
    costs = cost(12_000, 2 if quick else 6)
    worst = max(row["share of all traffic"] for row in rows)
    until = rows[1]["events until rolled back"]
    beside = costs[-1]["us per event"]
    targets = [
        Target("bad challenger at 1 %: share of all traffic with a bad prediction", worst, 0.002),
        Target("becomes NaN: events until it is rolled back", until, 1),
        Target(
            "fraud moves: served loss of the next day, on_drift / champion alone",
            adapting / alone,
            1.0,
        ),
        Target("each further shadow without its own work, us per event", beside, 0.5),
    ]
    notes = [
        f"labels come {DELAY} events late, in batches of {BATCH:,}, {events:,} events, and the "
        "challenger breaks in the middle; in the first step of a canary it serves 1 % of the keys",
        "of the loss of a champion alone above an oracle's, on the day after fraud has moved, "
        f"on_drift saves {(alone - adapting) / (alone - oracle):.0%}: frauds are rare, so it takes "
        "hours to signal the drift and to show that the new model is better",
        "a challenger that predicts NaN, or raises, never serves that: the champion serves instead",
    ]
    return Report("rollouts", [*rows, *days, *costs], targets, notes)
