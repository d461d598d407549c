"""Executes rollout commands: start, pause, promote and so on, while the stream runs."""

from __future__ import annotations

from collections.abc import Callable

from anabranch.models.learners.learner import Learner
from anabranch.models.prequential.model_set import ModelSet
from anabranch.models.rollout import decision as d
from anabranch.models.rollout.command import Command
from anabranch.models.rollout.decision import Decision
from anabranch.models.rollout.deployment import Deployment
from anabranch.models.rollout.policies import Policy, PolicyContext, check_policy, update_policy
from anabranch.models.rollout.trial import Trial
from anabranch.state.errors import AnabranchError, InputError

ProvideLearner = Callable[[Command], Learner]
"""Returns the learner that a command names; raises an `AnabranchError` if there is none."""


class RolloutController:
    """Executes commands on the models of a step, between two rows of the stream.

    Args:
        models: those of the step, with rollouts.
        provide: loads a challenger that the models do not have yet.
    """

    def __init__(self, models: ModelSet, provide: ProvideLearner) -> None:
        self._models = models
        self._provide = provide

    def command(self, command: Command, time: int) -> list[Decision]:
        """Execute a command at event time `time` (ms); one that can't be executed is `rejected`."""
        try:
            problem = command.problem()
            if problem is not None:
                raise InputError(problem)
            return self._execute(command, time)
        except AnabranchError as error:
            rejected = self._deployment.plain_decision(
                d.REJECTED, command.challenger, str(error), time
            )
            return [rejected]
        finally:
            self._models.apply_decisions()

    @property
    def _deployment(self) -> Deployment:
        assert self._models.rollouts is not None
        return self._models.rollouts.deployment

    def _execute(self, command: Command, time: int) -> list[Decision]:
        methods = {
            "start": self._start,
            "pause": self._pause,
            "resume": self._resume,
            "promote": self._promote,
            "rollback": self._roll_back,
            "set_traffic": self._set_traffic,
            "add": self._add,
            "remove": self._remove,
        }
        return methods[command.kind](command, time)

    def _start(self, command: Command, time: int) -> list[Decision]:
        deployment = self._deployment
        name = command.challenger or next(iter(deployment.waiting), "")
        if not name:
            raise InputError("no challenger is waiting: name one, or add one")
        if deployment.trial(name) is not None:
            raise InputError(f"{name} is already in a rollout")
        if name in (deployment.champion, deployment.previous_champion):
            raise InputError(
                f"{name} is the champion or the previous one: it can't challenge itself"
            )
        policy = self._changed_policy(command)
        problem = policy.may_start(deployment.trials)
        if problem is not None:
            raise InputError(problem)
        if name not in deployment.waiting:
            self._load(name, command)
        deployment.policy = policy  # last: nothing can be rejected after this
        return [deployment.start(name, time, -1)]

    def _changed_policy(self, command: Command) -> Policy:
        """The current policy with the changes of the command."""
        deployment = self._deployment
        if not command.policy:
            return deployment.policy
        changed = update_policy(deployment.policy, command.policy)
        challengers, ranking = len(deployment.waiting) + 1, self._models.rank_quality is not None
        context = PolicyContext(self._models.task, challengers, ranking, "the command")
        check_policy(changed, context)
        return changed

    def _pause(self, command: Command, time: int) -> list[Decision]:
        trial = self._named(command)
        if trial.paused:
            raise InputError(f"{trial.challenger} is already paused")
        trial.paused = True
        reason = f"it keeps its share of {trial.share:.1%}{_by(command)}"
        return [self._deployment.decision(d.PAUSED, trial, reason, time, -1)]

    def _resume(self, command: Command, time: int) -> list[Decision]:
        trial = self._named(command)
        if not trial.paused:
            raise InputError(f"{trial.challenger} is not paused")
        trial.paused = False
        trial.set_share(trial.share, time)
        return [self._deployment.decision(d.RESUMED, trial, _requested(command), time, -1)]

    def _promote(self, command: Command, time: int) -> list[Decision]:
        return self._deployment.promote(self._named(command), _requested(command), time, -1)

    def _roll_back(self, command: Command, time: int) -> list[Decision]:
        deployment, name = self._deployment, command.challenger
        restores = name == deployment.champion or not (name or deployment.trials)
        if restores:
            if deployment.previous_champion is None:
                raise InputError(
                    f"there was no champion before {deployment.champion}: none to revert to"
                )
            return [deployment.restore_previous(_requested(command), time, -1)]
        trial = self._named(command)
        return deployment.end_trial(d.ROLLED_BACK, trial, _requested(command), time, -1)

    def _set_traffic(self, command: Command, time: int) -> list[Decision]:
        trial, deployment = self._named(command), self._deployment
        share = command.share or 0.0
        if deployment.policy.assigns_events:
            raise InputError(f"{deployment.policy.name} assigns each event itself")
        others = sum(each.share for each in deployment.trials if each is not trial)
        if others + share > 1:
            raise InputError(
                f"{others:.1%} of the keys go to other challengers: too many to add {share:.1%}"
            )
        trial.set_share(share, time)
        trial.paused = True
        reason = f"its share is {share:.1%} until it is resumed{_by(command)}"
        return [deployment.decision(d.TRAFFIC, trial, reason, time, -1)]

    def _add(self, command: Command, time: int) -> list[Decision]:
        self._load(command.challenger, command)
        reason = f"{command.model} from the registry{_by(command)}"
        added = self._deployment.plain_decision(d.ADDED, command.challenger, reason, time)
        return [added, *self._deployment.start_waiting(time, -1)]

    def _remove(self, command: Command, time: int) -> list[Decision]:
        deployment, name = self._deployment, command.challenger
        trial = deployment.trial(name)
        if trial is not None:
            return deployment.end_trial(d.REMOVED, trial, _requested(command), time, -1)
        if name not in deployment.waiting:
            raise InputError(self._unknown(name))
        deployment.retire(name)
        return [deployment.plain_decision(d.REMOVED, name, _requested(command), time)]

    def _load(self, name: str, command: Command) -> None:
        """Add the learner that the command names to the waiting challengers."""
        if name in self._models.learners:
            raise InputError(f"there is already a model {name!r}: choose another name")
        learner = self._provide(command)
        self._models.add(name, learner)
        self._deployment.add(name)

    def _named(self, command: Command) -> Trial:
        """The trial that a command refers to; the only one, if it names none."""
        deployment, name = self._deployment, command.challenger
        if not name:
            if len(deployment.trials) == 1:
                return deployment.trials[0]
            tried = ", ".join(trial.challenger for trial in deployment.trials)
            raise InputError(
                f"name one of the challengers: {tried}" if tried else "no rollout is running"
            )
        trial = deployment.trial(name)
        if trial is None:
            raise InputError(self._unknown(name))
        return trial

    def _unknown(self, name: str) -> str:
        deployment = self._deployment
        if name == deployment.champion:
            return f"{name} is already the champion"
        if name in deployment.waiting:
            return f"{name} is waiting: start it first"
        if name in deployment.retired:
            return f"{name} was removed: start it again"
        tried = ", ".join(trial.challenger for trial in deployment.trials) or "none"
        return f"there is no challenger {name!r}; in a rollout: {tried}"


def _by(command: Command) -> str:
    return f" ({command.requested_by})" if command.requested_by else ""


def _requested(command: Command) -> str:
    return f"requested by {command.requested_by}" if command.requested_by else "requested"
