"""Classifiers with defects that a rollout must detect."""

from __future__ import annotations

import math
from typing import Any

from river import base


class Raises(base.Classifier):
    """Predicts 0.5, and raises from a given prediction on."""

    def __init__(self, after: int = 50, learning: bool = False) -> None:
        self.after = after
        self.learning = learning
        self.asked = 0
        self.learned = 0

    def predict_proba_one(self, x: dict[str, float]) -> dict[bool, float]:
        if not self.learning and self.learned >= self.after:
            raise RuntimeError("no more")
        return {True: 0.5, False: 0.5}

    def learn_one(self, x: dict[str, float], y: Any) -> None:
        self.learned += 1
        if self.learning and self.learned >= self.after:
            raise ValueError("can't learn")


class BecomesNaN(base.Classifier):
    """Predicts 0.5, and NaN once it has learned so many rows."""

    def __init__(self, after: int = 50) -> None:
        self.after = after
        self.learned = 0

    def predict_proba_one(self, x: dict[str, float]) -> dict[bool, float]:
        p = math.nan if self.learned >= self.after else 0.5
        return {True: p, False: 1 - p}

    def learn_one(self, x: dict[str, float], y: Any) -> None:
        self.learned += 1


class Mistaken(base.Classifier):
    """Confident, and wrong about most of what the feature `a` tells."""

    def predict_proba_one(self, x: dict[str, float]) -> dict[bool, float]:
        p = 0.1 if x["a"] > 0 else 0.9
        return {True: p, False: 1 - p}

    def learn_one(self, x: dict[str, float], y: Any) -> None:
        pass
