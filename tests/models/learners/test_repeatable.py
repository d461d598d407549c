"""A run is repeatable in another process, where Python hashes texts otherwise."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from river import forest, naive_bayes, neighbors, preprocessing, tree

from anabranch.models.learners.learner import Task
from anabranch.models.learners.river import RiverLearner

MODELS: dict[str, Callable[[], Any]] = {
    "KNN": lambda: neighbors.KNNClassifier(n_neighbors=4),
    "KNN by softmax": lambda: neighbors.KNNClassifier(n_neighbors=4, weighted=False, softmax=True),
    "scaled KNN": lambda: preprocessing.StandardScaler() | neighbors.KNNClassifier(n_neighbors=4),
    "AMF": lambda: forest.AMFClassifier(n_estimators=2, seed=1),
    "NB": naive_bayes.GaussianNB,
    "tree": lambda: tree.HoeffdingTreeClassifier(grace_period=20),
}
CLASSES = ("red", "green", "blue", "black")


def predictions(name: str) -> str:
    chance = random.Random(1)
    rows = np.array([[chance.randrange(3), chance.randrange(3)] for _ in range(150)], float)
    labels = [chance.choice(CLASSES) for _ in rows]
    learner = RiverLearner(MODELS[name](), ("a", "b"), Task.MULTICLASS)
    row = np.repeat(np.arange(len(rows)), 2)
    op = np.tile(np.array([0, 1], np.uint8), len(rows))
    found = learner.run(rows, op, row, [labels[at] for at in row.tolist()])
    return repr(list(zip(found.labels, map(list, map(dict.items, found.values)), strict=True)))


def test_predictions_of_text_classes_do_not_depend_on_the_hash_seed() -> None:
    found = [
        subprocess.run(
            [sys.executable, "-m", "tests.models.learners.test_repeatable"],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout.splitlines()
        for seed in ("1", "2", "3")
    ]  # fmt: skip
    for name, *of_seeds in zip(MODELS, *found, strict=True):
        assert len(set(of_seeds)) == 1, name


@pytest.mark.parametrize("name", ["KNN", "scaled KNN"])
def test_the_model_is_left_as_river_left_it(name: str) -> None:
    learner = RiverLearner(MODELS[name](), ("a",), Task.MULTICLASS)
    op, row = np.array([1, 0], np.uint8), np.zeros(2, np.int64)
    learner.run(np.ones((1, 1)), op, row, ["red", None])
    model = learner.model["KNNClassifier"] if "scaled" in name else learner.model
    assert model.classes == {"red"}


if __name__ == "__main__":
    for each in MODELS:
        print(predictions(each))
