"""The base of rollout policies: how models are compared, and the hooks that a policy overrides.

A rollout tries challengers against the champion, each in a trial of its own. All models predict
every event and learn every label under every policy; a policy says which model serves, and when a
trial ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Final, Literal, NamedTuple, Protocol, TypeVar, get_type_hints

import msgspec
import numpy as np
from numpy.typing import NDArray

from anabranch.models.learners.description import describe
from anabranch.models.learners.learner import Task
from anabranch.models.metrics.losses import check_loss
from anabranch.models.rollout.observations import Arm, LabelPairs, RolloutRows
from anabranch.state.durations import parse_duration_ms
from anabranch.state.errors import DeclarationError, InputError
from anabranch.state.renamed import renamed, renamed_parameters

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
_NO_RANKS: Final = np.zeros(0, np.int64)

ComparisonMode = Literal["paired", "unpaired"]
"""Which losses are compared: of both models on each label, or of the one that served each."""

AUC: Final = "auc"
"""In place of a loss: not a mean over labels, but over windows of them."""

_DEFAULT_LOSS: Final = {
    Task.BINARY: "brier",
    Task.MULTICLASS: "brier",
    Task.REGRESSION: "absolute",
    Task.ANOMALY: "absolute",
}
_BOUNDS: Final = {
    (Task.BINARY, "error"): 1.0,
    (Task.BINARY, "brier"): 1.0,
    (Task.BINARY, "absolute"): 1.0,
    (Task.BINARY, "logloss"): 35.0,
    (Task.MULTICLASS, "error"): 1.0,
    (Task.MULTICLASS, "brier"): 2.0,
    (Task.MULTICLASS, "logloss"): 35.0,
}


@renamed(errors="error_rate", shift="psi")
@dataclass(frozen=True, slots=True, kw_only=True)
class Guardrails:
    """Limits that a challenger must not exceed; one that does is rolled back at once.

    They are checked from its first event on, whether it serves or not, so that one that fails in
    shadow never serves at all. A challenger that is shown to be worse than the champion is rolled
    back too.

    Attributes:
        error_rate: largest share of its last 1,000 predictions and updates that may raise or be
            NaN; 0.0: none.
        loss_ratio: largest ratio of its mean loss over the last 1,000 labels to the champion's on
            the same labels. It detects a challenger that was good for long and breaks, which
            evidence of all labels shows late.
        psi: largest population stability index of its last 1,000 predictions against the champion's
            on the same events. Below 0.1 is usually called no shift, above 0.25 a large one; models
            that differ by design need room. None: not checked.
        latency_us: largest mean time per prediction and update over about a second, in
            microseconds. None: not checked. It is measured by the clock, so a replay may differ.
    """

    error_rate: float = 0.0
    loss_ratio: float = 3.0
    psi: float | None = None
    latency_us: float | None = None

    def validate(self, where: str) -> None:
        """Refuse limits that make no sense.

        Raises:
            DeclarationError: in one sentence.
        """
        if not (is_number(self.error_rate) and 0 <= self.error_rate < 1):
            raise DeclarationError(
                f"error_rate={self.error_rate!r} in {where} must be a share in [0, 1)"
            )
        if not (is_number(self.loss_ratio) and self.loss_ratio > 1):
            raise DeclarationError(f"loss_ratio={self.loss_ratio!r} in {where} must be above 1")
        for name, limit in (("psi", self.psi), ("latency_us", self.latency_us)):
            if limit is not None and not (is_number(limit) and limit > 0):
                raise DeclarationError(f"{name}={limit!r} in {where} must be above 0, or None")


@dataclass(frozen=True, slots=True)
class PolicyContext:
    """The pipeline that a policy is declared for.

    Attributes:
        task: of the models.
        challengers: how many challengers there are.
        ranking: whether each event is a list of candidates.
        where: names the pipeline in messages.
    """

    task: Task
    challengers: int
    ranking: bool
    where: str


class RunningTrial(Protocol):
    """A trial at work, as policies see it; see `models.rollout.trial.Trial`."""

    challenger: str
    arm_id: int
    rollout: str
    index: int
    share: float
    in_shadow: bool


class TrialProgress(NamedTuple):
    """What a policy knows of its trial when labels arrive.

    Attributes:
        share: share of the keys that the challenger serves.
        share_since: event time (ms) at which it got this share.
        label_times: `(labels,) int64`, ms, in order.
        served: `(labels,) int64`: how many of the labels since `share_since`, up to and with each,
            are of events that the challenger served.
        better_at: index of the label by which the challenger is shown to be better; None: not yet.
    """

    share: float
    share_since: int
    label_times: I64
    served: I64
    better_at: int | None


class Step(NamedTuple):
    """What a policy decides next in a trial.

    Attributes:
        label: index of the label after which it holds.
        share: the challenger's new share of the keys; None: it is promoted.
        reason: a clause for people.
    """

    label: int
    share: float | None
    reason: str


BETTER: Final = "it was shown to be better than the champion"
"""The reason of a promotion by evidence."""


@renamed(judge="comparison", report="report_every", window="auc_window", scale="clip")
@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How challengers are tried: the comparison that all policies share, and the policy's hooks.

    A new policy is a subclass in a file of its own, listed in `models.rollout.policies.POLICIES`,
    in `models.pickled_classes`, and among the public names of `anabranch`.

    Attributes:
        loss: of `models.metrics.losses`, by which models are compared; None: the default of the
            task (`loss_of`). `"auc"` (binary): 1 − the area under the ROC curve, on windows of
            labels (`models.evidence.auc`); the guardrail `loss_ratio` uses the default loss then.
        alpha: upper bound of the probability that a challenger that is no better is promoted,
            however often the evidence is looked at.
        comparison: `"paired"`: every label compares both models, which takes the fewest labels.
            `"unpaired"`: each label counts only for the model that served the event. For
            predictions that decide what is labelled at all, or how (a payment refused, an offer
            made).
        clip: differences of two losses are clipped at this, in units of the loss; the mean of the
            clipped differences is tested. A small one takes fewer labels, and ignores what models
            gain in few large losses, as of rare classes. None: the bound of the loss, so that
            nothing is clipped; learned from the first labels where it has none (see
            `models.evidence.paired`).
        min_effect: the smallest improvement of the loss that is worth a change, as a share of the
            champion's. A challenger that can't reach it any more is taken out (futility); checked
            with every progress report. 0.0: never.
        guardrails: limits that roll a challenger back.
        report_every: labels between two progress reports on the rollouts topic.
        auc_window: labels of a window of `"auc"`; ten or more of them should be true.
    """

    decides: ClassVar[bool] = True
    """Whether evidence ends a trial: by promotion, by futility, or at `ends_at`."""
    assigns_events: ClassVar[bool] = False
    """Whether `assign_events` chooses the serving model event by event, in place of shares."""
    supports_auc: ClassVar[bool] = True
    """Whether models can be compared by `loss="auc"`."""

    loss: str | None = None
    alpha: float = 0.05
    comparison: ComparisonMode = "paired"
    clip: float | None = None
    min_effect: float = 0.01
    guardrails: Guardrails = field(default_factory=Guardrails)
    report_every: int = 1000
    auc_window: int = 500

    # The hooks of a policy.

    def check(self, context: PolicyContext) -> None:
        """Refuse parameters of the subclass that can't work.

        Raises:
            DeclarationError: in one sentence, which names `where(context)`.
        """

    def initial_share(self) -> float:
        """Share of the keys that a challenger serves at the start of its trial."""
        return 0.0

    def may_start(self, trials: Sequence[RunningTrial]) -> str | None:
        """Why no other trial may start beside those that run, in a clause; None: it may."""
        return None

    def next_step(self, progress: TrialProgress) -> Step | None:
        """The first label after which the share changes or the challenger is promoted, and how."""
        if progress.better_at is None:
            return None
        return Step(progress.better_at, None, BETTER)

    def ends_at(self, start_ms: int) -> int | None:
        """Event time (ms) at which an undecided trial that began at `start_ms` ends; None: never.

        The champion stays then.
        """
        return None

    def end_reason(self) -> str:
        """Why a trial ended at `ends_at`, in a clause."""
        return "its time is over"

    def starts_in_shadow(self) -> bool:
        """Whether challengers that drift starts serve no keys until they are promoted.

        In an unpaired comparison a model has to serve, or nothing is learned of it.
        """
        return self.decides and self.comparison == "paired"

    def label_pairs(self, trial: int) -> LabelPairs:
        """What each label says of both models, in the trial of this index."""
        return LabelPairs()

    def assign_events(self, rows: RolloutRows, arm_ids: Mapping[str, int], task: Task) -> None:
        """Write into `rows.arms` which model serves each event, where `assigns_events`.

        Args:
            rows: events and labels, in the order of their steps.
            arm_ids: by name, of the models that may serve.
            task: of the models.
        """

    def arrange_candidates(
        self, rows: RolloutRows, trials: Sequence[RunningTrial], champion: Arm, assigned: U8
    ) -> I64:
        """Mix the candidates of both models into one list, for rankings.

        Args:
            rows: of rankings; `drafts` and `listed` may be written.
            trials: those at work, against the champion.
            assigned: `(events,) uint8`: arm id of the model that is to serve each row; may be
                changed to the model that placed the row.

        Returns:
            `(events,) int64` ranks, see `Assignments.ranks`; empty: nothing is mixed.
        """
        return _NO_RANKS

    # What callers use.

    @property
    def name(self) -> str:
        """As it is published."""
        return type(self).__name__

    def where(self, context: PolicyContext) -> str:
        """The policy and the pipeline, for messages."""
        return f"{self.name} of {context.where}"

    def validate(self, context: PolicyContext) -> None:
        """Refuse a policy that can't be followed.

        Raises:
            DeclarationError: in one sentence.
        """
        where = self.where(context)
        loss_of(self, context.task)
        if self.loss == AUC:
            self._check_auc(context.task, where)
        if not is_number(self.alpha) or not 0 < self.alpha < 0.5:
            raise DeclarationError(f"alpha={self.alpha!r} of {where}: give one in (0, 0.5)")
        if self.comparison not in ("paired", "unpaired"):
            raise DeclarationError(
                f"comparison={self.comparison!r} of {where}: give 'paired' or 'unpaired'"
            )
        if self.clip is not None and not (is_number(self.clip) and self.clip > 0):
            raise DeclarationError(f"clip={self.clip!r} of {where} must be above 0")
        if not (is_number(self.min_effect) and 0 <= self.min_effect < 1):
            raise DeclarationError(
                f"min_effect={self.min_effect!r} of {where} must be a share of the champion's "
                "loss, in [0, 1)"
            )
        if not is_count(self.report_every) or self.report_every < 1:
            raise DeclarationError(
                f"report_every={self.report_every!r} of {where} must be 1 or more"
            )
        self.guardrails.validate(where)
        self.check(context)

    def _check_auc(self, task: Task, where: str) -> None:
        if task is not Task.BINARY:
            raise DeclarationError(f"loss='auc' of {where} is for labels that are true or false")
        if self.comparison != "paired" or not self.supports_auc:
            raise DeclarationError(
                f"loss='auc' of {where} compares both models on the same labels: leave out "
                "comparison=, and use a policy such as Shadow, Canary or ABTest"
            )
        if not is_count(self.auc_window) or self.auc_window < 2:
            raise DeclarationError(
                f"auc_window={self.auc_window!r} of {where} must be 2 or more labels"
            )

    def fingerprint(self) -> str:
        """A text that is the same for policies with the same parameters."""
        values = [f"{each.name}={describe(getattr(self, each.name))}" for each in fields(self)]
        return f"{self.name}({', '.join(values)})"


