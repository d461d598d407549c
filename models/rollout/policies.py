"""How a challenger gets to serve: declared on the pipeline, and changeable while it runs.

Every policy is about *rollouts*: one challenger that is tried against the champion. All models
predict every event and learn every label under every policy; a policy says who serves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal

from river.bandit.base import Policy as RiverPolicy
from river.proba.base import BinaryDistribution

from anabranch.models.learners.description import describe
from anabranch.models.learners.learner import Task
from anabranch.models.metrics.losses import check_loss
from anabranch.state.durations import parse_duration_ms
from anabranch.state.errors import DeclarationError
from anabranch.state.renamed import renamed

Comparison = Literal["paired", "unpaired"]
"""Which losses are compared: of both models on each label, or of the one that served each."""


@renamed(errors="error_rate", shift="psi")
@dataclass(frozen=True, slots=True, kw_only=True)
class Guardrails:
    """What a challenger must never do; a breach takes it out of service at once.

    They are looked at from its first event on, whether it serves or not, so that one that fails in
    shadow never serves at all. One that is shown to be worse than the champion goes too.

    Attributes:
        error_rate: largest share of its last 1,000 predictions and updates that may raise or be
            NaN; 0.0: none.
        loss_ratio: its mean loss over the last 1,000 labels against the champion's on the same: for
            one that was good for long and breaks, which evidence of all labels shows late.
        psi: population stability index of its last 1,000 predictions against the champion's on
            the same events. Below 0.1 is usually called none, above 0.25 a large one; models that
            are to differ need room. None: not looked at.
        latency_us: microseconds that it may take for each prediction and lesson, on average over a
            second or so. None: not looked at. It is measured by the clock, so a replay may differ.
    """

    error_rate: float = 0.0
    loss_ratio: float = 3.0
    psi: float | None = None
    latency_us: float | None = None


@renamed(judge="comparison", report="report_every", window="auc_window", scale="clip")
@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """What policies that decide by evidence have in common.

    Attributes:
        loss: of `models.metrics.losses`, by which models are compared; None: the task's usual one
        for
            rollouts (`loss_of`). `"auc"` (binary): 1 − the area under the ROC curve, on windows of
            labels (`models.evidence.auc`); `loss_ratio` of the guardrails goes by the usual loss.
        auc_window: labels of a window of `"auc"`; ten or more of them should be true.
        alpha: probability with which a challenger that is no better is promoted, at most, however
            often one looks.
        comparison: `"paired"`: every label compares both models, which takes the fewest labels.
            `"unpaired"`: each label judges the model that served the event alone. For predictions
            that decide what is labelled at all, or how (a payment refused, an offer made).
        clip: differences of two losses are clipped at this, in units of the loss; what is tested
            is the mean of the clipped differences. A small one takes fewer labels, and does not see
            what models gain in few large losses, as of rare classes. None: the bound of the loss,
            so that nothing is clipped; learned from the first labels where it has none (see
            `models.evidence.paired`).
        min_effect: the smallest improvement of the loss that is worth a change, as a share of the
            champion's. A challenger that can't have it any more is given up (futility); looked at
            with every report. 0.0: never.
        guardrails: see there.
        report_every: labels between two progress reports, published on the rollouts topic.
    """

    loss: str | None = None
    alpha: float = 0.05
    comparison: Comparison = "paired"
    clip: float | None = None
    min_effect: float = 0.01
    guardrails: Guardrails = field(default_factory=Guardrails)
    report_every: int = 1000
    auc_window: int = 500


@renamed()
@dataclass(frozen=True, slots=True, kw_only=True)
class Shadow(_Judged):
    """Challengers serve nobody. Evidence is reported; who leads is decided by control messages."""


@renamed(hold="min_duration", hold_labels="min_labels")
@dataclass(frozen=True, slots=True, kw_only=True)
class Canary(_Judged):
    """A challenger serves a growing share of the keys, and is promoted once it is shown better.

    One challenger at a time, in the order of their declaration; the others wait in shadow.

    Attributes:
        steps: shares of the keys that it serves, one after the other, growing. A last step of 1.0
            is the promotion itself.
        min_duration: event time that each step lasts at least.
        min_labels: labels that each step lasts at least, of events that the challenger served.
    """

    steps: Sequence[float] = (0.01, 0.05, 0.25, 0.5, 1.0)
    min_duration: str = "0s"
    min_labels: int = 100


@renamed()
@dataclass(frozen=True, slots=True, kw_only=True)
class ABTest(_Judged):
    """Fixed shares until one is shown better, or the horizon has come.

    Attributes:
        split: share of the keys that each challenger serves; the champion has the rest.
        horizon: event time after which the champion stays, if none was shown better.
    """

    split: float = 0.5
    horizon: str = "14d"


@renamed()
@dataclass(frozen=True, slots=True, kw_only=True)
class Interleave(_Judged):
    """For rankings: lists are drafted from those of both models, and choices are counted.

    Every choice on an interleaved list compares both models, and neither has the better places
    (`models.rollout.interleaving`): it takes far fewer choices than to compare lists of different
    visitors. The loss of a list is 1 for the model whose entry was not chosen first, so that there
    is no ``loss``, ``comparison`` or ``clip`` to declare. One challenger at a time, in the order of
    their declaration.

    Attributes:
        split: share of the keys whose lists are interleaved; the others have the champion's.
        horizon: event time after which the champion stays, if the challenger was not shown better.
    """

    split: float = 1.0
    horizon: str = "14d"


@renamed()
@dataclass(frozen=True, slots=True, kw_only=True)
class Bandit(_Judged):
    """Each event is served by the arm that a River bandit policy pulls; nobody is promoted.

    It is told the reward of each label, `1 - loss / bound`, of the arm that served; one that counts
    successes (`ThompsonSampling` with `proba.Beta`) whether that is 0.5 or more.

    Attributes:
        policy: of `river.bandit`: `EpsilonGreedy`, `UCB`, `ThompsonSampling`, `Exp3`, …
    """

    policy: RiverPolicy


Policy = Shadow | Canary | ABTest | Interleave | Bandit

AUC: Final = "auc"
"""In place of a loss: no mean over labels, but over windows of them."""

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


def loss_of(policy: Policy, task: Task) -> str:
    """The loss of each label by which models are compared, or that guardrails look at.

    Raises:
        DeclarationError: the task has no such loss.

    >>> loss_of(Shadow(), Task.BINARY), loss_of(Shadow(loss="logloss"), Task.BINARY)
    ('brier', 'logloss')
    """
    named = None if policy.loss == AUC else policy.loss
    return check_loss(task, named or _DEFAULT_LOSS[task])


def bound_of(task: Task, loss: str) -> float | None:
    """What the loss can be at most; None: it has no bound."""
    return _BOUNDS.get((task, loss))


def described(policy: Policy) -> str:
    """A text that is the same for policies that say the same."""
    said = [f"{each.name}={_said(getattr(policy, each.name))}" for each in fields(policy)]
    return f"{type(policy).__name__}({', '.join(said)})"


def _said(value: Any) -> str:
    if isinstance(value, RiverPolicy):
        return describe(value)
    return repr(list(value) if isinstance(value, tuple) else value)


def clip_of(policy: Policy, task: Task) -> float | None:
    """At what differences of the loss are clipped; None: that is learned."""
    return policy.clip or bound_of(task, loss_of(policy, task))


def reward_unit(policy: Policy, task: Task) -> float:
    """The loss that is a bandit's reward of 0."""
    bound = bound_of(task, loss_of(policy, task))
    return policy.clip or bound or 1.0


