"""Guesses what each field of a sample is for: id, time, key, label, number or category."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from anabranch.dataflows.first_declaration.fields import SampledField
from anabranch.state.errors import InputError

Task = Literal["binary", "multiclass", "regression", "anomaly"]

MOST_CATEGORIES = 12
_MOST_CLASSES = 20
_MOST_ENTITIES = 2
_MOST_NUMBERS = 12
_MOST_TEXTS = 6
_LONG = 40  # characters of a text that is no key
_MINUTE_MS, _DAY_MS = 60_000, 86_400_000

_WORDS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
_ID = {"id", "uuid", "guid", "uid", "key", "identifier", "oid"}
_ID_LAST = {*_ID, "number", "no", "nr", "code", "reference", "ref"}
_ENTITIES = {
    *("user", "customer", "client", "card", "account", "merchant", "shop", "store", "seller"),
    *("device", "sensor", "machine", "host", "ip", "session", "player", "driver", "vehicle"),
    *("station", "symbol", "ticker", "product", "item", "sku", "email", "phone", "member"),
    *("patient", "tenant", "vendor", "supplier", "subscriber", "msisdn", "iban"),
}
_TIMES = {"ts", "timestamp", "time", "datetime", "occurred", "happened", "when"}
_LIKELY_TIMES = {"at", "date", "created", "day", "on", "started", "start", "begin", "placed"}
_OTHER_TIMES = {
    *("birth", "birthday", "dob", "born", "expires", "expiry", "expiration", "until", "valid"),
    *("updated", "modified", "deleted", "due", "end", "ended", "closed", "finished", "delivery"),
    *("previous", "last", "next"),
}
_LABELS = re.compile(
    r"(is|was|has|got)?(label|target|y|class|outcome|fraud|fraudulent|churn(ed)?|click(ed)?"
    r"|convert(ed)?|conversion|return(ed)?|default(ed)?|spam|anomaly|chargeback|cancell?ed|survived"
    r"|approved|phishing|won|bought|purchased|verdict|refunded)"
)
_NAMED_CLASSES = {"class", "label", "species", "category"}


@dataclass(slots=True)
class Target:
    """What the model learns: a field, and the task that follows from its values."""

    field: SampledField
    task: Task


@dataclass(slots=True)
class TimeField:
    """The field with the time, and the unit of its numbers: ms, s, us, ns, or ``iso`` for text.

    ``beside`` is whether it is beside the fields, in the envelope.
    """

    field: SampledField
    unit: str
    beside: bool = False

    def behind_ms(self) -> int:
        """The most that a time is before the newest that precedes it."""
        newest, most = None, 0
        for time in self.field.times_ms(self.unit):
            newest = time if newest is None else max(newest, time)
            most = max(most, newest - time)
        return most

    def span_ms(self) -> int:
        times = self.field.times_ms(self.unit)
        return max(times) - min(times)


@dataclass(slots=True)
class Roles:
    """What the fields of events are for; a field that is in none of them is left out.

    Attributes:
        time: with the event's time.
        id: that tells events apart; None if none does.
        entities: by which windows are made, the likeliest first; the first is the key.
        numbers, categories, hashed: what features are made of.
        label: an inline label; None without one.
    """

    time: TimeField
    id: SampledField | None
    entities: list[SampledField]
    numbers: list[SampledField] = field(default_factory=list)
    categories: list[SampledField] = field(default_factory=list)
    hashed: list[SampledField] = field(default_factory=list)
    label: Target | None = None

    @property
    def used(self) -> list[SampledField]:
        """All of them that are beside no envelope, each once."""
        label = [] if self.label is None else [self.label.field]
        first = [] if self.id is None else [self.id]
        time = [] if self.time.beside else [self.time.field]
        features = [*self.entities, *self.numbers, *self.categories, *self.hashed]
        return list(dict.fromkeys([*first, *time, *features, *label]))


def words_of(name: str) -> list[str]:
    """The words in a name.

    >>> words_of("createdAt"), words_of("IP_address"), words_of("order-id2")
    (['created', 'at'], ['ip', 'address'], ['order', 'id', '2'])
    """
    return [word.lower() for word in _WORDS.findall(name)]


def event_roles(
    fields: Sequence[SampledField],
    beside: Sequence[SampledField],
    source: str,
    *,
    inline: bool = True,
    id: SampledField | None = None,
) -> Roles:
    """What the fields of events are for.

    Args:
        fields: the fields.
        beside: those of the envelope.
        source: for the error.
        inline: whether one of them may be the label.
        id: the id, where it is known.

    Raises:
        InputError: no field could be the time.
    """
    time = find_time(fields, beside, source)
    rest = [each for each in fields if each is not time.field and not each.is_constant]
    label = find_target([each for each in rest if each is not id]) if inline else None
    if label is None and inline:  # of a rare class, the sample may have none
        named = [each for each in fields if each.is_constant and is_label_name(each)]
        label = find_target(named)
    rest = [each for each in rest if label is None or each is not label.field]
    name = find_id(rest) if id is None else id
    rest = [each for each in rest if each is not name]
    roles = Roles(time, name, _entities(rest), label=label)
    for each in rest:
        if each in roles.entities or not each.values or each.time_unit == "iso":
            continue
        kind, numbers = each.type.kind, each.numbers
        if is_key_name(each) and kind != "boolean" and each.type.annotation != "float":
            _add_text(roles, each)
        elif kind == "boolean" or (kind == "number" and numbers is not None):
            if each.time_unit is None and len(roles.numbers) < _MOST_NUMBERS:
                roles.numbers.append(each)
        elif kind == "text":
            _add_text(roles, each)
    return roles


def find_time(
    fields: Sequence[SampledField], beside: Sequence[SampledField], source: str
) -> TimeField:
    """The field with the time at which a message's event happened.

    Raises:
        InputError: there is none.
    """
    best, most = None, 0.0
    for among, is_beside in ((fields, False), (beside, True)):
        for each in among:
            score = _time_score(each) - is_beside
            if score > most:
                assert each.time_unit is not None
                best, most = TimeField(each, each.time_unit, is_beside), score
    if best is None:
        names = ", ".join(each.path for each in fields[:20])
        raise InputError(
            f"no field of {source} is a time of 1990 to 2099 in every message, as ISO-8601 text or "
            f"as a number since 1970: it has {names}"
        )
    return best


def _time_score(each: SampledField) -> float:
    """How likely it is the time; 0: it is not."""
    if not each.always or each.type.kind == "other" or each.type.kind == "boolean":
        return 0.0
    unit = each.time_unit
    if unit is None:
        return 0.0
    words = set(words_of(each.name))
    score = 3.0 * bool(words & _TIMES) or 2.0 * bool(words & _LIKELY_TIMES)
    score += 0.5 * (unit == "iso")
    times = each.times_ms(unit)
    ordered = sum(a <= b for a, b in pairwise(times)) / max(len(times) - 1, 1)
    varies = len(each.counts) > 1 or each.total == 1
    score += 1.5 * (ordered > 0.9 and varies)
    if words & _OTHER_TIMES:
        score -= 2.5
    if words & _ID and unit != "iso":
        score -= 2.0
    if all(time % _DAY_MS == 0 for time in times):
        score -= 0.75
    if not varies:
        score -= 1.0
    return max(score - 0.1 * len(each.steps), 0.0)


def find_id(fields: Sequence[SampledField]) -> SampledField | None:
    """The field that tells messages apart; None if none does."""
    found = [(score, each) for each in fields if (score := _id_score(each)) > 0]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def could_be_id(each: SampledField) -> bool:
    """Whether every message has it, as text or a whole number, and no two the same."""
    whole = each.type.annotation in ("int", "str") and each.type.kind != "other"
    return each.always and whole and each.is_unique


def _id_score(each: SampledField) -> float:
    if not could_be_id(each):
        return 0.0
    words = words_of(each.name)
    score = 0.0
    if each.name.lower() in _ID:
        score = 4.0
    elif words and words[-1] in _ID:
        score = 3.0
    elif words and words[-1] in _ID_LAST:
        score = 2.0
    elif all(isinstance(v, str) and re.fullmatch(r"[0-9a-fA-F-]{32,36}", v) for v in each.values):
        score = 1.5
    return score - 0.3 * (len(each.steps) - 1) if score else 0.0


def is_key_name(each: SampledField) -> bool:
    """Whether its name is that of something which messages are about."""
    words = words_of(each.name)
    return bool(words) and (words[-1] in _ID_LAST or words[-1] in _ENTITIES)


def _entities(fields: Sequence[SampledField]) -> list[SampledField]:
    """The fields by which windows can be made, the likeliest first."""
    scored = []
    for each in fields:
        if each.type.annotation not in ("int", "str") or not each.values:
            continue
        distinct, named = len(each.counts), is_key_name(each)
        repeats = len(each.values) / distinct
        if distinct < 2 or repeats < (1.05 if named else 1.5) or each.time_unit == "iso":
            continue
        if not named and (each.type.kind != "text" or distinct <= MOST_CATEGORIES):
            continue
        if max(map(len, each.counts)) > _LONG:
            continue
        scored.append((3.0 * named + min(repeats, 10) / 10 + 0.5 * each.always, each))
    scored.sort(key=lambda pair: -pair[0])
    return [each for _, each in scored[:_MOST_ENTITIES]]


def _add_text(roles: Roles, each: SampledField) -> None:
    """Add a text as a category, or hashed, if it is either."""
    if len(roles.categories) + len(roles.hashed) >= _MOST_TEXTS:
        return
    distinct = len(each.counts)
    repeats = len(each.values) / distinct
    if each.type.kind != "text" or repeats < 2 or max(map(len, each.counts)) > _LONG:
        return
    if 2 <= distinct <= MOST_CATEGORIES:
        roles.categories.append(each)
    elif each.present:
        roles.hashed.append(each)


def find_target(fields: Collection[SampledField]) -> Target | None:
    """The field that looks most like a label; None if none does."""
    named = [each for each in fields if each.always and is_label_name(each)]
    for each in named:
        task = _task(each)
        if task is not None:
            return Target(each, task)
    truths = [each for each in fields if each.always and each.type.annotation == "bool"]
    truths = [each for each in truths if each.truths == {True, False}]
    return Target(truths[0], "binary") if len(truths) == 1 else None


def only_target(fields: Sequence[SampledField]) -> Target | None:
    """As `find_target`, of a label's fields: the first that any task can learn."""
    found = find_target(fields)
    if found is not None:
        return found
    always = [each for each in fields if each.always]
    for each in [e for e in always if e.truths is not None] + always:
        task = _task(each)
        if task is not None:
            return Target(each, task)
    return None


def is_label_name(each: SampledField) -> bool:
    """Whether its name is that of an outcome."""
    return _LABELS.fullmatch("".join(words_of(each.name))) is not None


def _task(each: SampledField) -> Task | None:
    """The task for which it can be the label."""
    if each.truths is not None:
        return "binary"
    distinct, kind = len(each.counts), each.type.kind
    if kind == "text":
        return "multiclass" if distinct <= _MOST_CLASSES and len(each.values) > distinct else None
    if kind != "number" or each.numbers is None:
        return None
    is_class = words_of(each.name)[-1:] and words_of(each.name)[-1] in _NAMED_CLASSES
    if each.type.annotation == "int" and is_class and distinct <= _MOST_CLASSES:
        return "multiclass"
    return "regression"
