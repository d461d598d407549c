"""A synthetic stream for a deployment: events, delayed labels, and each model's predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.models.rollout.decision import Decision
from anabranch.models.rollout.deployment import Deployment
from anabranch.models.rollout.observations import RolloutRows
from anabranch.models.rollout.traffic import key_hashes

F64 = NDArray[np.float64]
Answer = Callable[[F64, NDArray[np.float64], np.random.Generator], F64]
"""True probabilities and outcomes to what a model answers."""


def calibrated(p: F64, y: F64, rng: np.random.Generator) -> F64:
    return p.copy()


def noisy(by: float) -> Answer:
    """Predictions that are off by so much in log odds, on average."""

    def answer(p: F64, y: F64, rng: np.random.Generator) -> F64:
        odds = np.log(p / (1 - p)) + by * rng.standard_normal(p.size)
        found: F64 = 1 / (1 + np.exp(-odds))
        return found

    return answer


def noise(p: F64, y: F64, rng: np.random.Generator) -> F64:
    return rng.random(p.size)


@dataclass
class Stream:
    """Event `i` arrives at about step `2 i`, its label `delay` events later; one per second."""

    events: int
    models: Mapping[str, Answer]
    delay: int = 50
    keys: int = 500
    seed: int = 1
    raised: Mapping[str, list[int]] = field(default_factory=dict)  # events at which it raises
    nan_from: Mapping[str, int] = field(default_factory=dict)  # events

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        n = self.events
        self.key = [f"user-{k}" for k in rng.integers(0, self.keys, n).tolist()]
        p = 1 / (1 + np.exp(-(rng.standard_normal(n) * 1.5 - 2.0)))
        y = (rng.random(n) < p).astype(np.float64)
        self.scores = {
            name: answer(p, y, np.random.default_rng([self.seed, i]))
            for i, (name, answer) in enumerate(self.models.items())
        }
        for name, first in self.nan_from.items():
            self.scores[name][first:] = np.nan
        for name, where in self.raised.items():
            self.scores[name][where] = np.nan
        self.losses = {name: (scores - y) ** 2 for name, scores in self.scores.items()}
        # Steps: events, and labels of events long ago, one after the other.
        kinds = [(i, 0) for i in range(n)] + [(i + self.delay, 1) for i in range(n)]
        order = sorted(range(2 * n), key=lambda j: (kinds[j], j))
        self.steps = [(j % n, j >= n) for j in order if kinds[j][0] < n]
        self.hashes = key_hashes(self.key)
        self.arms = np.full(n, 255, np.uint8)

    def rows(self, first: int, end: int) -> RolloutRows:
        """The steps from `first` to before `end`, counted from `first`."""
        part = list(enumerate(self.steps[first:end]))
        events = [(at, event) for at, (event, is_label) in part if not is_label]
        labels = [(at, event) for at, (event, is_label) in part if is_label]
        e = np.array([event for _, event in events], np.int64)
        n = np.array([event for _, event in labels], np.int64)
        event_steps = np.array([at for at, _ in events], np.int64)
        raised = {name: event_steps[np.isin(e, self.raised.get(name, []))] for name in self.models}
        return RolloutRows(
            steps=len(part),
            event_steps=event_steps,
            event_times=1000 * e,
            event_rows=e,
            key_hashes=self.hashes[e],
            label_steps=np.array([at for at, _ in labels], np.int64),
            label_times=1000 * (n + self.delay),
            label_rows=n,
            arms=self.arms,
            scores={name: scores[e] for name, scores in self.scores.items()},
            abstained={name: np.isnan(scores[e]) for name, scores in self.scores.items()},
            raised=raised,
            losses={name: losses[n] for name, losses in self.losses.items()},
            label_scores={name: scores[n] for name, scores in self.scores.items()},
        )


@dataclass
class Run:
    """The result of a stream: assigned and serving model of each event, and all decisions.

    A decision's step is counted from the start.
    """

    assigned: list[str]
    served_by: list[str]
    decisions: list[Decision]
    actions: list[tuple[str, str, int]]
    champions: list[str]


def play(stream: Stream, deployment: Deployment, cuts: list[int] | None = None) -> Run:
    """Serve the whole stream in batches that end at `cuts`."""
    ends = sorted({*(cuts or []), len(stream.steps)})
    names: dict[int, str] = {255: "fallback"}
    run = Run([], [], [], [], [])
    first = 0
    for end in ends:
        if end <= first:
            continue
        names |= {number: name for name, number in deployment.arm_ids.items()}
        rows = stream.rows(first, end)
        served = deployment.serve(rows, 1000 * stream.steps[first][0])
        run.assigned += [names[arm] for arm in served.assigned.tolist()]
        run.served_by += [names[arm] for arm in served.served_by.tolist()]
        run.champions += [names[arm] for arm in served.champions.tolist()]
        for decision in served.decisions:
            run.decisions.append(decision)
            run.actions.append((decision.action, decision.challenger, first + decision.step))
        first = end
    return run


def told(run: Run) -> list[Any]:
    """The decisions without their steps, which count from the start of a batch."""
    return [
        (each.action, each.challenger, each.champion, each.share, each.time, repr(each.evidence),
         repr(sorted(each.guardrails.items())), each.reason, each.rollout)
        for each in run.decisions
    ]  # fmt: skip
