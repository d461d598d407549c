"""What a pipeline publishes: predictions, rankings, dead letters, drift signals, rollout messages.

Each is JSON on a topic of its own, and carries the coordinates of the message that caused it.
`dataflows.codec.output_reader` reads them as these types.
"""

from __future__ import annotations

import msgspec


class Cause(msgspec.Struct):
    """The coordinates of a message."""

    topic: str
    partition: int
    offset: int


class _Caused:
    """An output message with the coordinates of its cause in its own fields."""

    __slots__ = ()
    topic: str
    partition: int
    offset: int

    @property
    def cause(self) -> Cause:
        """The input message whose processing produced this one."""
        return Cause(self.topic, self.partition, self.offset)


class Prediction(_Caused, msgspec.Struct, kw_only=True, omit_defaults=True):
    """The prediction for one event, on ``<pipeline>.predictions``.

    Attributes:
        id: the event's id.
        ts: the event's time, epoch ms.
        topic, partition, offset: where the event was read.
        model: the model that served the prediction.
        version: how many labels that model had learned.
        prediction: the class, the value or the anomaly score; None while the model can't predict.
        score: the probability of true (binary), or the anomaly score.
        probabilities: by class (multi-class).
        features: by column, where the pipeline declares ``with_features=True``.
        instead_of: the model that should have served and failed; None in the normal case.
    """

    id: str
    ts: int
    topic: str
    partition: int
    offset: int
    model: str
    version: int
    prediction: bool | int | float | str | None
    score: float | None = None
    probabilities: dict[str, float] | None = None
    features: dict[str, float] | None = None
    instead_of: str | None = None


class Ranked(msgspec.Struct, omit_defaults=True):
    """One candidate of a `Ranking`: its score, and the model that chose its position."""

    item: str
    score: float | None
    ranker: str
    features: dict[str, float] | None = None


class Ranking(_Caused, msgspec.Struct):
    """The ranked candidates of one event, best first, on ``<pipeline>.predictions``.

    Fields are as in `Prediction`; ``model`` names all rankers, joined by ``+`` where a list was
    interleaved.
    """

    id: str
    ts: int
    topic: str
    partition: int
    offset: int
    model: str
    version: int
    ranking: list[Ranked]


class DeadLetter(_Caused, msgspec.Struct, kw_only=True):
    """A message that could not be used, on ``<pipeline>.dead-letters``.

    Attributes:
        topic, partition, offset: where the message was read.
        reason: a short stable text, for counting.
        detail: one sentence for people.
        payload: the message as text, where it is UTF-8.
        payload_base64: else its bytes.
        truncated_from: absent in the normal case. Of a message whose payload makes the dead letter
            larger than its topic takes: how many bytes the payload has; here is its beginning.
        key: absent in the normal case. Of a message without a payload (a tombstone): its key, where
            that is UTF-8.
        key_base64: absent likewise; else the key's bytes.
        given_up: of a label that was buffered for its event, the message at which it expired.
    """

    topic: str
    partition: int
    offset: int
    reason: str
    detail: str
    payload: str | None = None
    payload_base64: str | None = None
    truncated_from: int | msgspec.UnsetType = msgspec.UNSET
    key: str | msgspec.UnsetType = msgspec.UNSET
    key_base64: str | msgspec.UnsetType = msgspec.UNSET
    given_up: Cause | msgspec.UnsetType = msgspec.UNSET

    @property
    def cause(self) -> Cause:
        """The message whose processing produced this one."""
        given_up = self.given_up
        if given_up is msgspec.UNSET:
            return Cause(self.topic, self.partition, self.offset)
        return given_up


class Moved(msgspec.Struct):
    """One bin of a distribution: its share in the reference, and now."""

    bin: str
    expected: float
    observed: float


class DriftSignal(_Caused, msgspec.Struct, kw_only=True):
    """A change that a monitor detected, on ``<pipeline>.drift``.

    Attributes:
        subject: what changed.
        detector: what detected it.
        ts: when, in event time (epoch ms).
        statistic: the figures at that moment: of a detector statistic, before, after and seen; of a
            distribution statistic, p, threshold, psi, js and ks.
        topic, partition, offset: where the last message was read that the monitor saw.
        kind: loss, feature, keys, prediction, label, calibration, feedback, missing or invalid.
        severity: of a loss, drift where it has grown and resolved where it has fallen; of a
            distribution, warning, drift or resolved.
        began: when a distribution began to differ (epoch ms).
        reference: what it is compared with.
        top: the bins that changed most.
    """

    pipeline: str
    subject: str
    detector: str
    ts: int
    statistic: dict[str, float]
    topic: str
    partition: int
    offset: int
    kind: str = "loss"
    severity: str = "drift"
    began: int | None = None
    reference: str | None = None
    top: list[Moved] = []


class ComparedModels(msgspec.Struct, kw_only=True):
    """How champion and challenger compare so far, as in `models.rollout.decision.Evidence`.

    A figure that does not exist yet is None.
    """

    labels: int
    served: int
    champion_loss: float | None
    challenger_loss: float | None
    difference: float | None
    low: float | None
    high: float | None
    e_value: float | None
    e_worse: float | None
    alpha: float


class RolloutMessage(_Caused, msgspec.Struct, kw_only=True):
    """A decision about a rollout, on ``<pipeline>.rollouts``.

    Fields are as in `models.rollout.decision.Decision`.

    Attributes:
        ts: the event time of the decision (epoch ms).
        share: the challenger's share of traffic; None under a bandit, which has no fixed share.
        topic, partition, offset: the label, event or control message that caused the decision.
        request_id: the id of that control message; absent when no control message caused it.
        requested_by: who sent the control message; absent likewise.
    """

    pipeline: str
    action: str
    rollout: str
    challenger: str
    champion: str
    share: float | None
    reason: str
    ts: int
    policy: str
    evidence: ComparedModels | None
    guardrails: dict[str, float | None]
    topic: str
    partition: int
    offset: int
    request_id: str | msgspec.UnsetType = msgspec.UNSET
    requested_by: str | msgspec.UnsetType = msgspec.UNSET
