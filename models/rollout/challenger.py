"""A challenger with its training: how it is warmed up, and how many labels it learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from anabranch.models.learners.learner import Learner
from anabranch.state.errors import DeclarationError
from anabranch.state.renamed import renamed

TRIGGERS = ("loss", "feature", "keys", "missing", "label")
"""The kinds of drift that can start a challenger."""

MAX_WARMUP_ROWS = 100_000
"""The most labelled rows that can be kept to warm up a new model."""


@renamed(fresh="model", warm="warmup_rows", grace="burn_in", learn="sample_rate", after="triggers")
@dataclass(frozen=True, slots=True, kw_only=True)
class Challenger:
    """A model that competes with the champion, declared with how it is trained.

    As ``on_drift=`` of a pipeline: when a monitor signals drift (by default one on the loss: the
    champion has become worse), an untrained copy of ``model`` learns the last ``warmup_rows``
    labelled rows, and competes in shadow from then on, as every challenger does; it is promoted by
    the same evidence. While one competes, no other is started.

    Attributes:
        model: a River model; each start takes an untrained clone of it.
        warmup_rows: how many of the last labelled rows it learns at once, in their order, when
            drift starts it; 0: none. They are kept in the state: a float64 per feature and row.
        burn_in: labels that it learns before it is compared: an untrained model would soon be shown
            to be worse.
        sample_rate: share of the labels that it learns, for a model that is expensive to train.
        triggers: the kinds of drift that start it: "loss"; "feature", of monitors or of
            ``distributions=``; of the latter "keys", "missing" and "label" too.

    >>> from river import linear_model
    >>> Challenger(model=linear_model.LogisticRegression(), sample_rate=0.1).warmup_rows
    500
    """

    model: Any
    warmup_rows: int = 500
    burn_in: int = 0
    sample_rate: float = 1.0
    triggers: Sequence[str] = ("loss",)

    def problem(self) -> str | None:
        """What is wrong with the parameters, the model apart, in a clause; None if nothing is."""
        for name in ("warmup_rows", "burn_in"):
            count = getattr(self, name)
            if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                return f"{name}={count!r} must be 0 or more labels"
        if self.warmup_rows > MAX_WARMUP_ROWS:
            return (
                f"warmup_rows={self.warmup_rows:,} is more than the {MAX_WARMUP_ROWS:,} rows that "
                "can be kept"
            )
        kinds, rate = self.triggers, self.sample_rate
        if isinstance(kinds, str) or not kinds or not set(kinds) <= set(TRIGGERS):
            return f"triggers={kinds!r} must name some of {', '.join(TRIGGERS)}"
        is_number = isinstance(rate, int | float) and not isinstance(rate, bool)
        if not is_number or not 0 < rate <= 1:
            return f"sample_rate={rate!r} must be a share of the labels, above 0 and up to 1"
        return None


@dataclass(frozen=True, slots=True)
class OnDrift:
    """A challenger that drift starts: its declaration, and a factory of its learner."""

    declared: Challenger
    make: Callable[[], Learner]

    def __post_init__(self) -> None:
        problem = self.declared.problem()
        if problem is not None:
            raise DeclarationError(f"on_drift: {problem}")
