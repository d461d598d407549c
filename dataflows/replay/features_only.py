"""A pipeline without its model: the same features and the same labels, and nobody who predicts."""

from __future__ import annotations

from dataflows.pipeline import Pipeline
from models.learner import Learner
from models.silent import SilentLearner


class FeaturesOnly(Pipeline):
    """``pipeline`` as it is declared, but with a silent learner, no metrics and no monitors."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.__dict__.update(pipeline.__dict__)  # it is checked already
        self.metrics, self.monitors = (), ()

    def learner(self) -> Learner:
        return SilentLearner(self.columns, self.task)