def one_at_a_time(trials: Sequence[RunningTrial], policy: str) -> str | None:
    """For `Policy.may_start`: a clause if a challenger is tried that is not in shadow."""
    serving = [trial.challenger for trial in trials if not trial.in_shadow]
    return (
        f"{serving[0]} is in a rollout, and {policy} takes one challenger at a time"
        if serving
        else None
    )


def horizon_end(horizon: str, start_ms: int) -> int:
    """For `Policy.ends_at`: `horizon` after the start, in ms."""
    return start_ms + parse_duration_ms(horizon)


def loss_of(policy: Policy, task: Task) -> str:
    """The loss of each label by which models are compared, or that guardrails check.

    Raises:
        DeclarationError: the task has no such loss.

    >>> loss_of(Policy(), Task.BINARY), loss_of(Policy(loss="logloss"), Task.BINARY)
    ('brier', 'logloss')
    """
    named = None if policy.loss == AUC else policy.loss
    return check_loss(task, named or _DEFAULT_LOSS[task])


def bound_of(task: Task, loss: str) -> float | None:
    """The largest value of a loss; None: it has no bound."""
    return _BOUNDS.get((task, loss))


def clip_of(policy: Policy, task: Task) -> float | None:
    """Where differences of the loss are clipped; None: that is learned."""
    return policy.clip or bound_of(task, loss_of(policy, task))


