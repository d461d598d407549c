"""The predictions that are published for the events of a batch, when several models predicted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.models.learners.learner import NO_LABEL, Label, Predictions, Task
from anabranch.models.rollout.decision import Decision

U8 = NDArray[np.uint8]


@dataclass(slots=True)
class ServedPredictions:
    """Which prediction is published for each event, and what was decided on the way.

    Attributes:
        predictions: one per event.
        models: per event, the model that served; `FALLBACK` where none could.
        versions: per event, the rows that this model had learned.
        instead_of: per event, the model that was to serve and could not, or None; None: nowhere.
        decisions: with the event, or events + label, that caused each.
        failures: predictions and updates that failed, by model.
        ranks: of rankings, `(events,) int64`, see `Assignments`.
        champions: `(labels,) uint8`, the arm id of the champion at each label; names by arm id.
    """

    predictions: Predictions
    models: list[str]
    versions: list[int]
    instead_of: list[str | None] | None = None
    decisions: list[tuple[Decision, int]] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    ranks: NDArray[np.int64] | None = None
    champions: tuple[U8, Mapping[int, str]] | None = None


FALLBACK = "fallback"
"""In place of a model's name where the declared fallback was served."""


def is_unserved(event: int, failed: str, champion: str, served: ServedPredictions | None) -> bool:
    """Whether no model serves an event because this one could not predict it.

    Without rollouts (`served` is None) the champion alone serves.
    """
    if served is None:
        return failed == champion
    return served.models[event] == FALLBACK


def choose(
    task: Task, predictions: Mapping[int, Predictions], served_by: U8, fallback: Label
) -> Predictions:
    """For each row the prediction of one model.

    Args:
        task: of the models.
        predictions: by arm id, one per row.
        served_by: `(rows,) uint8`: arm id of the model that is taken; of no model here: the
            fallback.
        fallback: a probability (BINARY), a class or a number; None: no prediction.

    >>> both = {0: Predictions(np.array([0.1, 0.2])), 1: Predictions(np.array([0.8, 0.9]))}
    >>> choose(Task.BINARY, both, np.array([1, 0], np.uint8), None).values
    array([0.8, 0.2])
    """
    if task is Task.MULTICLASS:
        return _choose_classes(predictions, served_by, fallback)
    values = np.full(served_by.size, math.nan if fallback is None else float(fallback))  # type: ignore[arg-type]
    labels: Any = None
    if task is Task.BINARY:
        label = NO_LABEL if fallback is None else values[:1] > 0.5
        labels = np.full(served_by.size, label, np.uint8)
    for arm_id, of_model in predictions.items():
        rows = served_by == arm_id
        values[rows] = of_model.values[rows]
        if labels is not None:
            labels[rows] = of_model.binary_labels()[rows]
    return Predictions(values, labels)


def _choose_classes(
    predictions: Mapping[int, Predictions], served_by: U8, fallback: Label
) -> Predictions:
    default = ({}, None) if fallback is None else ({fallback: 1.0}, fallback)
    chosen = [
        (predictions[arm_id].values[row], predictions[arm_id].labels[row])
        if arm_id in predictions
        else default
        for row, arm_id in enumerate(served_by.tolist())
    ]
    return Predictions([p for p, _ in chosen], [label for _, label in chosen])


def as_scores(task: Task, predictions: Predictions) -> NDArray[np.float64]:
    """`(rows,) float64`: each prediction as one number, NaN where there is none.

    The probability of True, the value, the anomaly score; of several classes, the largest
    probability.
    """
    if task is not Task.MULTICLASS:
        return predictions.values  # type: ignore[no-any-return]
    return np.array([max(p.values()) if p else math.nan for p in predictions.values], np.float64)
