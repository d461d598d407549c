"""Rollouts as stages of the model step: which model serves each event, and control messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from anabranch.dataflows.batch.batch import Batch
from anabranch.dataflows.batch.row_ids import event_id
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.rollout.messages import (
    cause_of_control,
    cause_of_row,
    rollout_message,
)
from anabranch.dataflows.steps.stage import BatchWork, Stage, StageContext
from anabranch.models.learners.learner import Learner
from anabranch.models.prequential.rollout_commands import RolloutController
from anabranch.models.registry.compatibility import check_columns
from anabranch.models.registry.registry import Registry
from anabranch.models.rollout.challenger import Challenger
from anabranch.models.rollout.command import Command, Commanded
from anabranch.models.rollout.deployment import Deployment
from anabranch.models.rollout.serving import Serving
from anabranch.state.errors import InputError


def rollouts_of(pipeline: Pipeline) -> Serving | None:
    """The rollouts of a pipeline as it declares them; None where it declares none."""
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


def traffic_keys(pipeline: Pipeline) -> Callable[[Batch], Sequence[str]]:
    """A function that gives the keys by which a batch's traffic is split, one for each event.

    Without rollouts there are none.
    """
    if pipeline.rollout is None:
        return lambda batch: ()
    field = pipeline.traffic_field
    if field != pipeline.id:
        return lambda batch: batch.columns.get(field, [])
    if pipeline.candidates is not None:
        # The candidates of an event stay together.
        return lambda batch: list(map(event_id, batch.ids))
    return lambda batch: batch.ids


class RolloutServing(Stage):
    """Lets each event go out with the prediction of the model that serves it."""

    def __init__(self, context: StageContext) -> None:
        self._pipeline = context.pipeline
        self._models = context.prequential.models
        self._metrics = context.metrics.rollouts

    def process(self, work: BatchWork) -> None:
        served = work.outcome.served
        if served is None:
            return
        results, batch, name = work.results, work.batch, self._pipeline.name
        results.predictions, results.versions = served.predictions, served.versions
        results.models, results.instead_of = served.models, served.instead_of
        results.decisions += [
            rollout_message(name, decision, cause_of_row(self._pipeline, batch, row))
            for decision, row in served.decisions
        ]
        self._metrics.on_served(Counter(served.models))
        self._metrics.on_failures(served.failures)

    def report(self) -> None:
        rollouts, learners = self._models.rollouts, self._models.learners
        if rollouts is not None:
            self._metrics.on_models(learners)
            self._metrics.on_traffic(dict.fromkeys(learners, 0.0) | rollouts.deployment.shares())


class RolloutCommands(Stage):
    """Follows the control message of a batch, behind all of its rows.

    Attributes:
        controller: what carries commands out.
    """

    def __init__(self, context: StageContext) -> None:
        self._pipeline, state = context.pipeline, context.state
        self._registry = None if state is None else Registry.of(state.path)
        self.controller: Commanded = RolloutController(context.prequential.models, self._provide)

    def process(self, work: BatchWork) -> None:
        batch, control = work.batch, work.batch.control
        if control is None:
            return
        decisions = self.controller.command(control.command(), batch.control_time)
        cause, name = cause_of_control(batch.raw.controls), self._pipeline.name
        work.results.decisions += [
            rollout_message(name, decision, cause, control) for decision in decisions
        ]

    def _provide(self, command: Command) -> Learner:
        """The learner that a command names: from the registry, or as it was declared."""
        pipeline = self._pipeline
        if command.kind != "add":
            declared = pipeline.challenger_learners().get(command.challenger)
            if declared is None:
                raise InputError(
                    f"no challenger {command.challenger!r} is declared: add one from the registry"
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
