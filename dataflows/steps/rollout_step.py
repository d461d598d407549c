"""Rollouts in the model step: which models there are, and what goes out of what they answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from anabranch.dataflows.batch.batch import Batch
from anabranch.dataflows.batch.row_ids import event_id
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.rollout.messages import cause_of_row, rollout_message
from anabranch.dataflows.sink.encoder import Results
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics
from anabranch.models.learners.learner import Learner
from anabranch.models.prequential.model_set import ModelSet
from anabranch.models.prequential.rollout_commands import RolloutController
from anabranch.models.registry.compatibility import check_columns
from anabranch.models.registry.registry import Registry
from anabranch.models.rollout.challenger import Challenger
from anabranch.models.rollout.command import Command
from anabranch.models.rollout.deployment import Deployment
from anabranch.models.rollout.served import ServedPredictions
from anabranch.models.rollout.serving import Serving
from anabranch.state.errors import InputError

if TYPE_CHECKING:
    from anabranch.dataflows.recovery.state_directory import StateDirectory


def rollouts_of(pipeline: Pipeline) -> Serving | None:
    """The rollouts of a pipeline as they begin; None where it declares none."""
    if pipeline.rollout is None:
        return None
    burn_in = {
        name: challenger.burn_in
        for name, challenger in pipeline.challengers.items()
        if isinstance(challenger, Challenger)
    }
    deployment = Deployment(
        pipeline.model_name, list(pipeline.challengers), pipeline.rollout, pipeline.task,
        pipeline.name, burn_in,
    )  # fmt: skip
    return Serving(deployment, pipeline.task, pipeline.fallback)


class RolloutStep:
    """What the model step does with rollouts, beside letting the models work.

    Args:
        models: with rollouts.
        state: where the registry is that models can be added from.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        models: ModelSet,
        metrics: WorkerMetrics,
        state: StateDirectory | None,
    ) -> None:
        self._pipeline = pipeline
        self._models = models
        self._metrics = metrics
        self._registry = None if state is None else Registry.of(state.path)
        self.steering = RolloutController(models, self._provide)

    def keys(self, batch: Batch) -> Sequence[str]:
        """By which traffic is divided, one per event."""
        field = self._pipeline.traffic_field
        if field == self._pipeline.id and self._pipeline.candidates is not None:
            return list(map(event_id, batch.ids))  # an event's candidates stay together
        return batch.ids if field == self._pipeline.id else batch.columns.get(field, [])

    def bring_in(self, answered: ServedPredictions | None, results: Results) -> None:
        """Let go out what is served, instead of what the champion predicted."""
        if answered is None:
            return
        results.predictions, results.versions = answered.predictions, answered.versions
        results.models, results.instead_of = answered.models, answered.instead_of
        name, batch = self._pipeline.name, results.batch
        results.decisions += [
            rollout_message(name, decision, cause_of_row(self._pipeline, batch, row))
            for decision, row in answered.decisions
        ]
        told = self._metrics.rollouts
        told.on_served(Counter(answered.models))
        told.on_failures(answered.failures)

    def tell(self) -> None:
        """The shares, for the metrics."""
        rollouts = self._models.rollouts
        if rollouts is not None:
            self._metrics.rollouts.on_models(self._models.learners)
            shares = rollouts.deployment.shares()
            self._metrics.rollouts.on_traffic(dict.fromkeys(self._models.learners, 0.0) | shares)

    def _provide(self, command: Command) -> Learner:
        """The learner that a command names: of the registry, or as it was declared."""
        pipeline = self._pipeline
        if command.kind != "add":
            declared = pipeline.challenger_learners().get(command.challenger)
            if declared is None:
                raise InputError(
                    f"no challenger {command.challenger!r} is declared: add one of the registry"
                )
            return declared
        if self._registry is None:
            raise InputError("this run keeps no state, and so has no registry to add from")
        try:
            version = self._registry.find(command.model)
        except InputError:  # which names a directory of this machine
            raise InputError(f"the registry has no model {command.model}") from None
        check_columns(version.columns, pipeline.columns, f"model {version.reference}")
        learner = self._registry.learner(version, pipeline.columns, pipeline.task)
        return pipeline.wrap(learner)
