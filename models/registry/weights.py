"""The weights of a linear model by feature, for display and comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from river import linear_model

from anabranch.models.learners.river import final_estimator

INTERCEPT = "(intercept)"
"""The name of the intercept among the weights."""

_LINEAR = (
    linear_model.LinearRegression,
    linear_model.LogisticRegression,
    linear_model.PAClassifier,
    linear_model.PARegressor,
    linear_model.Perceptron,
)


def weights(model: Any) -> dict[str, float]:
    """Weight by feature, and the `INTERCEPT`, of a linear River model or pipeline; else empty.

    After a `StandardScaler` they are those of the scaled features.

    >>> linear = linear_model.LinearRegression()
    >>> linear.learn_one({"a": 1.0}, 1.0)
    >>> weights(linear)
    {'(intercept)': 0.02, 'a': 0.02}
    """
    linear = final_estimator(model)
    if not isinstance(linear, _LINEAR) or not isinstance(linear.weights, Mapping):
        return {}
    by_feature = {str(name): float(weight) for name, weight in linear.weights.items()}
    return {INTERCEPT: float(linear.intercept)} | by_feature
