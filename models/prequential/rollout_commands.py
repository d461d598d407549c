"""Executes rollout commands: start, pause, promote and so on, while the stream runs."""

from __future__ import annotations

from collections.abc import Callable

from anabranch.models.learners.learner import Learner
from anabranch.models.prequential.model_set import ModelSet
from anabranch.models.rollout import decision as d
from anabranch.models.rollout.command import Command
from anabranch.models.rollout.decision import Decision
from anabranch.models.rollout.deployment import Deployment
from anabranch.models.rollout.policies import (
    ABTest,
    Bandit,
    Canary,
    Interleave,
    Policy,
    check_policy,
)
from anabranch.models.rollout.policy_update import update_policy
from anabranch.models.rollout.trial import Contest
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
        """Execute a command at event time `time` (ms); one that can't be executed is `refused`."""
        try:
            problem = command.problem()
            if problem is not None:
                raise InputError(problem)
            return self._execute(command, time)
        except AnabranchError as error:
            return [self._without_trial(d.REFUSED, command.challenger, str(error), time)]
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
        if deployment.contest(name) is not None:
            raise InputError(f"{name} is already in a rollout")
        if name == deployment.champion or name == deployment.standby:
            raise InputError(
                f"{name} is the champion or the previous one: it can't challenge itself"
            )
        ramped = [each.challenger for each in deployment.contests if not each.in_shadow]
        if isinstance(deployment.policy, Canary | Interleave) and ramped:
            what = "a canary" if isinstance(deployment.policy, Canary) else "interleaving"
            raise InputError(
                f"{ramped[0]} is in a rollout, and {what} takes one challenger at a time"
            )
        policy = self._changed_policy(command)
        if isinstance(policy, ABTest):
            taken = sum(contest.share for contest in deployment.contests)
            if taken + policy.split > 1:
                raise InputError(
                    f"{taken:.0%} of the keys are in tests already: too many to add another"
                )
        if name not in deployment.waiting:
            self._load(name, command)
        deployment.policy = policy  # last: nothing can be refused after this
        return [deployment.start(name, time, -1)]

    def _changed_policy(self, command: Command) -> Policy:
        """The current policy with the changes of the command."""
        deployment = self._deployment
        if not command.policy:
            return deployment.policy
        changed = update_policy(deployment.policy, command.policy)
        check_policy(changed, self._models.task, len(deployment.waiting) + 1, "the command")
        return changed

    def _pause(self, command: Command, time: int) -> list[Decision]:
        contest = self._named(command)
        if contest.paused:
            raise InputError(f"{contest.challenger} is already paused")
        contest.paused = True
        why = f"it keeps its share of {contest.share:.1%}{_by(command)}"
        return [self._deployment.decision(d.PAUSED, contest, why, time, -1)]

    def _resume(self, command: Command, time: int) -> list[Decision]:
        contest = self._named(command)
        if not contest.paused:
            raise InputError(f"{contest.challenger} is not paused")
        contest.paused = False
        contest.set_share(contest.share, time)
        return [
            self._deployment.decision(d.RESUMED, contest, f"it continues{_by(command)}", time, -1)
        ]

    def _promote(self, command: Command, time: int) -> list[Decision]:
        contest = self._named(command)
        return self._deployment.promote(contest, _requested(command), time, -1)

    def _roll_back(self, command: Command, time: int) -> list[Decision]:
        deployment, name = self._deployment, command.challenger
        goes_back = name == deployment.champion or not (name or deployment.contests)
        if goes_back:
            if deployment.standby is None:
                raise InputError(
                    f"there was no champion before {deployment.champion}: none to revert to"
                )
            return [deployment.go_back(_requested(command), time, -1)]
        contest = self._named(command)
        return self._retire(d.ROLLED_BACK, contest, _requested(command), time)

    def _set_traffic(self, command: Command, time: int) -> list[Decision]:
        contest, deployment = self._named(command), self._deployment
        share = command.share or 0.0
        if isinstance(deployment.policy, Bandit):
            raise InputError("a bandit splits the traffic by itself")
        others = sum(each.share for each in deployment.contests if each is not contest)
        if others + share > 1:
            raise InputError(
                f"{others:.1%} of the keys go to other challengers: too many to add {share:.1%}"
            )
        contest.set_share(share, time)
        contest.paused = True
        why = f"its share is {share:.1%} until it is resumed{_by(command)}"
        return [deployment.decision(d.TRAFFIC, contest, why, time, -1)]

    def _add(self, command: Command, time: int) -> list[Decision]:
        self._load(command.challenger, command)
        why = f"{command.model} from the registry{_by(command)}"
        added = self._without_trial(d.ADDED, command.challenger, why, time)
        return [added, *self._deployment.begin(time, -1)]

    def _remove(self, command: Command, time: int) -> list[Decision]:
        deployment, name = self._deployment, command.challenger
        contest = deployment.contest(name)
        if contest is not None:
            return self._retire(d.REMOVED, contest, _requested(command), time)
        if name not in deployment.waiting:
            raise InputError(self._unknown(name))
        deployment.retire(name)
        return [self._without_trial(d.REMOVED, name, _requested(command), time)]

    def _retire(self, action: str, contest: Contest, why: str, time: int) -> list[Decision]:
        deployment = self._deployment
        deployment.retire(contest.challenger)
        contest.share = 0.0
        gone = deployment.decision(action, contest, why, time, -1)
        return [gone, *deployment.begin(time, -1)]

    def _load(self, name: str, command: Command) -> None:
        """Add the learner that the command names to the waiting challengers."""
        if name in self._models.learners:
            raise InputError(f"there is already a model {name!r}: choose another name")
        learner = self._provide(command)
        self._models.add(name, learner)
        self._deployment.add(name)

    def _named(self, command: Command) -> Contest:
        """The rollout that a command refers to; the only one, if it names none."""
        deployment, name = self._deployment, command.challenger
        if not name:
            if len(deployment.contests) == 1:
                return deployment.contests[0]
            tried = ", ".join(each.challenger for each in deployment.contests)
            raise InputError(
                f"name one of the challengers: {tried}" if tried else "no rollout is running"
            )
        contest = deployment.contest(name)
        if contest is None:
            raise InputError(self._unknown(name))
        return contest

    def _unknown(self, name: str) -> str:
        deployment = self._deployment
        if name == deployment.champion:
            return f"{name} is already the champion"
        if name in deployment.waiting:
            return f"{name} is waiting: start it first"
        if name in deployment.retired:
            return f"{name} was removed: start it again"
        tried = ", ".join(each.challenger for each in deployment.contests) or "none"
        return f"there is no challenger {name!r}; in a rollout: {tried}"

    def _without_trial(self, action: str, challenger: str, why: str, time: int) -> Decision:
        """A decision that is not about a rollout."""
        deployment = self._deployment
        return Decision(
            action, "", challenger, deployment.champion, 0.0, why, time, -1, None, {},
            type(deployment.policy).__name__,
        )  # fmt: skip


def _requested(command: Command) -> str:
    return f"requested by {command.by}" if command.by else "requested"


def _by(command: Command) -> str:
    return f" ({command.by})" if command.by else ""
