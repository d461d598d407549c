"""A challenger with what is declared around it: how it begins, and how much it learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from anabranch.models.learners.learner import Learner
from anabranch.state.errors import DeclarationError

STARTING = ("loss", "feature", "keys", "missing", "label")
"""Kinds of drift that can start a model."""

MOST_WARM = 100_000
"""Labelled rows that can be kept for warming a fresh model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenger:
    """A model that wants to serve, or that drift calls for.

    As `on_drift` of a pipeline: whenever a monitor signals drift, by default one on the loss, that
    the champion has become worse, a copy of ``fresh`` that knows nothing learns the last ``warm``
    labelled rows, and is tried in shadow from then on, as every challenger is; the ordinary
    evidence promotes it. While one is tried, no other is started.

    Attributes:
        fresh: a River model; each start takes a clone of it.
        warm: so many of the last labelled rows it learns at once, in their order, when drift starts
            it; 0: none. They wait in the state: a float64 per feature and row.
        grace: so many labels it learns before it is judged: one that knows little is soon shown to
            be worse.
        learn: share of the labels that it learns, for a model that is dear to teach.
        after: the kinds of drift that start it: "loss"; "feature", of monitors or of
            `distributions=`; of the latter "keys", "missing" and "label" too.

    >>> from river import linear_model
    >>> Challenger(fresh=linear_model.LogisticRegression(), warm=200).learn
    1.0
    """

    fresh: Any
    warm: int = 500
    grace: int = 0
    learn: float = 1.0
    after: Sequence[str] = ("loss",)

    def fault(self) -> str | None:
        """What is wrong with it, the model aside, as a sentence's beginning; None: nothing."""
        for what, count in (("warm", self.warm), ("grace", self.grace)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                return f"{what}={count!r} must be 0 or more labels"
        if self.warm > MOST_WARM:
            return f"warm={self.warm:,} is more than the {MOST_WARM:,} rows that can be kept"
        if isinstance(self.after, str) or not self.after or not set(self.after) <= set(STARTING):
            return f"after={self.after!r} must name some of {', '.join(STARTING)}"
        is_number = isinstance(self.learn, int | float) and not isinstance(self.learn, bool)
        if not is_number or not 0 < self.learn <= 1:
            return f"learn={self.learn!r} must be a share of the labels, above 0 and up to 1"
        return None


@dataclass(frozen=True, slots=True)
class OnDrift:
    """What drift starts: the declaration, and how to make a learner of it."""

    declared: Challenger
    make: Callable[[], Learner]

    def __post_init__(self) -> None:
        fault = self.declared.fault()
        if fault is not None:
            raise DeclarationError(f"on_drift: {fault}")
