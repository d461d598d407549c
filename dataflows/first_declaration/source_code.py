"""Writes the declaration of a pipeline as the text of a Python file."""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from anabranch.dataflows.first_declaration.fields import SampledField, Type
from anabranch.dataflows.first_declaration.roles import (
    Roles,
    Target,
    Task,
    TimeField,
    is_label_name,
    words_of,
)
from anabranch.dataflows.first_declaration.samples import Fields

_COORDINATES = "coordinates()"
_TAKEN = {
    # What the classes use: a field of such a name with a default would hide it.
    *("path", "coordinates", "Cast", "int", "float", "str", "bool", "Event", "Label"),
    *("target", "id_", "self"),
}
_VAGUE = {"id", "uuid", "key", "name", "value", "type", "at", "time", "number", "no", "code", "ref"}
"""Names that say little without that of the object around them."""

_MODELS: dict[Task, tuple[tuple[str, ...], str]] = {
    "binary": (
        ("linear_model", "preprocessing"),
        "preprocessing.StandardScaler() | linear_model.LogisticRegression()",
    ),
    "multiclass": (
        ("linear_model", "preprocessing"),
        "preprocessing.StandardScaler() | linear_model.SoftmaxRegression()",
    ),
    "regression": (
        ("linear_model", "preprocessing"),
        "preprocessing.StandardScaler() | linear_model.LinearRegression()",
    ),
    "anomaly": (
        ("anomaly", "preprocessing"),
        "preprocessing.MinMaxScaler() | anomaly.HalfSpaceTrees(seed=42)",
    ),
}
_WIDTH = 100
_SHOWN = 60
_MOST_COMMENTED = 40


@dataclass(slots=True)
class Labels:
    """Labels on a topic or in a file of their own.

    Attributes:
        sample: where they are from.
        fields: all of their fields.
        id, time, target: what they are for.
        timeout: how long after its event a label may come.
    """

    sample: Fields
    fields: list[SampledField]
    id: SampledField
    time: TimeField
    target: Target
    timeout: str


@dataclass(slots=True)
class Written:
    """A declaration.

    Attributes:
        text: of the file.
        names: of the fields that are declared, by field.
    """

    text: str
    names: dict[SampledField, str]


def write_declaration(
    name: str,
    sample: Fields,
    fields: Sequence[SampledField],
    roles: Roles,
    labels: Labels | None,
) -> Written:
    """The declaration of a pipeline of this name."""
    return _Writer(name, sample, fields, roles, labels).write()


