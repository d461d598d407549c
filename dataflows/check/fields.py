"""Which fields of a sample fit their type, which do not and why, and which are unknown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, get_args

import msgspec

from anabranch.dataflows.check.sample import Sample
from anabranch.dataflows.codec import Codec
from anabranch.dataflows.declaration.casts import join_texts, text_of
from anabranch.dataflows.declaration.shape import CAST, Path, Shape, ShapeField, without_cast
from anabranch.dataflows.messages.similar_names import similar_name

_AT = re.compile(r" - at `\$[^`]*`$")
_SHOWN = 80
MISSING = "it is not there"


@dataclass(slots=True)
class Misfit:
    """Values of a field that do not fit, for one reason.

    Attributes:
        why: the decoder's reason.
        count: how many.
        example: the first such value, as JSON; empty if there is none.
        place: where it is.
        castable: how many of them would fit if the field were declared as `Cast`.
    """

    why: str
    count: int
    example: str
    place: str
    castable: int = 0


@dataclass(slots=True)
class FieldFit:
    """How the values of a declared field fit its type.

    Attributes:
        name: the field's name in messages.
        type: its annotation.
        required: whether every message must have it.
        present, nulls: how many messages have it, and how many of these have null in it.
        example: a value that fits, as JSON.
        misfits: what does not fit.
        similar: a field that is not declared, and is probably this one.
    """

    name: str
    type: str
    required: bool
    present: int = 0
    nulls: int = 0
    example: str = ""
    misfits: list[Misfit] = field(default_factory=list)
    similar: str | None = None


@dataclass(slots=True)
class UnknownField:
    """A field of messages that their type does not have; attributes as those of `Misfit`.

    ``similar`` is a declared field that the messages lack and that is probably this one.
    """

    name: str
    count: int
    example: str
    place: str
    similar: str | None = None


@dataclass(slots=True)
class FieldsReport:
    """The fields of a sample's messages.

    Attributes:
        type: name of the message type.
        fields: the declared fields.
        unknown: the others.
        refused: whether a message with an unknown field is a dead letter.
    """

    type: str
    fields: list[FieldFit]
    unknown: list[UnknownField]
    refused: bool


def check_fields(
    codec: Codec, message: type[msgspec.Struct], time: str, sample: Sample
) -> FieldsReport:
    """Decode each field of each message on its own, by the codec that decodes all of it.

    Args:
        codec: of the topic.
        message: the type of its messages.
        time: the field with the time, which takes numbers and text.
        sample: the messages; those that are no object are left out.
    """
    shape = Shape.of(message)
    declared = {each.name: each for each in msgspec.structs.fields(message)}
    checks = [
        _FieldCheck(codec, declared[each.name], each, each.name == time)
        for each in shape.fields
        if each.paths  # others are not in the payload
    ]
    unknown: dict[str, UnknownField] = {}
    decode_any, decode_whole = codec.decoder(dict), codec.whole_decoder()
    from_top = any(check.from_top for check in checks)
    for row, value in enumerate(sample.values):
        try:
            found: dict[str, Any] = decode_any(value)
        except codec.errors:
            continue
        whole = decode_whole(value) if from_top else found
        for check in checks:
            check.add(value, whole if check.from_top else found, sample, row)
        for name, example in shape.unknown(found).items():
            each = unknown.setdefault(name, UnknownField(name, 0, shown(example), ""))
            each.count += 1
            each.place = each.place or sample.place(row)
    fits = [check.result for check in checks]
    _suggest(fits, unknown)
    return FieldsReport(
        message.__name__,
        fits,
        sorted(unknown.values(), key=lambda each: -each.count),
        shape.forbids_unknown,
    )


class _FieldCheck:
    """Collects how the values of one field fit."""

    def __init__(
        self, codec: Codec, declared: msgspec.structs.FieldInfo, place: ShapeField, is_time: bool
    ) -> None:
        annotation: Any = declared.type
        if is_time:
            annotation = int | float | str
            annotation = Annotated[annotation, CAST] if place.cast else annotation
        name = column_name(place)
        self.result = FieldFit(name, type_text(declared.type), declared.required)
        default = msgspec.NODEFAULT if declared.required else None
        field = msgspec.field(name=declared.encode_name, default=default)
        one = msgspec.defstruct("One", [(declared.name, annotation, field)])
        self._decode: Callable[[bytes], Any] = codec.decoder(one)
        self._decode_cast: Callable[[bytes], Any] | None = None
        if not place.cast and not is_time:
            field = msgspec.field(name=declared.encode_name, default=default)
            cast = msgspec.defstruct("One", [(declared.name, Annotated[annotation, CAST], field)])
            self._decode_cast = codec.decoder(cast)
        self._errors = codec.errors
        self._misfits: dict[str, Misfit] = {}
        self._paths = place.paths
        self.from_top = place.place.startswith("$.")

    def add(self, message: bytes, found: dict[str, Any], sample: Sample, row: int) -> None:
        values = [_value(found, path) for path in self._paths]
        is_there = all(there for there, _ in values)
        value = values[0][1] if len(values) == 1 else [each for _, each in values]
        result = self.result
        result.present += is_there
        result.nulls += is_there and value is None
        try:
            self._decode(message)
        except self._errors as error:
            why = _reason(str(error)) if is_there else MISSING
            example = shown(value) if is_there else ""
            misfit = self._misfits.get(why)
            if misfit is None:
                misfit = self._misfits[why] = Misfit(why, 0, example, sample.place(row))
                result.misfits.append(misfit)
            misfit.count += 1
            misfit.castable += is_there and self._is_castable(message)
        else:
            if not result.example and is_there and value is not None:
                result.example = shown(value)

    def _is_castable(self, message: bytes) -> bool:
        if self._decode_cast is None:
            return False
        try:
            self._decode_cast(message)
        except self._errors:
            return False
        return True


def _suggest(fits: Iterable[FieldFit], unknown: dict[str, UnknownField]) -> None:
    """Pair declared fields that are nowhere with the unknown fields that they probably are."""
    for fit in fits:
        if fit.present:
            continue
        free = [name for name, each in unknown.items() if each.similar is None]
        fit.similar = similar_name(fit.name, free)
        if fit.similar is not None:
            unknown[fit.similar].similar = fit.name


def values_at(
    codec: Codec, message: type[msgspec.Struct], name: str, sample: Sample, rows: Iterable[int]
) -> list[str]:
    """The texts of a field in some messages of a sample, of those that have it."""
    place = next(each for each in Shape.of(message).fields if each.name == name)
    from_top, texts = place.place.startswith("$."), []
    decode_any = codec.whole_decoder() if from_top else codec.decoder(dict)
    for row in rows:
        try:
            found = decode_any(sample.values[row])
        except codec.errors:
            continue
        values = [_value(found, path)[1] for path in place.paths]
        if values and all(isinstance(each, str | int | float) for each in values):
            parts = [text_of(each) for each in values]
            texts.append(parts[0] if len(parts) == 1 else join_texts(parts))
    return texts


def type_text(annotation: Any) -> str:
    """An annotation as it is written in a declaration.

    >>> type_text(str | None), type_text(Annotated[float, CAST]), type_text(list[int])
    ('str | None', 'Cast[float]', 'list[int]')
    """
    if annotation is type(None):
        return "None"
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    bare, is_cast = without_cast(annotation)
    if is_cast:
        return f"Cast[{type_text(bare)}]"
    if hasattr(annotation, "__metadata__"):
        return type_text(annotation.__origin__)
    text = str(annotation).replace("typing.", "")
    if text.startswith("Optional["):
        return f"{type_text(get_args(annotation)[0])} | None"
    return text


def shown(value: Any) -> str:
    """A value as JSON, not too long."""
    try:
        text = msgspec.json.encode(value).decode()
    except (TypeError, ValueError, OverflowError, RecursionError):
        text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _reason(error: str) -> str:
    """The decoder's reason, without the place: that is the field."""
    text = _AT.sub("", error).replace("`", "")
    return text[:1].lower() + text[1:]


def column_name(place: ShapeField) -> str:
    """A field's place, as reports call it."""
    return " + ".join(map(str, place.paths))


def _value(found: Any, path: Path) -> tuple[bool, Any]:
    """Whether there is something at a path, and what."""
    for step in path.steps:
        if isinstance(step, int):
            if not isinstance(found, list) or not -len(found) <= step < len(found):
                return False, None
        elif not isinstance(found, dict) or step not in found:
            return False, None
        found = found[step]
    return True, found
