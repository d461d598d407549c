"""What a pipeline reads: event and label types, and the rules by which a label meets its event.

A user declares an `Event` and, when labels arrive on a topic of their own, a `Label`. Both are
`msgspec.Struct`: fields are typed, and a message that does not fit is a dead letter with the
reason. Fields of a message that the type does not have are ignored, counted, and logged once; with
``class Payment(Event, forbid_unknown_fields=True)`` such a message is a dead letter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from anabranch.state.durations import parse_duration_ms
from anabranch.state.labels.label_limits import LabelLimits
from anabranch.state.renamed import renamed

OTHER_FIELDS = "(other)"
"""The name under which unknown fields are counted beyond those that are counted by name."""

LabelValue = bool | int | float | str | None
"""The value of a label; None without one."""

_RENAMED = {
    "wait": "timeout",
    "otherwise": "default",
    "correct_within": "update_within",
    "early": "early_buffer",
}


class Event(msgspec.Struct, kw_only=True):
    """Base of every event type.

    >>> class Payment(Event):
    ...     id: str
    ...     ts: int
    ...     amount: float
    """


class Label(msgspec.Struct, kw_only=True):
    """Base of every label type: the true outcome of an event, published later on its own topic.

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
        default: LabelValue = None,
        late: str = "refuse",
        update_within: str = "30d",
        early_buffer: str = "10m",
    ) -> Delayed:
        """Declare ``field`` of this label type as what the model learns; see `Delayed`."""
        return Delayed(cls, field, id, time, timeout, default, late, update_within, early_buffer)


@renamed(**_RENAMED)
@dataclass(frozen=True, slots=True)
class Delayed:
    """Labels that arrive later, on the topic ``<pipeline>.labels``; made by `Label.target`.

    All durations are event time, so a replay gives the same result.

    Attributes:
        type, field: the label type, and the field of it that is learned.
        id: the label's field with the id of its event.
        time: the label's field with the time at which the outcome was known.
        timeout: how long a prediction is kept for its label.
        default: the label to learn when none has arrived by the timeout (no click within ten
            minutes is ``False``); None: such a prediction is dropped, and nothing is learned of it.
        late: what is done with a label that arrives after ``default`` was learned. ``"refuse"``: it
            is a dead letter. ``"update"``: if it differs from what was learned, the model learns it
            too, on the features that were served; likewise a label that contradicts an earlier
            one. The prediction is scored by its first label alone.
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
    default: LabelValue = None
    late: str = "refuse"
    update_within: str = "30d"
    early_buffer: str = "10m"

    def rules(self) -> LabelLimits:
        """The durations in milliseconds, as the label join takes them."""
        updates = self.late == "update"
        return LabelLimits(
            timeout_ms=parse_duration_ms(self.timeout),
            update_ms=parse_duration_ms(self.update_within) if updates else None,
            early_ms=parse_duration_ms(self.early_buffer),
        )


@dataclass(frozen=True, slots=True)
class Inline:
    """The label is a field of the event itself; made by `inline`."""

    field: str


def inline(field: str) -> Inline:
    """Declare ``field`` of the event as its label: predicted first, then learned.

    No feature may use it.
    """
    return Inline(field)


def field_types(message: type[msgspec.Struct]) -> dict[str, Any]:
    """Field name → annotated type, in order of declaration."""
    return {field.name: field.type for field in msgspec.structs.fields(message)}