class _Writer:
    def __init__(
        self,
        name: str,
        sample: Fields,
        fields: Sequence[SampledField],
        roles: Roles,
        labels: Labels | None,
    ) -> None:
        self._name, self._sample, self._fields = name, sample, fields
        self._roles, self._labels = roles, labels
        self._imports = {"Event", "Pipeline"}
        self._event = class_name(name)
        self._names: dict[SampledField, str] = {}
        taken: set[str] = set()
        time = [roles.time.field] if roles.time.beside else []
        for each in [*roles.used, *time]:
            self._names[each] = _field_name(each, taken)
        self._id = "id"
        if roles.id is not None:
            self._id = self._names[roles.id]
        elif "id" in taken:
            self._id = "event_id"
            while self._id in taken:
                self._id += "_"
        self._time = self._names[roles.time.field]
        label = roles.label if labels is None else labels.target
        self._task: Task = "anomaly" if label is None else label.task

    def write(self) -> Written:
        body = [*self._event_class()]
        if self._labels is not None:
            body += ["", "", *self._label_class(self._labels)]
        body += ["", "", *self._pipeline()]
        modules, _ = _MODELS[self._task]
        lines = [*self._docstring(), "", f"from river import {', '.join(modules)}", ""]
        names = sorted(self._imports, key=lambda each: (each[0].islower(), each))
        one_line = f"from anabranch import {', '.join(names)}"
        if len(one_line) <= _WIDTH:
            lines.append(one_line)
        else:
            lines += ["from anabranch import (", *(f"    {each}," for each in names), ")"]
        return Written("\n".join([*lines, "", "", *body]) + "\n", self._names)

    def _docstring(self) -> Iterator[str]:
        count = len(self._sample.messages)
        yield f'"""Pipeline {self._name}: a first declaration, made of {count:,} messages.'
        yield ""
        yield "What it says about the fields is a guess from that sample. Look at each line, and"
        yield "compare more messages with it: `anabranch check` says which would not fit."
        yield '"""'

    def _event_class(self) -> Iterator[str]:
        roles = self._roles
        yield f"class {self._event}(Event):"
        if roles.id is None:
            self._imports.add("coordinates")
            yield f"    {self._id}: str = {_COORDINATES}  # no field tells all messages apart"
        keys = {roles.id, *roles.entities, *roles.hashed}
        if roles.time.beside:
            self._imports.add("path")
            place = _quoted(f"$.{roles.time.field.path}")
            yield f"    {self._time}: int = path({place})  # of the envelope"
        # Fields with a default come last, as in any class.
        for each in sorted(roles.used, key=self._is_optional):
            comment = ""
            declared = self._type(each, is_key=each in keys)
            if each is roles.id:
                comment = "the id: no two of the sample have the same"
            elif each is roles.time.field:
                declared, comment = self._time_type(roles.time)
            elif roles.entities and each is roles.entities[0]:
                comment = f"{len(each.counts):,} different ones"
            elif roles.label is not None and each is roles.label.field:
                declared = self._label_type(roles.label)
                comment = "the label: it may come with the event, as no feature reads it"
            elif is_label_name(each):
                comment = "is it known when the event is published?"
            yield self._declaration(each, declared, comment)
        yield from self._left_out([each for each in self._fields if each not in roles.used])

    def _label_class(self, labels: Labels) -> Iterator[str]:
        self._imports.add("Label")
        taken: set[str] = set()
        used = list(dict.fromkeys([labels.id, labels.time.field, labels.target.field]))
        own = {each: _field_name(each, taken) for each in used}
        self._names |= own
        yield "class Outcome(Label):"
        event_id = self._roles.id
        for each in used:
            if each is labels.id:
                name = self._id if event_id is None else event_id.path
                declared = self._type(each, is_key=True)
                yield self._declaration(each, declared, f"the event's {name}")
            elif each is labels.time.field and not labels.time.beside:
                declared, comment = self._time_type(labels.time)
                yield self._declaration(each, declared, comment)
            elif each is labels.time.field:
                self._imports.add("path")
                yield f"    {own[each]}: int = path({_quoted(f'$.{each.path}')})"
            else:
                yield self._declaration(each, self._label_type(labels.target), "what is learned")
        yield from self._left_out([each for each in labels.fields if each not in used])

    def _pipeline(self) -> Iterator[str]:
        roles, labels = self._roles, self._labels
        yield "pipeline = Pipeline("
        yield f"    name={_quoted(self._name)},"
        yield from self._topics()
        yield f"    event={self._event},"
        yield from self._formats()
        if self._id != "id":
            yield f"    id={_quoted(self._id)},"
        if self._time != "ts":
            yield f"    time={_quoted(self._time)},"
        if roles.time.unit not in ("ms", "iso"):
            yield f"    time_unit={_quoted(roles.time.unit)},"
        lateness = _lateness(roles.time.behind_ms())
        if lateness is not None:
            yield f"    allowed_lateness={_quoted(lateness)},  # some of the sample are as late"
        if labels is not None:
            target = self._names[labels.target.field]
            arguments = [_quoted(target)]
            for parameter, each, default in (
                ("id", labels.id, "id"),
                ("time", labels.time.field, "ts"),
            ):
                if self._names[each] != default:
                    arguments.append(f"{parameter}={_quoted(self._names[each])}")
            arguments.append(f"timeout={_quoted(labels.timeout)}")
            yield f"    label=Outcome.target({', '.join(arguments)}),"
        elif roles.label is not None:
            self._imports.add("inline")
            yield f"    label=inline({_quoted(self._names[roles.label.field])}),"
        else:
            yield "    # no field looks like a label, so the model looks for anomalies"
        yield "    features=["
        yield from self._features()
        yield "    ],"
        yield f"    model={_MODELS[self._task][1]},"
        yield ")"

    def _topics(self) -> Iterator[str]:
        given = []
        if not self._sample.is_file and self._sample.source != f"{self._name}.events":
            given.append(f"events={_quoted(self._sample.source)}")
        labels = None if self._labels is None else self._labels.sample
        if labels is not None and not labels.is_file and labels.source != f"{self._name}.labels":
            given.append(f"labels={_quoted(labels.source)}")
        if given:
            self._imports.add("Topics")
            yield f"    topics=Topics({', '.join(given)}),"

    def _formats(self) -> Iterator[str]:
        if self._sample.format:
            self._imports.update(self._sample.imports)
            yield f"    format={self._sample.format},"
        if self._labels is not None and self._labels.sample.format != self._sample.format:
            of_labels = self._labels.sample
            self._imports.update(of_labels.imports or ("Json",))
            yield f"    label_format={of_labels.format or 'Json()'},"

    def _features(self) -> Iterator[str]:
        roles = self._roles
        some = False
        for each in roles.numbers:
            self._imports.add("field")
            fill = ", fill_null=0.0" if self._is_optional(each) else ""
            yield f"        field({_quoted(self._names[each])}{fill}),"
            some = True
        for each in roles.categories:
            self._imports.add("one_hot")
            values = [value for value, _ in each.counts.most_common()]
            yield from _wrapped(
                f"        one_hot({_quoted(self._names[each])}, (",
                [_quoted(value) for value in values],
                ")),",
            )
            some = True
        for each in roles.hashed:
            self._imports.add("hashed")
            yield f"        hashed({_quoted(self._names[each])}, buckets=16),"
        over = _widths(roles.time.span_ms())
        measured = [each for each in roles.numbers if each.present and each.type.kind == "number"]
        for each in roles.entities:
            self._imports |= {"window", "since_last"}
            key = _quoted(self._names[each])
            for number in measured[:2]:
                value = _quoted(self._names[number])
                yield f'        window({key}, {value}, over={over}, stats=("count", "mean")),'
            if not measured:
                yield f'        window({key}, over={over}, stats=("count",)),'
            yield f'        since_last({key}, within="1d"),'
            some = True
        if len(roles.entities) > 1:
            self._imports.add("count_distinct")
            first, second = (_quoted(self._names[each]) for each in roles.entities[:2])
            if roles.entities[1].present:
                yield f'        count_distinct({first}, {second}, over="1d"),'
        if not some or roles.time.span_ms() > 3_600_000:
            self._imports.add("hour_of_day")
            yield f"        hour_of_day({_quoted(self._time)}),"

    def _type(self, each: SampledField, *, is_key: bool = False) -> Type:
        """What a field is declared as; a key whose values are not all of one type, as text."""
        found = each.type
        if not is_key or found.kind == "other":
            if found.annotation == "int":  # the next message may have 12.5
                return Type("float", found.cast, found.kind)
            return found
        if each.typed:
            return Type("str", False, "text")
        kinds = {type(value) for value in each.values}
        if found.annotation == "int" or kinds == {str}:
            return Type("str" if kinds == {str} else "int", False, "text")
        return Type("str", True, "text")

    def _time_type(self, time: TimeField) -> tuple[Type, str]:
        texts = all(isinstance(value, str) for value in time.field.values)
        if time.unit == "iso":
            return Type("int", False, "number"), "ISO-8601 text; it is read as epoch ms"
        written = "the digits of an epoch in" if texts else "epoch in"
        return Type("int", False, "number"), f"{written} {time.unit}"

    def _label_type(self, target: Target) -> Type:
        if target.task == "binary":
            native = all(isinstance(value, bool) for value in target.field.values)
            return Type("bool", not native, "boolean")
        return target.field.type

    def _declaration(self, each: SampledField, declared: Type, comment: str = "") -> str:
        name = self._names[each]
        line = f"    {name}: {self._annotated(each, declared, name)}"
        if not comment:
            return line
        one = f"{line}  # {comment}"
        return one if len(one) <= _WIDTH else f"    # {comment}\n{line}"

    def _is_optional(self, each: SampledField) -> bool:
        """Whether it is declared with a default; id, time and labels are not."""
        labels = self._labels
        required: list[SampledField | None] = [self._roles.id, self._roles.time.field]
        if self._roles.label is not None:
            required.append(self._roles.label.field)
        if labels is not None:
            required += [labels.id, labels.time.field, labels.target.field]
        return not each.present and each not in required

    def _annotated(self, each: SampledField, declared: Type, name: str) -> str:
        annotation, default = declared.annotation, ""
        if declared.cast:
            self._imports.add("Cast")
            annotation = f"Cast[{annotation}]"
        if self._is_optional(each):
            annotation += " | None"
            default = "None"
        if each.steps == (name,):
            return f"{annotation} = {default}" if default else annotation
        self._imports.add("path")
        end = f", default={default})" if default else ")"
        top = "$." if len(each.steps) == 1 else ""
        return f"{annotation} = path({_quoted(top + each.path)}{end}"

    def _left_out(self, fields: Sequence[SampledField]) -> Iterator[str]:
        """Comments about the fields that are not declared."""
        if not fields:
            return
        yield ""
        yield "    # Not read:"
        for each in fields[:_MOST_COMMENTED]:
            yield f"    # {_on_one_line(each.path)}: {_on_one_line(_why(each))}"
        if len(fields) > _MOST_COMMENTED:
            yield f"    # and {len(fields) - _MOST_COMMENTED:,} more"


