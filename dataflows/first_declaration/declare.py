"""Makes a first declaration of a sample of events, and one of labels."""

from __future__ import annotations

from anabranch.dataflows.first_declaration.fields import SampledField, sampled_fields
from anabranch.dataflows.first_declaration.roles import (
    Roles,
    TimeField,
    could_be_id,
    event_roles,
    find_id,
    find_time,
    is_key_name,
    only_target,
)
from anabranch.dataflows.first_declaration.samples import Fields
from anabranch.dataflows.first_declaration.source_code import (
    Labels,
    Written,
    timeout_for,
    write_declaration,
)
from anabranch.state.errors import InputError

_DEFAULT_TIMEOUT = "7d"
_LEAST_OVERLAP = 0.05


def declare(name: str, events: Fields, labels: Fields | None) -> tuple[Written, Roles]:
    """The declaration of a pipeline of this name, and what the fields of its events are.

    Raises:
        InputError: the messages have no time, or the labels nothing to join or to learn.
    """
    fields = sampled_fields(events.messages, events.typed, events.nullable)
    beside = sampled_fields(events.top)
    if labels is None:
        roles = event_roles(fields, beside, events.source)
        return write_declaration(name, events, fields, roles, None), roles
    own = sampled_fields(labels.messages, labels.typed, labels.nullable)
    event_id, label_id = _join(fields, own, events, labels)
    roles = event_roles(fields, beside, events.source, inline=False, id=event_id)
    joined = _labels(labels, own, label_id, roles)
    return write_declaration(name, events, fields, roles, joined), roles


def _join(
    events: list[SampledField], labels: list[SampledField], sample: Fields, of_labels: Fields
) -> tuple[SampledField, SampledField]:
    """The field by which labels find their events, in both."""
    best, most = None, _LEAST_OVERLAP
    for event in filter(could_be_id, events):
        for label in labels:
            if not label.always or label.type.annotation not in ("int", "str"):
                continue
            common = sum(count for value, count in label.counts.items() if value in event.counts)
            share = common / len(label.values) + 0.01 * (event.name == label.name)
            share += 0.01 * is_key_name(event)
            if common and share > most:
                best, most = (event, label), share
    if best is not None:
        return best
    event_id = find_id(events)  # the labels of the sample may be of other events
    if event_id is not None:
        same = [each for each in labels if each.always and each.name == event_id.name]
        found = same[0] if same else find_id(labels)
        if found is not None:
            return event_id, found
    raise InputError(
        f"no field of {of_labels.source} has the ids of {sample.source}: labels are joined by a "
        "field that no two events have the same"
    )


def _labels(
    sample: Fields, fields: list[SampledField], label_id: SampledField, roles: Roles
) -> Labels:
    rest = [each for each in fields if each is not label_id]
    time = find_time(rest, sampled_fields(sample.top), sample.source)
    target = only_target([each for each in rest if each is not time.field])
    if target is None:
        raise InputError(
            f"no field of {sample.source} can be learned: a label has a field that is true or "
            "false, a number, or one of a few texts"
        )
    return Labels(sample, fields, label_id, time, target, _timeout(label_id, time, roles))


def _timeout(label_id: SampledField, time: TimeField, roles: Roles) -> str:
    """A timeout within which the labels of the sample come, twice over."""
    assert roles.id is not None
    ids, of_events = roles.id, roles.time.field.times_ms(roles.time.unit)
    known = dict(zip(map(str, ids.values), of_events, strict=True))
    of_labels = time.field.times_ms(time.unit)
    delays = [
        at - known[name]
        for name, at in zip(map(str, label_id.values), of_labels, strict=True)
        if name in known
    ]
    return timeout_for(max(delays)) if delays else _DEFAULT_TIMEOUT
