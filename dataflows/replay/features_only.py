"""A pipeline without its model: the same features and the same labels, and nobody who predicts."""

from __future__ import annotations

from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.models.learners.learner import Learner
from anabranch.models.learners.null import NullLearner


class FeaturesOnly(Pipeline):
    """``pipeline`` as it is declared, but with a silent learner, no metrics and no monitors."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.__dict__.update(pipeline.__dict__)  # it is checked already
        self.metrics, self.monitors = (), ()

    def learner(self) -> Learner:
        return NullLearner(self.columns, self.task)