def _why(each: SampledField) -> str:
    if not each.values:
        return "always null"
    example = each.example
    if each.is_constant:
        return f"always {example}"
    if each.type.annotation == "list":
        first = f"path({_quoted(f'{each.path}[0]')})"
        return f"a list, such as {example}; {first} is its first entry"
    if each.type.annotation == "object":
        return f"of several types, such as {example}"
    times = "a time, " if each.time_unit is not None else ""
    count = len(each.counts)
    values = "1 value" if count == 1 else f"{count:,} values"
    return f"{times}{each.type.annotation}, {values}, such as {example}"


def class_name(pipeline: str) -> str:
    """The name of the event type for a pipeline of this name.

    >>> class_name("prod.orders.v2"), class_name("card-payments"), class_name("event")
    ('Order', 'CardPayment', 'EventMessage')
    """
    skipped = {"prod", "dev", "test", "staging", "topic", "events", "data", "public", "dbo"}
    parts = [part for part in pipeline.split(".") if part.lower() not in skipped]
    parts = [part for part in parts if not re.fullmatch(r"v?\d+", part)] or [pipeline]
    words = [word for word in words_of(parts[-1]) if word.isalpha()] or ["message"]
    if len(words[-1]) > 3 and words[-1].endswith("s") and not words[-1].endswith("ss"):
        words[-1] = words[-1][:-1]
    name = "".join(word.capitalize() for word in words)
    clashes = {"Event", "Label", "Pipeline", "Topics", "Cast", "Outcome", "Json", "Avro"}
    clashes |= {"Debezium", "Connect", "CloudEvents", "JsonSchema"}
    return f"{name}Message" if name in clashes or keyword.iskeyword(name) else name


