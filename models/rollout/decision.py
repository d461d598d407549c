"""What was decided about a rollout, with all that it was decided on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

STARTED: Final = "started"
STEPPED: Final = "stepped"
PROMOTED: Final = "promoted"
ROLLED_BACK: Final = "rolled_back"
GIVEN_UP: Final = "given_up"
ENDED: Final = "ended"
PROGRESS: Final = "progress"
PAUSED: Final = "paused"
RESUMED: Final = "resumed"
TRAFFIC: Final = "traffic_set"
ADDED: Final = "added"
REMOVED: Final = "removed"
REFUSED: Final = "refused"
CHAMPION_FAILED: Final = "champion_failed"

ACTIONS: Final = {
    STARTED: "a challenger is tried from now on",
    STEPPED: "it serves a larger share from now on",
    PROMOTED: "it is the champion from now on",
    ROLLED_BACK: "it serves nobody from now on: a guardrail was breached, or somebody said so",
    GIVEN_UP: "it can't reach the smallest improvement that is worth a change: futile",
    ENDED: "the horizon came before it was shown to be better: the champion stays",
    PROGRESS: "nothing is decided: how far the evidence is",
    PAUSED: "it keeps its share, and nothing is decided until it goes on",
    RESUMED: "it goes on",
    TRAFFIC: "somebody set its share",
    ADDED: "a challenger was added to those that wait",
    REMOVED: "a challenger was taken away",
    REFUSED: "a control message could not be followed",
    CHAMPION_FAILED: "the champion could not answer; what stands in for it served",
}
"""What each action means, as a sentence's end."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """How two models compare so far; losses are those that the policy names.

    Attributes:
        labels: that both, or either (`comparison="unpaired"`), were judged by.
        served: labels of events that the challenger served.
        champion_loss, challenger_loss: means; NaN before the first label.
        difference: champion's minus challenger's, of clipped losses: above 0, the challenger is
            better.
        low, high: bounds of its mean at confidence 1 - alpha, valid at all times at once.
        e_value: evidence that the challenger is better; at `1 / alpha` it is promoted.
        e_worse: evidence that it is worse.
        alpha: of the promotion.
    """

    labels: int
    served: int
    champion_loss: float
    challenger_loss: float
    difference: float
    low: float
    high: float
    e_value: float
    e_worse: float
    alpha: float


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision.

    Attributes:
        action: one of `ACTIONS`.
        rollout: its name, which no other rollout of the pipeline has had.
        challenger: whom it is about; empty where there is none.
        champion: who leads after it.
        share: of the keys that the challenger serves after it.
        why: a sentence.
        time: event time, ms: of the label or event that brought it about.
        step: index of the step, in the call that found it, after which it holds; -1: before all.
        evidence: None where there was nothing to compare.
        guardrails: each one's figure, by name; those that are not looked at are left out.
        policy: the name of the one in force.
    """

    action: str
    rollout: str
    challenger: str
    champion: str
    share: float
    why: str
    time: int
    step: int
    evidence: Evidence | None
    guardrails: dict[str, float]
    policy: str
