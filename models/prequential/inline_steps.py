"""A batch whose targets come with the events: each is predicted, then learned."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from anabranch.models.learners.checkpoint import Checkpoint
from anabranch.models.learners.learner import LEARN, PREDICT, Predictions, Targets, Task
from anabranch.models.learners.targets import every_usable, select, usable
from anabranch.models.prequential.outcome import NO_VALUE
from anabranch.models.rollout.serving import Timings

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

Steps = tuple[NDArray[np.uint8], I64, Targets]
"""Operations, rows and targets, as `Learner.run` takes them."""


def inline_steps(values: Targets, task: Task) -> tuple[Steps, I64, list[tuple[int, str]]]:
    """Steps; which events are learned, and which can't be, each with the reason.

    An anomaly detector learns every event.

    >>> (op, row, _), taught, refused = inline_steps(np.array([1.0, np.nan]), Task.REGRESSION)
    >>> op, row, taught, refused
    (array([0, 1, 0], dtype=uint8), array([0, 0, 1]), array([0]), [(1, 'the label has no usable \
value')])
    """
    events = len(values)
    row = np.repeat(np.arange(events), 2)
    op = np.tile(np.array([PREDICT, LEARN], np.uint8), events)
    target: Targets
    if isinstance(values, np.ndarray):
        target = np.empty(2 * events)
        target[1::2] = values
    else:
        target = [value for value in values for _ in (PREDICT, LEARN)]
    if task is Task.ANOMALY or every_usable(values, task):
        return (op, row, target), row[::2], []
    learnable = usable(values, task)
    keep = np.ones(2 * events, np.bool_)
    keep[1::2] = learnable
    refused = [(event, NO_VALUE) for event in np.flatnonzero(learnable == 0).tolist()]
    target = select(target, np.flatnonzero(keep))
    return (op[keep], row[keep], target), np.flatnonzero(learnable), refused


def run_each(
    kept: Mapping[str, Checkpoint], features: F64, values: Targets, spent: Timings | None
) -> dict[str, Predictions] | None:
    """What all models answer, where all can learn row by row and every target is usable."""
    served: dict[str, Predictions] = {}
    if any(each.run_each is None for each in kept.values()):
        return None
    for name, each in kept.items():
        answers = None if each.run_each is None else each.run_each(features, values)
        if answers is None:
            return None  # the first says so, or none: the targets are the same
        served[name] = answers
        if spent is not None:
            spent.record(name, each.learner)
    return served
