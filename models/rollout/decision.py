"""What was decided about a rollout, with the evidence for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

STARTED: Final = "started"
STEPPED: Final = "stepped"
PROMOTED: Final = "promoted"
ROLLED_BACK: Final = "rolled_back"
FUTILE: Final = "futile"
ENDED: Final = "ended"
PROGRESS: Final = "progress"
PAUSED: Final = "paused"
RESUMED: Final = "resumed"
TRAFFIC: Final = "traffic_set"
ADDED: Final = "added"
REMOVED: Final = "removed"
REJECTED: Final = "rejected"
CHAMPION_FAILED: Final = "champion_failed"

ACTIONS: Final = {
    STARTED: "a challenger is tried from now on",
    STEPPED: "it serves a larger share from now on",
    PROMOTED: "it is the champion from now on",
    ROLLED_BACK: "it serves no keys from now on: a guardrail was breached, or a command said so",
    FUTILE: "it can't reach the smallest improvement that is worth a change",
    ENDED: "the horizon ended before it was shown to be better: the champion stays",
    PROGRESS: "nothing is decided: a report of the evidence so far",
    PAUSED: "it keeps its share, and nothing is decided until it is resumed",
    RESUMED: "evidence decides again",
    TRAFFIC: "a command set its share",
    ADDED: "a challenger was added to those that wait",
    REMOVED: "a challenger was removed",
    REJECTED: "a control message could not be followed",
    CHAMPION_FAILED: "the champion could not predict; another model or the fallback served",
}
"""What each action means, as the end of a sentence."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """How two models compare so far; losses are those that the policy names.

    Attributes:
        labels: number of labels that compared both models, or either (`comparison="unpaired"`).
        served: number of labels of events that the challenger served.
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
    """One decision about a rollout.

    Attributes:
        action: one of `ACTIONS`.
        rollout: its name, which no other rollout of the pipeline has had.
        challenger: the model that it is about; empty where there is none.
        champion: the champion after it.
        share: share of the keys that the challenger serves after it; NaN: not by share.
        reason: a clause for people.
        time: event time, ms: of the label or event that caused it.
        step: index of the step of the batch after which it holds; -1: before all.
        evidence: None where there was nothing to compare.
        guardrails: the current value of each, by name; those that are not measured are left out.
        policy: the name of the policy in force.
    """

    action: str
    rollout: str
    challenger: str
    champion: str
    share: float
    reason: str
    time: int
    step: int
    evidence: Evidence | None
    guardrails: dict[str, float]
    policy: str