def rewarded(policy: RiverPolicy, reward: float) -> float | bool:
    """A reward in [0, 1], as a bandit takes it."""
    binary = isinstance(policy.reward_obj, BinaryDistribution)
    return reward >= 0.5 if binary else reward


def check_policy(policy: Any, task: Task, challengers: int, where: str) -> None:
    """Refuse a policy that can't be followed.

    Raises:
        DeclarationError: in one sentence.
    """
    if not isinstance(policy, Policy):
        raise DeclarationError(
            f"rollout={policy!r} of {where} is none: use Shadow(), Canary(…), ABTest(…), "
            "Interleave(…) or Bandit(…)"
        )
    name = type(policy).__name__
    loss = loss_of(policy, task)
    if policy.loss == AUC:
        _check_auc(policy, task, f"{name} of {where}")
    if not _is_number(policy.alpha) or not 0 < policy.alpha < 0.5:
        raise DeclarationError(f"alpha={policy.alpha!r} of {name} of {where}: give one in (0, 0.5)")
    if policy.comparison not in ("paired", "unpaired"):
        raise DeclarationError(
            f"comparison={policy.comparison!r} of {name} of {where}: give 'paired' or 'unpaired'"
        )
    if policy.clip is not None and not (_is_number(policy.clip) and policy.clip > 0):
        raise DeclarationError(f"clip={policy.clip!r} of {name} of {where} must be above 0")
    if not (_is_number(policy.min_effect) and 0 <= policy.min_effect < 1):
        raise DeclarationError(
            f"min_effect={policy.min_effect!r} of {name} of {where} must be a share of the "
            "champion's loss, in [0, 1)"
        )
    if (
        isinstance(policy.report_every, bool)
        or not isinstance(policy.report_every, int)
        or policy.report_every < 1
    ):
        raise DeclarationError(
            f"report_every={policy.report_every!r} of {name} of {where} must be 1 or more"
        )
    _check_guardrails(policy.guardrails, f"{name} of {where}")
    if isinstance(policy, Canary):
        _check_canary(policy, f"{name} of {where}")
    elif isinstance(policy, ABTest):
        _check_test(policy, challengers, f"{name} of {where}")
    elif isinstance(policy, Interleave):
        _check_interleave(policy, f"{name} of {where}")
    elif isinstance(policy, Bandit):
        _check_bandit(policy, bound_of(task, loss), f"{name} of {where}")
        if policy.comparison != "paired":
            raise DeclarationError(
                f"comparison='unpaired' of {name} of {where}: a bandit compares paired"
            )


