"""The weights of a linear model by feature, to be told and compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from river import linear_model

from anabranch.models.learners.river import final_estimator

INTERCEPT = "(intercept)"
"""Stands among the weights for the intercept."""

_LINEAR = (
    linear_model.LinearRegression,
    linear_model.LogisticRegression,
    linear_model.PAClassifier,
    linear_model.PARegressor,
    linear_model.Perceptron,
)


def weights(model: Any) -> dict[str, float]:
    """Weight by feature, and `INTERCEPT`, of a River model that ends in a linear one; else empty.

    Behind a `StandardScaler` they are those of the scaled features.

    >>> linear = linear_model.LinearRegression()
    >>> linear.learn_one({"a": 1.0}, 1.0)
    >>> weights(linear)
    {'(intercept)': 0.02, 'a': 0.02}
    """
    linear = final_estimator(model)
    if not isinstance(linear, _LINEAR) or not isinstance(linear.weights, Mapping):
        return {}
    found = {INTERCEPT: float(linear.intercept)}
    return found | {str(name): float(weight) for name, weight in linear.weights.items()}
