"""Follows commands: what people and programs say about rollouts while they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from anabranch.models.learners.learner import Learner
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

if TYPE_CHECKING:
    from anabranch.models.prequential.prequential import Prequential

Provide = Callable[[Command], Learner]
"""Gives the learner that a command names; raises an `AnabranchError` where there is none."""


class Steering:
    """A step's models, steered by commands between two rows.

    Args:
        step: with rollouts.
        provide: see there.
    """

    def __init__(self, step: Prequential, provide: Provide) -> None:
        self._step = step
        self._provide = provide

    def command(self, command: Command, time: int) -> list[Decision]:
        """Follow a command at event time `time` (ms); one that can't be is `refused`."""
        try:
            fault = command.problem()
            if fault is not None:
                raise InputError(fault)
            return self._follow(command, time)
        except AnabranchError as error:
            return [self._plain(d.REFUSED, command.challenger, str(error), time)]
        finally:
            self._step.settle()

    @property
    def _deployment(self) -> Deployment:
        assert self._step.rollouts is not None
        return self._step.rollouts.deployment

    def _follow(self, command: Command, time: int) -> list[Decision]:
        does = {
            "start": self._start,
            "pause": self._pause,
            "resume": self._resume,
            "promote": self._promote,
            "rollback": self._roll_back,
            "set_traffic": self._set_traffic,
            "add": self._add,
            "remove": self._remove,
        }
        return does[command.kind](command, time)

    def _start(self, command: Command, time: int) -> list[Decision]:
        deployment = self._deployment
        name = command.challenger or next(iter(deployment.waiting), "")
        if not name:
            raise InputError("no challenger waits for its turn: name one, or add one")
        if deployment.contest(name) is not None:
            raise InputError(f"{name} is being tried already")
        if name == deployment.champion or name == deployment.standby:
            raise InputError(f"{name} leads, or stands by: it can't be tried against itself")
        ramped = [each.challenger for each in deployment.contests if not each.in_shadow]
        if isinstance(deployment.policy, Canary | Interleave) and ramped:
            what = "a canary" if isinstance(deployment.policy, Canary) else "interleaving"
            raise InputError(f"{ramped[0]} is being tried, and {what} tries one at a time")
        policy = self._changed_policy(command)
        if isinstance(policy, ABTest):
            taken = sum(contest.share for contest in deployment.contests)
            if taken + policy.split > 1:
                raise InputError(f"{taken:.0%} of the keys are in tests already: too many for more")
        if name not in deployment.waiting:
            self._bring(name, command)
        deployment.policy = policy  # only now can nothing be refused any more
        return [deployment.start(name, time, -1)]

    def _changed_policy(self, command: Command) -> Policy:
        """The policy in force, with what the command changes."""
        deployment = self._deployment
        if not command.policy:
            return deployment.policy
        changed = update_policy(deployment.policy, command.policy)
        check_policy(changed, self._step.task, len(deployment.waiting) + 1, "the command")
        return changed

    def _pause(self, command: Command, time: int) -> list[Decision]:
        contest = self._named(command)
        if contest.paused:
            raise InputError(f"{contest.challenger} is paused already")
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
            self._deployment.decision(d.RESUMED, contest, f"it goes on{_by(command)}", time, -1)
        ]

    def _promote(self, command: Command, time: int) -> list[Decision]:
        contest = self._named(command)
        return self._deployment.promote(contest, f"somebody said so{_by(command)}", time, -1)

    def _roll_back(self, command: Command, time: int) -> list[Decision]:
        deployment, name = self._deployment, command.challenger
        goes_back = name == deployment.champion or not (name or deployment.contests)
        if goes_back:
            if deployment.standby is None:
                raise InputError(f"{deployment.champion} leads, and there is none to go back to")
            return [deployment.go_back(f"somebody said so{_by(command)}", time, -1)]
        contest = self._named(command)
        return self._take_out(d.ROLLED_BACK, contest, f"somebody said so{_by(command)}", time)

    def _set_traffic(self, command: Command, time: int) -> list[Decision]:
        contest, deployment = self._named(command), self._deployment
        share = command.share or 0.0
        if isinstance(deployment.policy, Bandit):
            raise InputError("a bandit divides the traffic by itself")
        others = sum(each.share for each in deployment.contests if each is not contest)
        if others + share > 1:
            raise InputError(f"{others:.1%} of the keys go to other challengers: too many for more")
        contest.set_share(share, time)
        contest.paused = True
        why = f"its share is {share:.1%}, and stays so until it is resumed{_by(command)}"
        return [deployment.decision(d.TRAFFIC, contest, why, time, -1)]

    def _add(self, command: Command, time: int) -> list[Decision]:
        self._bring(command.challenger, command)
        why = f"{command.model} of the registry{_by(command)}"
        added = self._plain(d.ADDED, command.challenger, why, time)
        return [added, *self._deployment.begin(time, -1)]

    def _remove(self, command: Command, time: int) -> list[Decision]:
        deployment, name = self._deployment, command.challenger
        contest = deployment.contest(name)
        if contest is not None:
            return self._take_out(d.REMOVED, contest, f"somebody said so{_by(command)}", time)
        if name not in deployment.waiting:
            raise InputError(self._unknown(name))
        deployment.retire(name)
        return [self._plain(d.REMOVED, name, f"somebody said so{_by(command)}", time)]

    def _take_out(self, action: str, contest: Contest, why: str, time: int) -> list[Decision]:
        deployment = self._deployment
        deployment.retire(contest.challenger)
        contest.share = 0.0
        gone = deployment.decision(action, contest, why, time, -1)
        return [gone, *deployment.begin(time, -1)]

    def _bring(self, name: str, command: Command) -> None:
        """A learner more, under this name, which waits for its turn."""
        if name in self._step.learners:
            raise InputError(f"there is a model {name!r} already: choose another name")
        learner = self._provide(command)
        self._step.add(name, learner)
        self._deployment.add(name)

    def _named(self, command: Command) -> Contest:
        """The rollout that a command is about; the only one, if it names none."""
        deployment, name = self._deployment, command.challenger
        if not name:
            if len(deployment.contests) == 1:
                return deployment.contests[0]
            tried = ", ".join(each.challenger for each in deployment.contests)
            raise InputError(
                f"name one of those that are tried: {tried}" if tried else "nobody is being tried"
            )
        contest = deployment.contest(name)
        if contest is None:
            raise InputError(self._unknown(name))
        return contest

    def _unknown(self, name: str) -> str:
        deployment = self._deployment
        if name == deployment.champion:
            return f"{name} leads already"
        if name in deployment.waiting:
            return f"{name} waits for its turn: start it first"
        if name in deployment.retired:
            return f"{name} was taken out: start it anew"
        tried = ", ".join(each.challenger for each in deployment.contests) or "nobody"
        return f"there is no challenger {name!r}: {tried} is being tried"

    def _plain(self, action: str, challenger: str, why: str, time: int) -> Decision:
        """A decision without a rollout."""
        deployment = self._deployment
        return Decision(
            action, "", challenger, deployment.champion, 0.0, why, time, -1, None, {},
            type(deployment.policy).__name__,
        )  # fmt: skip


def _by(command: Command) -> str:
    return f" ({command.by})" if command.by else ""