def _check_auc(policy: Policy, task: Task, where: str) -> None:
    if task is not Task.BINARY:
        raise DeclarationError(f"loss='auc' of {where} is for labels that are true or false")
    if policy.comparison != "paired" or isinstance(policy, Interleave | Bandit):
        raise DeclarationError(
            f"loss='auc' of {where} compares both models on the same labels: leave out "
            "comparison=, and use Shadow, Canary or ABTest"
        )
    if (
        isinstance(policy.auc_window, bool)
        or not isinstance(policy.auc_window, int)
        or policy.auc_window < 2
    ):
        raise DeclarationError(
            f"auc_window={policy.auc_window!r} of {where} must be 2 or more labels"
        )


def _check_guardrails(rails: Guardrails, where: str) -> None:
    if not (_is_number(rails.error_rate) and 0 <= rails.error_rate < 1):
        raise DeclarationError(
            f"error_rate={rails.error_rate!r} in {where} must be a share in [0, 1)"
        )
    if not (_is_number(rails.loss_ratio) and rails.loss_ratio > 1):
        raise DeclarationError(f"loss_ratio={rails.loss_ratio!r} in {where} must be above 1")
    for what, value in (("psi", rails.psi), ("latency_us", rails.latency_us)):
        if value is not None and not (_is_number(value) and value > 0):
            raise DeclarationError(f"{what}={value!r} in {where} must be above 0, or None")


def _check_canary(policy: Canary, where: str) -> None:
    steps = list(policy.steps)
    rising = all(a < b for a, b in zip([0.0, *steps], steps, strict=False))
    if not steps or not all(map(_is_number, steps)) or not rising or steps[-1] > 1:
        raise DeclarationError(
            f"steps={policy.steps!r} of {where} must be growing shares, above 0 and up to 1"
        )
    parse_duration_ms(policy.min_duration)
    if isinstance(policy.min_labels, bool) or not isinstance(policy.min_labels, int):
        raise DeclarationError(f"min_labels={policy.min_labels!r} of {where} must be an integer")


def _check_test(policy: ABTest, challengers: int, where: str) -> None:
    most = 1 / max(challengers, 1)
    if not (_is_number(policy.split) and 0 < policy.split <= most) or policy.split == 1:
        raise DeclarationError(
            f"split={policy.split!r} of {where}: each challenger takes that share of the keys, so "
            f"with {challengers} of them it must be above 0 and at most {most:.3g}, and below 1"
        )
    parse_duration_ms(policy.horizon)


def _check_interleave(policy: Interleave, where: str) -> None:
    for name, usual in (("loss", None), ("comparison", "paired"), ("clip", None)):
        if (given := getattr(policy, name)) != usual:
            raise DeclarationError(
                f"{name}={given!r} of {where}: interleaved lists are judged by what was chosen; "
                "leave it out"
            )
    if not (_is_number(policy.split) and 0 < policy.split <= 1):
        raise DeclarationError(
            f"split={policy.split!r} of {where} must be a share of the keys, above 0 and up to 1"
        )
    parse_duration_ms(policy.horizon)


def _check_bandit(policy: Bandit, bound: float | None, where: str) -> None:
    if not isinstance(policy.policy, RiverPolicy):
        raise DeclarationError(
            f"policy={policy.policy!r} of {where} is none of river.bandit: give an object, such as "
            "bandit.EpsilonGreedy(epsilon=0.1, seed=1)"
        )
    seed = getattr(policy.policy, "seed", 0)
    if seed is None:
        raise DeclarationError(
            f"{type(policy.policy).__name__} in {where} has no seed, so that a replay would pull "
            "other arms: give seed="
        )
    try:
        trial = policy.policy.clone()
        trial.update(trial.pull(["a", "b"]), rewarded(trial, 0.5))  # type: ignore[no-untyped-call]
    except Exception as error:
        raise DeclarationError(
            f"{type(policy.policy).__name__} in {where} can't be used: {type(error).__name__}: "
            f"{error}"
        ) from error
    if bound is None and policy.clip is None:
        raise DeclarationError(f"{where} needs clip=, by which a loss becomes a reward")


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)
