"""Envelopes around the fields of messages, and conditions on which messages are taken.

An envelope is opened in one place, and what a field's path means follows from it: a message type
is read as a type derived of it, whose paths lead through the envelope (``amount`` is
``after.amount``), so that the codec of the format inside does all of the work, its fast paths
included.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.bus import UnreachableError
from anabranch.dataflows.codec.mapping import struct_maker
from anabranch.dataflows.codec.protocol import (
    Codec,
    ColumnDecoder,
    DecodedColumns,
    Filtered,
    Message,
    Undecodable,
)
from anabranch.dataflows.declaration.conditions import Condition, FieldsAre
from anabranch.dataflows.declaration.formats import CloudEvents, Connect, Debezium, Format
from anabranch.dataflows.declaration.shape import Path, Shape, split_place
from anabranch.dataflows.messages.dead_letter_reasons import DeadLetterReason
from anabranch.dataflows.messages.inputs import Event
from anabranch.models.learners.error_place import describe_error
from anabranch.state.compile import I64
from anabranch.state.errors import BusError
from anabranch.state.keys.hashing import hash64

_ADDED = "selected_by_{}"
_TOP = "$."

Prefix = tuple[str, ...]
_Form = tuple[ColumnDecoder, list[tuple[str, frozenset[int]]], frozenset[str]]
"""A decoder, the hashes that texts may have by field, and the fields that are no columns."""
Opened = tuple[Any, Any, Prefix]
"""The top of a message, its fields, and the keys that lead from the first to the second."""


class EnvelopeCodec(Codec):
    """Messages of another codec with an envelope around their fields, or some of its messages.

    Args:
        inner: the codec of the messages as they are.
        format: the envelope; any other format: none.
        unit_ms: the pipeline's time unit, in milliseconds.
        condition: what messages are taken; None: all.
    """

    name: ClassVar[str] = "envelope"

    def __init__(
        self,
        inner: Codec,
        format: Format | None,
        unit_ms: float = 1.0,
        condition: Condition | None = None,
    ) -> None:
        self._inner, self._format, self._unit_ms = inner, format, unit_ms
        self._condition = condition
        self._open = _opener(format)
        self._skips_empty = isinstance(format, Debezium | Connect)
        # Each codec has its own reasons: these are class attributes of most.
        self.errors = (*inner.errors, Undecodable, msgspec.ValidationError, Filtered)  # type: ignore[misc]
        self.malformed = inner.malformed  # type: ignore[misc]
        self.makes_texts = inner.makes_texts  # type: ignore[misc]
        self.tells_unknown = inner.tells_unknown  # type: ignore[misc]
        self._decode_top = inner.decoder(dict)

    def decoder(self, message: type[Message]) -> Callable[[bytes], Message]:
        decode_top, open_envelope, select = self._decode_top, self._open, self._select
        skips_empty = self._skips_empty
        if not issubclass(message, msgspec.Struct):
            make = struct_maker(message, self._unit_ms)

            def decode_row(payload: bytes) -> Message:
                if skips_empty and not payload:
                    raise Filtered("a tombstone")
                top, row, _ = open_envelope(decode_top(payload))
                select(row, top)
                return make(row)

            return decode_row
        strict = Shape.of(message) if message.__struct_config__.forbid_unknown_fields else None
        makers: dict[Prefix, Callable[[dict[str, Any]], Message]] = {}
        unit_ms = self._unit_ms

        def decode(payload: bytes) -> Message:
            if skips_empty and not payload:
                raise Filtered("a tombstone")
            top, row, prefix = open_envelope(decode_top(payload))
            select(row, top)
            if strict is not None:
                for name in strict.unknown(row):
                    raise msgspec.ValidationError(f"Object contains unknown field `{name}`")
            make = makers.get(prefix)
            if make is None:
                make = makers[prefix] = struct_maker(derived(message, prefix), unit_ms)
            return make(top)

        return decode

    def whole_decoder(self) -> Callable[[bytes], Any]:
        decode_top, open_envelope = self._decode_top, self._open
        return lambda payload: open_envelope(decode_top(payload))[0]

    def _select(self, row: Any, top: Any) -> None:
        """Raise `Filtered` unless the message is to be taken."""
        condition = self._condition
        if condition is None:
            return
        try:
            taken = condition.matches(row, top)
        except UnreachableError:
            raise
        except Exception as error:  # of the user's function
            why = f"the function in where= failed: {describe_error(error)}"
            raise Undecodable(DeadLetterReason.TYPE_MISMATCH, why) from None
        if not taken:
            raise Filtered("not selected")

    def unknown_fields(self, shape: Shape, value: bytes) -> Mapping[str, Any]:
        """Those of the row: what is beside it belongs to the envelope."""
        if not self.tells_unknown:
            return {}
        return shape.unknown(self._open(self._decode_top(value))[1])

    def encode(self, message: msgspec.Struct) -> bytes:
        raise BusError("messages in an envelope are for reading only")

    def fault(self, error: Exception) -> tuple[DeadLetterReason, str]:
        return self._inner.fault(error)

    def column_decoder(
        self,
        message: type[msgspec.Struct],
        time: str,
        wanted: Sequence[str],
        texts: Collection[str] = (),
    ) -> ColumnDecoder | None:
        """Columns of batches of which every message is taken, and none is a delete."""
        if message.__struct_config__.forbid_unknown_fields:
            return None
        probes = _probes(self._condition)
        if probes is None:
            return None
        decoders = []
        for around, prefix in _prefixes(self._format):
            kind = derived(message, prefix, around)
            wants: list[tuple[str, Sequence[str]]] = []
            if isinstance(self._format, Debezium):
                taken = [op for op in self._format.operations if op != "d"]
                wants.append((str(Path((*around, "op"))), taken))
            for path, from_top, values in probes:
                steps = (*around, *path.steps) if from_top else (*prefix, *path.steps)
                wants.append((str(Path(steps)), values))
            if not _are_texts(kind, [place for place, _ in wants]):
                return None
            kind, checked = _with_texts(kind, wants)
            names = [name for name in dict.fromkeys(n for n, _ in checked) if name not in wanted]
            made = {"texts": texts} if self.makes_texts else {}
            inner = self._inner.column_decoder(kind, time, [*wanted, *names], **made)
            if inner is None:
                return None
            decoders.append((inner, checked, frozenset(names)))
        return _EnvelopeColumns(decoders)

    def selector(self) -> Callable[[list[bytes], I64], NDArray[np.bool_] | None] | None:
        """A function of a batch: which messages are taken, by columns of what decides it.

        It gives None for a batch that it can't tell of; None: there is no such function.
        """
        probes = _probes(self._condition)
        is_debezium = isinstance(self._format, Debezium)
        if probes is None or not (probes or is_debezium):
            return None
        if isinstance(self._format, Connect | CloudEvents):
            return None  # what is no envelope is another matter than what is not chosen
        decoders: list[_Form] = []
        for around, prefix in _prefixes(self._format):
            wants = self._wanted_texts(probes, around, prefix)
            # What a row of a database lacks, the general path looks at: it may be a delete.
            default = msgspec.NODEFAULT if is_debezium else ""
            probe, checked = _with_texts(_Probe, wants, default)
            names = list(dict.fromkeys(name for name, _ in checked))
            inner = self._inner.column_decoder(probe, "probed_time", names)
            if inner is None:
                return None
            decoders.append((inner, checked, frozenset(names)))

        allowed_of = {
            name: np.array(sorted(allowed), np.uint64)
            for _, checked, _ in decoders
            for name, allowed in checked
        }

        def select(values: list[bytes], published: I64) -> NDArray[np.bool_] | None:
            if not all(values):
                return None  # tombstones
            for decoder, checked, _ in decoders:
                decoded = decoder.read(values, published)
                if decoded is None:
                    continue
                taken = np.ones(len(values), np.bool_)
                for name, _ in checked:
                    taken &= np.isin(hash64(decoded[1][name]), allowed_of[name])
                return taken
            return None

        return select

    def _wanted_texts(
        self, probes: list[tuple[Path, bool, list[str]]], around: Prefix, prefix: Prefix
    ) -> list[tuple[str, Sequence[str]]]:
        """The places of texts that decide whether a message is taken, and what they may be."""
        wants: list[tuple[str, Sequence[str]]] = []
        if isinstance(self._format, Debezium):
            wants.append((str(Path((*around, "op"))), self._format.operations))
        for path, from_top, values in probes:
            steps = (*around, *path.steps) if from_top else (*prefix, *path.steps)
            wants.append((str(Path(steps)), values))
        return wants


class _Probe(Event):
    """What every message could be."""

    probed_time: int = 0


class _EnvelopeColumns:
    """Decodes batches in one of the forms of an envelope; what fitted last is tried first."""

    def __init__(self, decoders: list[_Form]) -> None:
        self._decoders = decoders

    def read(self, values: list[bytes], published: I64) -> DecodedColumns | None:
        """Times and columns; None if any message takes the general path, or is not taken."""
        for number, (decoder, checked, added) in enumerate(self._decoders):
            decoded = decoder.read(values, published)
            if decoded is None:
                continue
            columns = decoded[1]
            for name, allowed in checked:
                column = columns[name]
                if type(column) is list and None in column:
                    return None
                if not set(np.unique(hash64(column)).tolist()) <= allowed:
                    return None
            for name in added:
                del columns[name]
            if number:
                self._decoders.insert(0, self._decoders.pop(number))
            return decoded
        return None


def _are_texts(message: type[Any], places: Sequence[str]) -> bool:
    """Whether the fields at these places, if there are any, are declared as texts."""
    kinds = {field.encode_name: field.type for field in msgspec.structs.fields(message)}
    return all(kinds.get(place, str) in (str, str | None) for place in places)


def _with_texts(
    message: type[Any],
    wants: Sequence[tuple[str, Sequence[str]]],
    default: Any = msgspec.NODEFAULT,
) -> tuple[type[Any], list[tuple[str, frozenset[int]]]]:
    """``message`` with a text field at each place, and the hashes of what each may be by name."""
    known = {field.encode_name: field.name for field in msgspec.structs.fields(message)}
    added: list[Any] = []
    checked = []
    for place, texts in wants:
        name = known.get(place)
        if name is None:
            name = known[place] = _ADDED.format(len(added))
            added.append((name, str, msgspec.field(name=place, default=default)))
        checked.append((name, _hashes(texts)))
    if added:
        message = msgspec.defstruct(message.__name__, added, bases=(message,), kw_only=True)
    return message, checked


def _probes(condition: Condition | None) -> list[tuple[Path, bool, list[str]]] | None:
    """The text fields that a condition compares; None if it is of another kind."""
    if condition is None:
        return []
    if not isinstance(condition, FieldsAre):
        return None
    probes = []
    for path, from_top, values in condition.fields:
        if not all(isinstance(value, str) for value in values):
            return None
        probes.append((path, from_top, list(values)))
    return probes


def _hashes(texts: Sequence[str]) -> frozenset[int]:
    return frozenset(hash64(list(texts)).tolist()) if texts else frozenset()


def _prefixes(format: Format | None) -> list[tuple[Prefix, Prefix]]:
    """The forms of an envelope: what is around its top, and the keys that lead to the fields."""
    if isinstance(format, Debezium):
        return [((), ("after",)), (("payload",), ("payload", "after"))]
    if isinstance(format, Connect):
        return [(("payload",), ("payload",))]
    if isinstance(format, CloudEvents) and format.mode == "structured":
        return [((), ("data",))]
    return [((), ())]


@cache
def derived(message: type[Any], prefix: Prefix, around: Prefix = ()) -> type[Any]:
    """``message`` with its fields below ``prefix``, and those of the envelope below ``around``.

    >>> class Order(Event):
    ...     id: str
    >>> derived(Order, ("after",)).__struct_encode_fields__
    ('after.id',)
    """
    fields = []
    for field in msgspec.structs.fields(message):
        place = _moved(field.encode_name, prefix, around)
        if field.default_factory is not msgspec.NODEFAULT:
            made = msgspec.field(default_factory=field.default_factory, name=place)
        else:
            made = msgspec.field(default=field.default, name=place)
        fields.append((field.name, field.type, made))
    return msgspec.defstruct(
        message.__name__,
        fields,
        bases=(message,),
        kw_only=True,
        forbid_unknown_fields=False,
    )


def _moved(place: str, prefix: Prefix, around: Prefix) -> str:
    if place.startswith("$") and not place.startswith(_TOP):
        return place  # not in the payload
    pieces = []
    for piece in split_place(place):
        before = around if piece.startswith(_TOP) else prefix
        pieces.append(str(Path((*before, *Path.parse(piece).steps))))
    return " + ".join(pieces)


def _opener(format: Format | None) -> Callable[[Any], Opened]:
    if isinstance(format, Debezium):
        operations = frozenset(format.operations)
        return lambda top: _open_debezium(_within_payload(top), operations)
    if isinstance(format, Connect):
        return _open_connect
    if isinstance(format, CloudEvents) and format.mode == "structured":
        return _open_cloud_event
    return lambda top: (top, top, ())


def _within_payload(top: Any) -> Any:
    """What is in Connect's ``{schema, payload}``; anything else as it is."""
    if isinstance(top, dict) and len(top) == 2 and "schema" in top and "payload" in top:
        if top["payload"] is None:
            raise Filtered("a tombstone")
        return top["payload"]
    return top