Updated = TypeVar("Updated", bound=Policy | Guardrails)


def update_policy(policy: Updated, changes: Mapping[str, Any]) -> Updated:
    """A copy of a policy with other parameters; of its guardrails only those that are named.

    The names and values come as JSON from outside and are checked. `Policy.validate` says whether
    they make sense together.

    Raises:
        InputError: there is no such parameter, or the value is of another type.

    >>> update_policy(Policy(), {"alpha": 0.1, "guardrails": {"error_rate": 0.2}}).guardrails.psi
    """
    name, types = type(policy).__name__, get_type_hints(type(policy))
    parameters = [each.name for each in fields(policy) if each.metadata.get(CHANGEABLE, True)]
    old_names = renamed_parameters(type(policy))
    updates: dict[str, Any] = {}
    for parameter, value in changes.items():
        if parameter in old_names:
            raise InputError(f"{parameter} of {name} is now called {old_names[parameter]}")
        if parameter not in parameters:
            raise InputError(
                f"{name} has no {parameter!r} to change: it has {', '.join(parameters)}"
            )
        current = getattr(policy, parameter)
        try:
            updates[parameter] = (
                update_policy(current, msgspec.convert(value, dict[str, Any]))
                if isinstance(current, Guardrails)
                else msgspec.convert(value, types[parameter])
            )
        except msgspec.ValidationError as error:
            raise InputError(f"{parameter}={value!r} of {name} is not possible: {error}") from None
    return replace(policy, **updates)


CHANGEABLE: Final = "changeable"
"""Metadata of a policy's field: False for one that a control message can't change."""


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, and no boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: Any) -> bool:
    """Whether a value is an integer, and no boolean."""
    return isinstance(value, int) and not isinstance(value, bool)
