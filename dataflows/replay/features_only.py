"""A pipeline reduced to its features and labels: its model predicts nothing and learns nothing."""

from __future__ import annotations

from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.models.learners.learner import Learner
from anabranch.models.learners.null import NullLearner


class FeaturesOnly(Pipeline):
    """A copy of ``pipeline`` with a learner that abstains, no metrics and no monitors."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.__dict__.update(pipeline.__dict__)  # validated already
        self.metrics, self.monitors = (), ()

    def learner(self) -> Learner:
        return NullLearner(self.columns, self.task)
