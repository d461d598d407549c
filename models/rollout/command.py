"""A command that changes a rollout while it runs, and what can be checked of it beforehand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol, get_args

from anabranch.models.registry.version import check_name, parse_reference
from anabranch.models.rollout.decision import Decision
from anabranch.state.errors import InputError

Kind = Literal[
    "start", "pause", "resume", "promote", "rollback", "set_traffic", "add", "remove"
]  # fmt: skip
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
_NAMELESS: Final = ("start", "pause", "resume", "rollback")
"""Commands that may leave out the challenger: it is the one that is tried, or the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command, to be followed between two rows of the stream.

    Attributes:
        kind: one of `KINDS`.
        challenger: the model that it is about; empty: the one that is tried, or the next.
        share: of the keys, for ``set_traffic``.
        model: ``NAME@VERSION`` in the registry, for ``add``.
        policy: parameters of the policy in force to change, by name, for ``start``.
        id: unique, given by the sender.
        requested_by: the sender.
    """

    kind: Kind
    id: str
    challenger: str = ""
    share: float | None = None
    model: str = ""
    policy: Mapping[str, Any] = field(default_factory=dict)
    requested_by: str = ""

    def problem(self) -> str | None:
        """What is wrong with it, whatever the state of the rollout, as a sentence; or None.

        >>> Command(kind="set_traffic", id="1", challenger="tree", share=1.5).problem()
        'the share 1.5 is not possible: give one from 0 to 1'
        >>> Command(kind="pause", id="2").problem()
        """
        if self.kind not in KINDS:
            return f"{self.kind!r} is not a command: use one of {', '.join(KINDS)}"
        if not self.challenger and self.kind not in _NAMELESS:
            return f"{self.kind} needs the name of a challenger"
        parameters = (
            ("share", self.share is not None, "set_traffic"),
            ("model", bool(self.model), "add"),
            ("policy", bool(self.policy), "start"),
        )
        for name, is_given, kind in parameters:
            if is_given and self.kind != kind:
                return f"{name} is for {kind}, not for {self.kind}"
        if self.kind == "set_traffic":
            if self.share is None:
                return "set_traffic needs a share from 0 to 1"
            if not (math.isfinite(self.share) and 0 <= self.share <= 1):
                return f"the share {self.share:g} is not possible: give one from 0 to 1"
        return self._problem_of_names()

    def _problem_of_names(self) -> str | None:
        try:
            if self.challenger:
                check_name(self.challenger)
            if self.kind == "add" and parse_reference(self.model)[1] is None:
                return f"add needs a model of the registry, as NAME@VERSION, not {self.model!r}"
        except InputError as error:
            return str(error)
        return None


class Commanded(Protocol):
    """What follows commands."""

    def command(self, command: Command, time: int) -> list[Decision]:
        """Follow a command between two rows, at event time ``time`` (ms).

        Returns:
            What was decided, at least one decision: `rejected` if it can't be followed.
        """
