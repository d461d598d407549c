"""The kernels of the common metrics; the arithmetic is River's, operation by operation.

They take arrays, six at most: a `NamedTuple` as an argument would take the dispatcher 0.65 µs a
call, more than the update of ten rows.
"""

from __future__ import annotations

import math

import numpy as np

from anabranch.state.compile import F64, I64, U8, kernel


@kernel
def _include(loss: float, state: F64) -> None:
    """`river.stats.Mean.update`; `state` is count, mean."""
    state[0] += 1.0
    state[1] += np.divide(1.0, state[0]) * (loss - state[1])


@kernel
def update_log_loss(y_true: F64, probability: F64, state: F64) -> None:
    """`river.metrics.LogLoss`: probabilities are clipped to [1e-15, 1 - 1e-15]."""
    for i in range(probability.size):
        p = probability[i]
        if p == p:
            p = max(min(p, 1 - 1e-15), 1e-15)
            _include(-math.log(p) if y_true[i] == 1.0 else -math.log(1 - p), state)


@kernel
def update_absolute(y_true: F64, predicted: F64, state: F64) -> None:
    """`river.metrics.MAE`."""
    for i in range(predicted.size):
        if predicted[i] == predicted[i]:
            _include(abs(y_true[i] - predicted[i]), state)


@kernel
def update_squared(y_true: F64, predicted: F64, state: F64) -> None:
    """`river.metrics.MSE`; `state[2]` is 2.0.

    The exponent is read from memory so that the compiler can't turn the power into a product: River
    calls the C library's `pow`, whose last bit may differ.
    """
    for i in range(predicted.size):
        if predicted[i] == predicted[i]:
            _include((y_true[i] - predicted[i]) ** state[2], state)


@kernel
def update_confusion(y_true: F64, probability: F64, labels: U8, counts: F64) -> None:
    """Count into `counts[truth, prediction]`; an empty `labels` means `probability > 0.5`."""
    for i in range(probability.size):
        truth = int(y_true[i] == 1.0)
        if labels.size > 0:
            if labels[i] <= 1:
                counts[truth, labels[i]] += 1.0
        elif probability[i] == probability[i]:
            counts[truth, int(probability[i] > 0.5)] += 1.0


@kernel
def update_thresholds(y_true: F64, score: F64, thresholds: F64, counts: F64, truths: F64) -> None:
    """`river.metrics.ROCAUC`: `counts` is (thresholds, 2), true and false positives."""
    for i in range(score.size):
        if score[i] == score[i] and y_true[i] == y_true[i]:
            column = 0 if y_true[i] == 1.0 else 1
            truths[column] += 1.0
            for t in range(thresholds.size):
                if score[i] > thresholds[t]:
                    counts[t, column] += 1.0


@kernel
def update_log_loss_by(y_true: F64, probability: F64, group: U8, states: F64) -> None:
    """`update_log_loss` by group: row i updates `states[group[i]]`; others are skipped."""
    for i in range(group.size):
        if group[i] < len(states):
            update_log_loss(y_true[i : i + 1], probability[i : i + 1], states[group[i]])


@kernel
def update_absolute_by(y_true: F64, predicted: F64, group: U8, states: F64) -> None:
    """`update_absolute` by group, see `update_log_loss_by`."""
    for i in range(group.size):
        if group[i] < len(states):
            update_absolute(y_true[i : i + 1], predicted[i : i + 1], states[group[i]])


@kernel
def update_squared_by(y_true: F64, predicted: F64, group: U8, states: F64) -> None:
    """`update_squared` by group, see `update_log_loss_by`."""
    for i in range(group.size):
        if group[i] < len(states):
            update_squared(y_true[i : i + 1], predicted[i : i + 1], states[group[i]])


@kernel
def update_confusion_by(y_true: F64, probability: F64, labels: U8, group: U8, counts: F64) -> None:
    """`update_confusion` by group, see `update_log_loss_by`."""
    for i in range(group.size):
        if group[i] < len(counts):
            one = slice(i, i + 1)
            update_confusion(y_true[one], probability[one], labels[one], counts[group[i]])


@kernel
def update_thresholds_by(
    y_true: F64, score: F64, thresholds: F64, group: U8, counts: F64, truths: F64
) -> None:
    """`update_thresholds` by group, see `update_log_loss_by`."""
    for i in range(group.size):
        if group[i] < len(counts):
            at, one = group[i], slice(i, i + 1)
            update_thresholds(y_true[one], score[one], thresholds, counts[at], truths[at])


@kernel
def count_by(group: U8, counts: I64) -> None:
    """Count the rows of each group into `counts`; groups beyond it are skipped."""
    for i in range(group.size):
        if group[i] < len(counts):
            counts[group[i]] += 1
