"""Decodes batches of Protobuf straight into columns, by tables made of descriptors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from anabranch.dataflows.codec import protobuf_scanner as op
from anabranch.dataflows.codec.column_fields import (
    BOOLEAN,
    INTEGER,
    NUMBER,
    TEXT,
    ColumnField,
    ColumnLayout,
    Outputs,
    column_layout,
)
from anabranch.dataflows.codec.protocol import Columns, DecodedColumns, Filtered, Undecodable
from anabranch.state.arrays import extent
from anabranch.state.compile import I64, entry
from anabranch.state.keys.hashing import hash64

Split = Callable[[list[bytes]], list[tuple[Any, I64, I64]] | None]
"""Splits a batch into groups of one type: its descriptor, the rows, and how many bytes of each come
before the data; None if a message needs the general path."""

_MAX_REJECTED = 8  # batches in a row
_PAUSE = 20  # batches that then take the general path
_WRAPPERS = frozenset(
    f"google.protobuf.{name}Value"
    for name in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String")
)
_TIMESTAMP = "google.protobuf.Timestamp"
# Type in a descriptor → what is done for an integer, for a float, the wire type, its bits.
_NUMBERS: dict[int, tuple[int, int, int, int]] = {
    1: (-1, op.DOUBLE, op.WORD, 0),
    2: (-1, op.FLOAT, op.HALF, 0),
    3: (op.INTEGER, op.NUMBER, op.VARINT, -64),
    4: (op.INTEGER, op.NUMBER, op.VARINT, 64),
    5: (op.INTEGER, op.NUMBER, op.VARINT, -32),
    6: (op.FIXED, op.FIXED_NUMBER, op.WORD, 64),
    7: (op.FIXED, op.FIXED_NUMBER, op.HALF, 32),
    13: (op.INTEGER, op.NUMBER, op.VARINT, 32),
    15: (op.FIXED, op.FIXED_NUMBER, op.HALF, -32),
    16: (op.FIXED, op.FIXED_NUMBER, op.WORD, -64),
    17: (op.ZIGZAG, op.ZIGZAG_NUMBER, op.VARINT, -32),
    18: (op.ZIGZAG, op.ZIGZAG_NUMBER, op.VARINT, -64),
}
_BOOL, _STRING, _MESSAGE, _ENUM = 8, 9, 11, 14


class _UnsupportedError(Exception):
    """The type asks for the general path."""


@dataclass(slots=True)
class _Leaf:
    """A field that was found in a descriptor.

    ``absent`` is the slot that is not set where it is absent or null; -1 if it always has a value.
    """

    field: ColumnField
    absent: int
    zero: str = ""


@dataclass(slots=True)
class _Compiled:
    """A table as the scanner takes it; ``symbols`` are relative to where ``texts`` begin."""

    table: I64
    texts: bytes
    symbols: I64
    hashes: Any
    leaves: list[_Leaf]
    slots: int


@dataclass(slots=True)
class _Table:
    rows: list[list[int]] = field(default_factory=list)
    symbols: list[tuple[int, str]] = field(default_factory=list)
    leaves: list[_Leaf] = field(default_factory=list)
    slots: int = 0

    def slot(self) -> int:
        self.slots += 1
        return self.slots - 1


class ProtobufColumnDecoder:
    """Decodes batches of messages of one type; made by `protobuf_column_decoder`."""

    def __init__(self, layout: ColumnLayout, split: Split) -> None:
        self._layout, self._split = layout, split
        self._tables: dict[int, tuple[Any, _Compiled | None]] = {}
        self._stack = np.zeros(2 * op.DEPTH, np.int64)
        self._single = np.zeros(1, np.float32)
        self._single_bits = self._single.view(np.uint32)
        self._rejected = self._pause = 0
        ints, none = np.zeros(0, np.int64), layout.outputs(1)
        self._scan = entry(
            op.scan_messages, b"", ints, ints, ints, np.zeros((1, 8), np.int64),
            np.zeros((1, 3), np.int64), np.zeros(1, np.uint64), none.integers, none.hashes,
            none.numbers, none.numbers.view(np.uint64), none.nulls, none.escapes, self._stack,
            self._single, self._single_bits,
        )  # fmt: skip

    def read(self, values: list[bytes], published: I64) -> DecodedColumns | None:
        """Times and columns of the messages; None if any of them needs the general path."""
        if self._pause:
            self._pause -= 1
            return None
        try:
            groups = self._split(values)
        except (Undecodable, Filtered):
            return None
        if groups is None:
            return None
        layout, rows = self._layout, len(values)
        blob = b"".join(values)
        ends = np.cumsum(np.fromiter(map(len, values), np.int64, rows))
        starts = np.concatenate([[0], ends[:-1]])
        outputs = layout.outputs(rows)
        outputs.integers[:] = 0
        outputs.numbers[:] = 0.0
        outputs.hashes[:] = _EMPTY
        tail = b""
        for descriptor, own, skipped in groups:
            compiled = self._compiled(descriptor)
            if compiled is None:
                return None
            starts[own] += skipped
            present = np.zeros((compiled.slots, rows), np.uint8)
            base = len(blob) + len(tail)
            tail += compiled.texts
            symbols = compiled.symbols + np.array([0, base, base])
            for leaf in compiled.leaves:
                _fill_zero(leaf, outputs, own, compiled, base)
            result = self._scan(
                blob, starts, ends, own, compiled.table, symbols, compiled.hashes,
                outputs.integers, outputs.hashes, outputs.numbers,
                outputs.numbers.view(np.uint64), present, outputs.escapes, self._stack,
                self._single, self._single_bits,
            )  # fmt: skip
            added = None
            if result == op.ACCEPTED:
                added = _fill_absent(compiled.leaves, outputs, own, present, len(blob) + len(tail))
            if added is None:
                self._on_rejected()
                return None
            tail += added
        self._rejected = 0
        times = outputs.integers[layout.time]
        columns: Columns = layout.columns(outputs, blob + tail if tail else blob)
        return times, columns, (*extent(times), extent(published)[0])

    def _compiled(self, descriptor: Any) -> _Compiled | None:
        known = self._tables.get(id(descriptor))  # which lives as long as it is kept here
        if known is None:
            known = descriptor, _compile(descriptor, self._layout.fields)
            self._tables[id(descriptor)] = known
        return known[1]

    def _on_rejected(self) -> None:
        """Pause after several rejected batches: trying each of them would waste time."""
        self._rejected += 1
        if self._rejected >= _MAX_REJECTED:
            self._pause = _PAUSE


_EMPTY = hash64([""])[0]


def protobuf_column_decoder(
    message: type[msgspec.Struct], time: str, wanted: Sequence[str], split: Split
) -> ProtobufColumnDecoder | None:
    """A decoder for messages of this type; None if the type asks for more than it can check."""
    layout = column_layout(message, time, wanted)
    return None if layout is None else ProtobufColumnDecoder(layout, split)


def _fill_zero(leaf: _Leaf, outputs: Outputs, own: I64, compiled: _Compiled, base: int) -> None:
    """The value of an enum that was not written: its first, which has the number 0."""
    if not leaf.zero or leaf.field.out < 0:
        return
    at, size = base + compiled.texts.index(leaf.zero.encode()), len(leaf.zero.encode())
    outputs.integers[2 * leaf.field.out, own] = at
    outputs.integers[2 * leaf.field.out + 1, own] = at + size
    outputs.hashes[leaf.field.out, own] = hash64([leaf.zero])[0]


def _fill_absent(
    leaves: Sequence[_Leaf], outputs: Outputs, own: I64, present: Any, end: int
) -> bytes | None:
    """Defaults and nulls where fields are absent; their texts follow what ends at ``end``.

    None if a message lacks a field that it must have.
    """
    texts = b""
    for leaf in leaves:
        if leaf.absent < 0:
            continue
        absent = own[present[leaf.absent, own] == 0]
        if not len(absent):
            continue
        known = leaf.field
        if known.required and not known.nullable:
            return None
        if known.out < 0:
            continue
        if known.required or known.default is None:
            outputs.nulls[known.slot, absent] = 1
        elif known.kind == TEXT:
            start = end + len(texts)
            texts += known.default.encode()
            outputs.integers[2 * known.out, absent] = start
            outputs.integers[2 * known.out + 1, absent] = end + len(texts)
            outputs.hashes[known.out, absent] = hash64([known.default])[0]
            if not known.default.isprintable() or '"' in known.default or "\\" in known.default:
                outputs.escapes[known.out] = 1
        elif known.kind == INTEGER:
            outputs.integers[known.out, absent] = known.default
        else:
            outputs.numbers[known.out, absent] = known.default
    return texts


def _compile(descriptor: Any, fields: Sequence[ColumnField]) -> _Compiled | None:
    table = _Table([[0, op.BYTES, op.MESSAGE, -1, -1, 1, 0, 0]])
    try:
        tree: dict[str, Any] = {}
        for each in fields:
            node = tree
            for step in each.steps[:-1]:
                node = node.setdefault(step, {})
                if not isinstance(node, dict):
                    raise _UnsupportedError
            if each.steps[-1] in node:
                raise _UnsupportedError
            node[each.steps[-1]] = each
        _add_fields(table, 0, descriptor, tree, -1)
    except _UnsupportedError:
        return None
    texts = b"".join(text.encode() for _, text in table.symbols)
    ends = np.cumsum([0, *(len(text.encode()) for _, text in table.symbols)])
    symbols = np.zeros((max(len(table.symbols), 1), 3), np.int64)
    for index, (number, _) in enumerate(table.symbols):
        symbols[index] = number, ends[index], ends[index + 1]
    hashes = hash64([text for _, text in table.symbols] or [""])
    rows = np.array(table.rows, np.int64)
    return _Compiled(rows, texts, symbols, hashes, table.leaves, max(table.slots, 1))


def _add_fields(
    table: _Table, parent: int, descriptor: Any, tree: dict[str, Any], absent: int
) -> None:
    """Add the fields of a message that are read; ``absent`` is the slot of the message itself."""
    found = []
    for name, below in tree.items():
        known = descriptor.fields_by_name.get(name)
        if known is None:
            _miss(below)
            continue
        found.append((known, below))
    found.sort(key=lambda each: int(each[0].number))
    first = len(table.rows)
    table.rows[parent][op.FIRST : op.COUNT + 1] = [first, len(found)]
    table.rows += [[0] * 8 for _ in found]
    for index, (known, below) in enumerate(found, first):
        if known.is_repeated:
            raise _UnsupportedError
        if known.type == _MESSAGE:
            _add_message(table, index, known, below)
        elif isinstance(below, dict):
            raise _UnsupportedError
        else:
            own = table.slot() if known.has_presence else absent
            _add_scalar(table, index, known, below, own, marks=known.has_presence)


def _miss(below: Any) -> None:
    """A field that the message type does not have takes the general path, which says so."""
    raise _UnsupportedError


def _add_message(table: _Table, index: int, known: Any, below: Any) -> None:
    slot, inner = table.slot(), known.message_type
    table.rows[index] = [known.number, op.BYTES, op.MESSAGE, -1, slot, 0, 0, 0]
    if inner.full_name == _TIMESTAMP and isinstance(below, ColumnField):
        if below.kind != INTEGER:
            raise _UnsupportedError
        if below.out < 0:
            table.rows[index][op.OP] = op.SKIP
        else:
            first = len(table.rows)
            table.rows[index][op.FIRST : op.COUNT + 1] = [first, 2]
            table.rows.append([1, op.VARINT, op.SECONDS, below.out, table.slot(), 0, 0, -64])
            table.rows.append([2, op.VARINT, op.NANOS, below.out, table.slot(), 0, 0, -32])
        table.leaves.append(_Leaf(below, slot))
    elif inner.full_name in _WRAPPERS and isinstance(below, ColumnField):
        _add_fields(table, index, inner, {"value": below}, slot)
    elif isinstance(below, dict) and not inner.GetOptions().map_entry:
        if inner.full_name.startswith("google.protobuf."):
            raise _UnsupportedError
        _add_fields(table, index, inner, below, slot)
    else:
        raise _UnsupportedError


def _add_scalar(
    table: _Table, index: int, known: Any, leaf: ColumnField, absent: int, *, marks: bool
) -> None:
    slot = absent if marks else -1
    zero = ""
    first = count = bits = 0
    if known.type == _STRING and leaf.kind == TEXT:
        code, wire = op.TEXT, op.BYTES
    elif known.type == _ENUM and leaf.kind == TEXT:
        code, wire, first = op.ENUM, op.VARINT, len(table.symbols)
        values = known.enum_type.values
        table.symbols += [(each.number, each.name) for each in values]
        count = len(values)
        zero = known.enum_type.values_by_number[known.default_value].name
    elif known.type == _BOOL and leaf.kind == BOOLEAN:
        code, wire = op.BOOLEAN, op.VARINT
    elif known.type in _NUMBERS and leaf.kind in (INTEGER, NUMBER):
        of_integer, of_number, wire, bits = _NUMBERS[known.type]
        code = of_integer if leaf.kind == INTEGER else of_number
        if code < 0:
            raise _UnsupportedError
    else:
        raise _UnsupportedError
    if known.has_presence and known.default_value and known.type != _ENUM:
        raise _UnsupportedError  # proto2's own default
    if leaf.out < 0:
        code = op.SKIP
    table.rows[index] = [known.number, wire, code, leaf.out, slot, first, count, bits]
    table.leaves.append(_Leaf(leaf, absent, zero))
