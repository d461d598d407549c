"""Decodes batches of JSON straight into columns, for messages of the common form.

The compiled scanner (`dataflows.codec.json_scanner`) reads what most programs write, about five
times as fast as structs can be made. It rejects everything else, which msgspec then decodes: the
results are the same, only the time differs.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin

import msgspec
import numpy as np

from anabranch.dataflows.batch.columns import NumberColumn
from anabranch.dataflows.codec.json_scanner import (
    BOOLEAN,
    INTEGER,
    NUMBER,
    REJECTED,
    TEXT,
    UNICODE,
    read_rows,
)
from anabranch.dataflows.codec.protocol import Columns, DecodedColumns
from anabranch.state.compile import I64, entry
from anabranch.state.keys.hashing import hash64
from anabranch.state.keys.text_column import Texts

_KINDS: dict[Any, int] = {str: TEXT, int: INTEGER, float: NUMBER, bool: BOOLEAN}
_MAX_FIELDS = 60
_MAX_REJECTED = 8  # batches in a row
_PAUSE = 100  # batches that are then left to msgspec
_INT64, _UINT64, _FLOAT64 = np.dtype(np.int64), np.dtype(np.uint64), np.dtype(np.float64)


@dataclass(frozen=True, slots=True)
class _Field:
    """A field as the scanner knows it.

    ``default`` is None if there is none, or none that a column can hold.
    """

    name: str
    kind: int
    required: bool
    default: Any


class JsonColumnDecoder:
    """Decodes batches of messages of one type; made by `json_column_decoder`.

    Args:
        fields: all fields of the type, under the names that they have in messages.
        time: the field that holds the event time, an integer.
        wanted: the names of the fields of which columns are made.
    """

    def __init__(self, fields: Sequence[_Field], time: str, wanted: Sequence[str]) -> None:
        kept = [field for field in fields if field.name in wanted and field.name != time]
        texts = [field.name for field in kept if field.kind == TEXT]
        integers = [field.name for field in kept if field.kind == INTEGER]
        numbers = [field.name for field in kept if field.kind in (NUMBER, BOOLEAN)]
        self._time_row = 2 * len(texts)
        out = {name: row for row, name in enumerate(texts)}
        out |= {name: row for row, name in enumerate([time, *integers], self._time_row)}
        out |= {name: row for row, name in enumerate(numbers)}
        self._shape = self._time_row + 1 + len(integers), len(texts), len(numbers)
        self._texts = [(name, out[name], slice(2 * out[name], 2 * out[name] + 2)) for name in texts]
        self._numbers = [
            (field.name, out[field.name], field.kind == BOOLEAN)
            for field in kept
            if field.name in numbers
        ]
        self._integers = [(name, out[name]) for name in integers]
        if time in wanted:
            self._integers.append((time, self._time_row))
        self._names = np.frombuffer("".join(field.name for field in fields).encode(), np.uint8)
        self._names = self._names.copy()  # writable, as all arrays that kernels are compiled for
        self._plan: I64 = _plan(fields, out)
        self._defaults = [
            (field.kind, out[field.name], field.default)
            for field in kept
            if field.default is not None
        ]
        self._rejected = self._pause = 0
        none = np.zeros((1, 0), np.int64), np.zeros((1, 0), np.uint64), np.zeros((1, 0))
        published = np.zeros(0, np.int64)
        self._read = entry(read_rows, b"", 0, self._names, self._plan, 0, published, *none)

    def read(self, values: list[bytes], published: I64) -> DecodedColumns | None:
        """Times and columns of the messages; None if any of them is not of the common form."""
        if self._pause:
            self._pause -= 1
            return None
        blob = b"\n".join(values) + b"\n"
        size, rows = len(blob), len(values)
        n_integers, n_texts, n_numbers = self._shape
        integers = np.empty((n_integers, rows), _INT64)
        hashes = np.empty((n_texts, rows), _UINT64)
        numbers = np.empty((n_numbers, rows), _FLOAT64)
        if self._defaults:
            blob += self._fill(size, integers, hashes, numbers)
        result, least, greatest, earliest = self._read(
            blob, size, self._names, self._plan, self._time_row, published, integers, hashes,
            numbers,
        )  # fmt: skip
        if result == REJECTED or (result == UNICODE and not _is_utf8(blob)):
            self._on_rejected()
            return None
        self._rejected = 0
        columns: Columns = {}
        for name, row, spans in self._texts:
            columns[name] = Texts(blob, integers[spans], hashes[row], True)
        for name, row, is_boolean in self._numbers:
            columns[name] = NumberColumn(numbers[row], is_boolean)
        for name, row in self._integers:
            columns[name] = NumberColumn(integers[row])
        return integers[self._time_row], columns, (least, greatest, earliest)

    def _fill(self, end: int, integers: I64, hashes: Any, numbers: Any) -> bytes:
        """Write defaults into the outputs; their texts follow the messages, from ``end`` on."""
        texts = b""
        for kind, row, value in self._defaults:
            if kind == TEXT:
                start = end + len(texts)
                texts += value.encode()
                integers[2 * row], integers[2 * row + 1] = start, end + len(texts)
                hashes[row] = hash64([value])
            elif kind == INTEGER:
                integers[row] = value
            else:
                numbers[row] = value
        return texts

    def _on_rejected(self) -> None:
        """Pause after several rejected batches: trying each of them would waste time."""
        self._rejected += 1
        if self._rejected >= _MAX_REJECTED:
            self._pause = _PAUSE


def json_column_decoder(
    message: type[msgspec.Struct], time: str, wanted: Sequence[str]
) -> JsonColumnDecoder | None:
    """A decoder for messages of this type; None if the type asks for more than it can check.

    Args:
        message: the type as it is decoded: its time field is an integer.
        time: the field that holds the event time.
        wanted: the fields of which columns are made.
    """
    config = message.__struct_config__
    if config.tag is not None or config.array_like or hasattr(message, "__post_init__"):
        return None
    fields = list(map(_field, msgspec.structs.fields(message)))
    supported = [field for field in fields if field is not None]
    if len(supported) < len(fields) or len(fields) > _MAX_FIELDS:
        return None
    return JsonColumnDecoder(supported, time, wanted)


def _field(field: msgspec.structs.FieldInfo) -> _Field | None:
    """A field that the scanner can check, else None; whether it may be null does not matter."""
    annotation, name = field.type, field.name
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [each for each in get_args(annotation) if each is not type(None)]
        annotation = rest[0] if len(rest) == 1 else None
    kind = next((code for each, code in _KINDS.items() if each is annotation), None)
    if kind is None or field.encode_name != name or not (name.isascii() and name.isidentifier()):
        return None
    fits = type(field.default) is annotation and _is_plain(field.default)
    return _Field(name, kind, field.required, field.default if fits else None)


def _is_plain(value: Any) -> bool:
    """Whether a column can hold a default."""
    if type(value) is str:
        return value.isprintable() and '"' not in value and "\\" not in value
    return type(value) is not int or abs(value) < 2**53


def _plan(fields: Sequence[_Field], out: dict[str, int]) -> I64:
    """The fields as the scanner takes them; see `dataflows.codec.json_scanner`."""
    plan, at = [], 0
    for field in fields:
        name, row = field.name, out.get(field.name, -1)
        required = field.required or (row >= 0 and field.default is None)
        plan.append((at, len(name), field.kind, row, int(required)))
        at += len(name)
    return np.array(plan, np.int64)


def _is_utf8(blob: bytes) -> bool:
    # A line end or a quote cannot be part of another character: the whole is valid if each text is.
    try:
        blob.decode()
    except UnicodeDecodeError:
        return False
    return True