def _open_connect(top: Any) -> Opened:
    row = _within_payload(top)
    return row, row, ()


def _open_debezium(top: Any, operations: frozenset[str]) -> Opened:
    if not isinstance(top, dict) or "op" not in top:
        raise _misfit("it is no change event of Debezium: it has no `op`")
    op = top["op"]
    if op not in operations:
        raise Filtered(f"operation {op}")
    key = "before" if op == "d" else "after"
    row = top.get(key)
    if row is None and op == "d":
        raise _misfit(
            "it is a delete without the row as it was before (`before` is null): set the table's "
            "REPLICA IDENTITY to FULL, or leave out deletes with Debezium(operations=('c', 'u', "
            "'r'))"
        )
    if not isinstance(row, dict):
        raise _misfit(f"it is a change event of Debezium without a row: `{key}` is no object")
    return top, row, (key,)


def _open_cloud_event(top: Any) -> Opened:
    if not isinstance(top, dict) or "specversion" not in top:
        raise _misfit("it is no structured CloudEvent: it has no `specversion`")
    row = top.get("data")
    if row is None and "data_base64" in top:
        raise _misfit("it is a CloudEvent with binary data: `data` must be an object")
    if not isinstance(row, dict):
        raise _misfit("it is a CloudEvent whose `data` is no object")
    return top, row, ("data",)


def _misfit(why: str) -> Undecodable:
    return Undecodable(DeadLetterReason.TYPE_MISMATCH, why)
