"""What goes out for the events of a batch, when several models could have answered."""

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
class Answered:
    """Which answer each event gets, and what was decided on the way.

    Attributes:
        predictions: one per event.
        models: per event, the model that served; `FALLBACK` where none could.
        versions: per event, the rows that it had learned.
        instead_of: per event, the model that was to serve and could not, or None; None: nowhere.
        decisions: with the event, or events + label, that brought each about.
        failures: predictions and lessons that failed, by model.
        ranks: of rankings, `(events,) int64`, see `Served`.
    """

    predictions: Predictions
    models: list[str]
    versions: list[int]
    instead_of: list[str | None] | None = None
    decisions: list[tuple[Decision, int]] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    ranks: NDArray[np.int64] | None = None


FALLBACK = "fallback"
"""What stands in place of a model's name where what was declared for that case was served."""


def choose(task: Task, answers: Mapping[int, Predictions], by: U8, fallback: Label) -> Predictions:
    """Of each row the answer of one model.

    Args:
        task: of the models.
        answers: by number of the model, one per row.
        by: `(rows,) uint8`: whose answer is taken; a number that is not among them: the fallback.
        fallback: a probability (BINARY), a class or a number; None: no prediction.

    >>> answers = {0: Predictions(np.array([0.1, 0.2])), 1: Predictions(np.array([0.8, 0.9]))}
    >>> choose(Task.BINARY, answers, np.array([1, 0], np.uint8), None).values
    array([0.8, 0.2])
    """
    if task is Task.MULTICLASS:
        return _choose_classes(answers, by, fallback)
    values = np.full(by.size, math.nan if fallback is None else float(fallback))  # type: ignore[arg-type]
    labels: Any = None
    if task is Task.BINARY:
        labels = np.full(by.size, NO_LABEL if fallback is None else values[:1] > 0.5, np.uint8)
    for number, predictions in answers.items():
        rows = by == number
        values[rows] = predictions.values[rows]
        if labels is not None:
            labels[rows] = predictions.binary_labels()[rows]
    return Predictions(values, labels)


def _choose_classes(answers: Mapping[int, Predictions], by: U8, fallback: Label) -> Predictions:
    nothing = ({}, None) if fallback is None else ({fallback: 1.0}, fallback)
    chosen = [
        (answers[number].values[row], answers[number].labels[row]) if number in answers else nothing
        for row, number in enumerate(by.tolist())
    ]
    return Predictions([p for p, _ in chosen], [label for _, label in chosen])


def as_scores(task: Task, predictions: Predictions) -> NDArray[np.float64]:
    """`(rows,) float64`: each answer as one number, NaN where there is none.

    The probability of True, the value, the anomaly score; of several classes, the largest
    probability.
    """
    if task is not Task.MULTICLASS:
        return predictions.values  # type: ignore[no-any-return]
    return np.array([max(p.values()) if p else math.nan for p in predictions.values], np.float64)
