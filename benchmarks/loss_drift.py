"""Drift detectors on the loss, on River streams with and without a known concept drift.

In most of them the distribution of the features does not change, only the concept, which no
distribution monitor can detect. The model keeps learning, so that a detector sees the loss it would
have in production.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from river import linear_model, preprocessing
from river.datasets import synth

from anabranch.models.drift.detectors import DriftMonitor, monitor
from anabranch.models.learners.compiled import learner_for
from anabranch.models.learners.learner import LEARN, PREDICT, Task

F64 = NDArray[np.float64]
DETECTORS = ("ADWIN", "PageHinkley", "KSWIN", "DDM", "EDDM", "HDDM_A", "HDDM_W")
EVERY_MS = 1000


@dataclass(frozen=True, slots=True)
class Losses:
    """0/1 losses of a model on a stream; the concept changes at `at`; None: nowhere."""

    name: str
    values: F64
    at: int | None


def streams(rows: int, seed: int) -> list[Losses]:
    """Of each kind one; those that change do so at half."""
    half = rows // 2

    def sea(variant: int) -> Any:
        return synth.SEA(variant=variant, noise=0.1, seed=seed)

    def agrawal(function: int) -> Any:
        return synth.Agrawal(classification_function=function, seed=seed)

    def changing(first: Any, second: Any, width: int) -> Iterable[Any]:
        return synth.ConceptDriftStream(first, second, seed=seed, position=half, width=width)  # type: ignore[no-untyped-call]

    rng = np.random.default_rng(seed)
    day = 0.15 + 0.1 * np.sin(np.arange(rows) * 2 * np.pi / 10_000)
    return [
        Losses("SEA, abrupt", _losses(changing(sea(0), sea(3), half // 150), rows), half),
        Losses("SEA, gradual", _losses(changing(sea(0), sea(3), rows // 20), rows), half),
        Losses(
            "Agrawal, abrupt", _losses(changing(agrawal(0), agrawal(2), half // 150), rows), half
        ),
        Losses(
            "mixed, abrupt",
            _losses(changing(_mixed(seed, 0), _mixed(seed, 1), half // 150), rows),
            half,
        ),
        Losses("SEA, steady", _losses(sea(0), rows), None),
        Losses("Agrawal, steady", _losses(agrawal(0), rows), None),
        Losses("mixed, steady", _losses(_mixed(seed, 0), rows), None),
        Losses("a rate with a day's rhythm", (rng.random(rows) < day).astype(np.float64), None),
    ]


def _mixed(seed: int, function: int) -> Any:
    return synth.Mixed(classification_function=function, seed=seed, balance_classes=False)


def _losses(stream: Iterable[Any], rows: int) -> F64:
    """Losses of the shipped model, which predicts each row before it learns it."""
    pairs = list(itertools.islice(stream, rows))
    names = [name for name, value in pairs[0][0].items() if not isinstance(value, str)]
    features = np.array([[float(x[name]) for name in names] for x, _ in pairs])
    target = np.array([float(y) for _, y in pairs])
    model = preprocessing.StandardScaler() | linear_model.LogisticRegression()
    learner = learner_for(model, tuple(map(str, names)), Task.BINARY)
    row = np.repeat(np.arange(rows), 2)
    op = np.tile(np.array([PREDICT, LEARN], np.uint8), rows)
    answers = learner.run(features, op, row, target[row])
    losses: F64 = (answers.binary_labels() != target).astype(np.float64)
    return losses


def table(rows: int, seeds: int) -> list[dict[str, Any]]:
    """A row per detector, with its default settings and a cool-down of an hour."""
    worlds = [each for seed in range(seeds) for each in streams(rows, seed)]
    return [_judge(detector, worlds) for detector in DETECTORS]


def _judge(detector: str, worlds: list[Losses]) -> dict[str, Any]:
    delays: list[float] = []
    false_alarms = by_rhythm = total = missed = 0
    seconds = 0.0
    for world in worlds:
        watch = DriftMonitor(monitor("loss", detector))
        began = time.perf_counter()
        alarms = watch.update_many(world.values, np.arange(len(world.values)) * EVERY_MS)
        seconds += time.perf_counter() - began
        total += len(world.values)
        # While a model learns its first thousand rows its loss falls, which is no false alarm.
        rising = [alarm.row for alarm in alarms if alarm.increased and alarm.row > 1000]
        hits = [row for row in rising if world.at is not None and row >= world.at]
        if "rhythm" in world.name:
            by_rhythm += len(rising)
        else:
            false_alarms += len(rising) - len(hits)
        if world.at is not None:
            missed += not hits
            delays += [float(hits[0] - world.at)] if hits else []
    changes = sum(world.at is not None for world in worlds)
    return {
        "on the loss": detector,
        "detected": f"{changes - missed} of {changes}",
        "median delay, labels": float(np.median(delays)) if delays else float("nan"),
        "false alarms per million labels": false_alarms / total * 1e6,
        "by a day's rhythm": by_rhythm,
        "us per label": seconds / total * 1e6,
    }