def _field_name(each: SampledField, taken: set[str]) -> str:
    """A name for a field in its class: its own where that can be, else of the end of its path."""
    keys = [str(step) for step in each.steps if isinstance(step, str)]
    if len(each.steps) == 1 and _usable(keys[0]) and keys[0] not in taken:
        taken.add(keys[0])
        return keys[0]
    first = 2 if len(keys) > 1 and keys[-1].lower() in _VAGUE else 1
    for count in range(first, len(keys) + 1):
        name = "_".join(words_of("_".join(keys[-count:]))) or "field"
        name = f"f_{name}" if name[0].isdigit() else name
        name = name if _usable(name) else f"{name}_"
        if name not in taken:
            break
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _usable(name: str) -> bool:
    return (
        name.isidentifier()
        and name.isascii()
        and not name.startswith("_")
        and not keyword.iskeyword(name)
        and name not in _TAKEN
    )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _on_one_line(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)


def _wrapped(start: str, items: Sequence[str], end: str) -> Iterator[str]:
    inner = f"{items[0]}," if len(items) == 1 else ", ".join(items)
    if len(start) + len(inner) + len(end) <= _WIDTH:
        yield f"{start}{inner}{end}"
        return
    yield start
    yield from (f"            {item}," for item in items)
    yield f"        {end}"


def _widths(span_ms: int) -> str:
    """Windows that a sample of this span has something in."""
    hour, day = 3_600_000, 86_400_000
    if span_ms <= 6 * hour:
        return '("1m", "10m", "1h")'
    return '("10m", "1h", "1d")' if span_ms <= 7 * day else '("1h", "1d", "30d")'


_LATENESSES = ("1h", "6h", "1d", "7d", "30d", "365d", "3650d")
_LATENESSES_MS = (3_600_000, 21_600_000, 86_400_000, 604_800_000, 2_592_000_000, 31_536_000_000)
_DEFAULT_LATENESS_MS = 600_000


def _lateness(behind_ms: int) -> str | None:
    """What to declare as `allowed_lateness`; None: the default will do."""
    if behind_ms <= _DEFAULT_LATENESS_MS:
        return None
    for text, most in zip(_LATENESSES, _LATENESSES_MS, strict=False):
        if behind_ms <= most:
            return text
    return _LATENESSES[-1]


def timeout_for(delay_ms: int) -> str:
    """A timeout of labels of which one came so long after its event.

    >>> timeout_for(40_000), timeout_for(3 * 86_400_000)
    ('1h', '7d')
    """
    for text, most in zip(_LATENESSES, _LATENESSES_MS, strict=False):
        if 2 * delay_ms <= most:
            return text
    return _LATENESSES[-1]
