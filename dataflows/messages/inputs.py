"""The typed messages a pipeline reads, and what it says of its labels.

A user declares an `Event` and, when labels come on a topic of their own, a `Label`. Both are
`msgspec.Struct`: fields are typed; a message that does not fit is a dead letter with the reason. A
field that the type does not know is refused too, since a misspelt optional field would otherwise
be its default for ever; declare ``class Payment(Event, forbid_unknown_fields=False)`` to let such
fields pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from anabranch.state.durations import parse_duration_ms
from anabranch.state.labels.label_rules import LabelRules
from anabranch.state.renamed import renamed

Answer = bool | int | float | str | None
"""The value of a label; None for none."""

_RENAMED = {
    "wait": "timeout",
    "otherwise": "default",
    "correct_within": "update_within",
    "early": "early_buffer",
}


class Event(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What happened: base of every event type.

    >>> class Payment(Event):
    ...     id: str
    ...     ts: int
    ...     amount: float
    """


class Label(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What an event turned out to be, said later, on a topic of its own: base of every label type.

    A label type with a field that is itself called ``target`` is declared as
    ``Delayed(Verdict, "target")``.

    >>> class Verdict(Label):
    ...     id: str
    ...     ts: int
    ...     fraud: bool
    >>> Verdict.target("fraud", timeout="7d").timeout
    '7d'
    """

    @classmethod
    @renamed(**_RENAMED)
    def target(
        cls,
        field: str,
        *,
        id: str = "id",
        time: str = "ts",
        timeout: str = "7d",
        default: Answer = None,
        late: str = "refuse",
        update_within: str = "30d",
        early_buffer: str = "10m",
    ) -> Delayed:
        """Learn ``field`` of this label type; see `Delayed`."""
        return Delayed(cls, field, id, time, timeout, default, late, update_within, early_buffer)


@renamed(**_RENAMED)
@dataclass(frozen=True, slots=True)
class Delayed:
    """Labels that arrive later, on the topic ``<pipeline>.labels``.

    All durations are event time, so a replay gives the same.

    Attributes:
        type, field: the label type, and the field of it that is learned.
        id: the field that names the event which is judged.
        time: the field that says when it was judged.
        timeout: how long a prediction is kept for its label.
        default: the label to learn when none has arrived by the timeout (no click within ten
            minutes is ``False``); None: such a prediction is dropped, and nothing is learned of it.
        late: what becomes of a label that arrives after ``default`` was learned. ``"refuse"``: a
            dead letter. ``"update"``: if it differs from what was learned, the model learns it too,
            on the features that were served; likewise a label that contradicts an earlier one. The
            prediction is scored by its first label alone.
        update_within: for how long after its first label, or its timeout, a prediction is kept for
            such updates.
        early_buffer: how long a label is buffered whose event has not arrived; it is learned right
            after its event was predicted. ``"0s"``: it is a dead letter at once.

    An id has one label: the first. A repeat is a dead letter, ``duplicate label`` or
    ``contradicting label``.
    """

    type: type[Label]
    field: str
    id: str = "id"
    time: str = "ts"
    timeout: str = "7d"
    default: Answer = None
    late: str = "refuse"
    update_within: str = "30d"
    early_buffer: str = "10m"

    def rules(self) -> LabelRules:
        """The same, in numbers."""
        updates = self.late == "update"
        return LabelRules(
            wait_ms=parse_duration_ms(self.timeout),
            correct_ms=parse_duration_ms(self.update_within) if updates else None,
            hold_ms=parse_duration_ms(self.early_buffer),
        )


@dataclass(frozen=True, slots=True)
class Inline:
    """The label is a field of the event itself: predict first, then learn from it."""

    field: str


def inline(field: str) -> Inline:
    """The event carries its own label in ``field`` (which no feature may use)."""
    return Inline(field)


class Cause(msgspec.Struct):
    """A message by its coordinates."""

    topic: str
    partition: int
    offset: int


class _FromSource:
    """What came of a message whose coordinates it carries."""

    __slots__ = ()
    topic: str
    partition: int
    offset: int

    @property
    def cause(self) -> Cause:
        """The message whose reading brought this about."""
        return Cause(self.topic, self.partition, self.offset)


class Prediction(_FromSource, msgspec.Struct, kw_only=True, omit_defaults=True):
    """One prediction on ``<pipeline>.predictions``.

    ``topic``, ``partition`` and ``offset`` are where the event was read; ``ts`` is its time (epoch
    ms). ``prediction`` is the class, the value or the anomaly score, null while the model has
    nothing to say. ``score`` is the probability of true (binary) or the anomaly score;
    ``probabilities`` are by class (multi-class). ``version`` is how many labels the model had
    learned when it predicted. ``instead_of`` is there when that is not the model that should have
    served: the one named could not.
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
    """A candidate in a `Ranking`: its score, and the model that placed it where it stands."""

    item: str
    score: float | None
    ranker: str
    features: dict[str, float] | None = None


class Ranking(msgspec.Struct):
    """One prediction of a pipeline with candidates: what to show, the best first.

    As `Prediction`; ``model`` has all rankers, joined by ``+`` where a list was interleaved.
    """

    id: str
    ts: int
    topic: str
    partition: int
    offset: int
    model: str
    version: int
    ranking: list[Ranked]


class DeadLetter(_FromSource, msgspec.Struct, kw_only=True):
    """A message that could not be used, on ``<pipeline>.dead-letters``.

    ``payload`` is the message as text where it is UTF-8, else ``payload_base64`` holds its bytes.
    ``reason`` is a short stable word for counting, ``detail`` the sentence for people. ``given_up``
    is there for a message that was kept for a while: it is the one at which that ended.
    """

    topic: str
    partition: int
    offset: int
    reason: str
    detail: str
    payload: str | None = None
    payload_base64: str | None = None
    given_up: Cause | msgspec.UnsetType = msgspec.UNSET

    @property
    def cause(self) -> Cause:
        """The message whose reading brought this about."""
        given_up = self.given_up
        if given_up is msgspec.UNSET:
            return Cause(self.topic, self.partition, self.offset)
        return given_up


class Moved(msgspec.Struct):
    """A bin of a distribution: its share of the reference, and now."""

    bin: str
    expected: float
    observed: float


class DriftSignal(_FromSource, msgspec.Struct, kw_only=True):
    """A change that a monitor saw, on ``<pipeline>.drift``.

    ``subject`` is what changed, of the ``kind`` loss, feature, keys, prediction, label,
    calibration, feedback, missing or invalid; ``ts`` when in event time, ``statistic`` the
    detector's figures then; the source coordinates are those of the message it saw last. The
    ``severity`` of a loss is drift where it has grown, and resolved where it has fallen. Of a
    distribution, ``severity`` is warning, drift or resolved, ``began`` when it began to be shifted
    (epoch ms), ``reference`` what it is compared with, and ``top`` the bins that moved the most.
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
    """How two models compare so far; the fields are those of `models.rollout.decision.Evidence`.

    A figure that there is not yet is null.
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


class RolloutMessage(_FromSource, msgspec.Struct, kw_only=True):
    """What was decided about a rollout, on ``<pipeline>.rollouts``.

    The fields are those of `models.rollout.decision.Decision`; ``ts`` is its event time (epoch
    ms). The
    source coordinates are those of the label, event or control message that brought it about.
    ``answers`` is the id of that control message, ``by`` who sent it; of a decision that nobody
    asked for, both are left out. ``share`` is null under a bandit, which has none.
    """

    pipeline: str
    action: str
    rollout: str
    challenger: str
    champion: str
    share: float | None
    why: str
    ts: int
    policy: str
    evidence: ComparedModels | None
    guardrails: dict[str, float | None]
    topic: str
    partition: int
    offset: int
    answers: str | msgspec.UnsetType = msgspec.UNSET
    by: str | msgspec.UnsetType = msgspec.UNSET


def field_types(message: type[msgspec.Struct]) -> dict[str, Any]:
    """Field name → annotated type, in order of declaration."""
    return {field.name: field.type for field in msgspec.structs.fields(message)}
