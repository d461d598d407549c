"""Decodes batches of JSON straight into columns, for messages of the common form.

The compiled scanner (`dataflows.codec.json_scanner`) reads what most programs write, about five
times as fast as structs can be made. It rejects everything else, which msgspec then decodes: the
results are the same, only the time differs.

Flat messages with declared fields alone have a scanner of their own until the first that is not.
The scanner expects the fields in the order of its plan. Fields that the type does not have are put
into the plan when they first come, so that they cost little, and are counted by name.
"""

from __future__ import annotations

import decimal
import enum
import uuid
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any, Literal, get_args, get_origin

import msgspec
import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.batch.columns import NumberColumn
from anabranch.dataflows.codec.json_scanner import (
    ARRAY,
    BOOLEAN,
    BOOLEAN_AS_TEXT,
    BOOLEAN_OR_TEXT,
    INTEGER,
    INTEGER_AS_TEXT,
    INTEGER_OR_TEXT,
    KEY_AS_TEXT,
    NULLABLE,
    NUMBER,
    NUMBER_OR_TEXT,
    OBJECT,
    REJECTED,
    REQUIRED,
    SCALAR_AS_TEXT,
    SKIPPED,
    TEXT,
    UNICODE,
    UUID_AS_TEXT,
    read_flat_rows,
    read_rows,
)
from anabranch.dataflows.codec.protocol import Columns, DecodedColumns
from anabranch.dataflows.declaration.casts import join_texts, text_of
from anabranch.dataflows.declaration.shape import Path, Shape, ShapeField, Step, members_of
from anabranch.dataflows.messages.inputs import OTHER_FIELDS
from anabranch.state.compile import I64, entry
from anabranch.state.keys.hashing import hash64, texts_of
from anabranch.state.keys.text_column import Texts

_TEXTS = {TEXT, INTEGER_AS_TEXT, BOOLEAN_AS_TEXT, SCALAR_AS_TEXT, KEY_AS_TEXT, UUID_AS_TEXT}
_INTEGERS = {INTEGER, INTEGER_OR_TEXT}
_NUMBERS = {NUMBER, NUMBER_OR_TEXT, BOOLEAN, BOOLEAN_OR_TEXT}
_FLOATS = {NUMBER, NUMBER_OR_TEXT}
_BOOLEANS = {BOOLEAN, BOOLEAN_OR_TEXT}
NULL_TEXT: Any = object()
"""The default of a text that is null without a value."""

_NOT_READ = REJECTED, 0, 0, 0
_MAX_FIELDS = 60
_MAX_LEVELS = 16
_MAX_UNKNOWN = 500  # names in a plan
_MAX_LESSONS = 50  # after which further names are only counted
_MAX_REJECTED = 8  # batches in a row
_PAUSE = 100  # batches that are then left to msgspec
_INT64, _UINT64, _FLOAT64 = np.dtype(np.int64), np.dtype(np.uint64), np.dtype(np.float64)


@dataclass(frozen=True, slots=True)
class _Field:
    """A field as the scanner knows it.

    Attributes:
        name: its name in the type.
        path: where it is.
        kind: one of the scanner's.
        required: whether a message without it is invalid.
        default: its default as a column holds it, None if it has none, or none that it can hold.
        nullable: whether it may be null.
        allowed: the only values that it may have, if that is so: texts or integers.
    """

    name: str
    path: Path
    kind: int
    required: bool
    default: Any
    nullable: bool
    allowed: tuple[Any, ...] = ()


def _with_nulls(texts: Texts, starts: I64) -> list[str | None]:
    """The texts as strings, None where there is none."""
    return [None if start < 0 else text for start, text in zip(starts.tolist(), texts, strict=True)]


class _Unsupported(Exception):
    """A type asks for more than the scanner can check."""


@dataclass(slots=True)
class _Node:
    """A place in messages: a field, what fields lie in, or with neither an unknown field."""

    step: Step
    field: _Field | None = None
    children: list[_Node] = dataclass_field(default_factory=list)

    @property
    def kind(self) -> int:
        if self.field is not None:
            return self.field.kind
        if not self.children:
            return SKIPPED
        return ARRAY if isinstance(self.children[0].step, int) else OBJECT

    def child(self, step: Step) -> _Node | None:
        return next((each for each in self.children if each.step == step), None)

    def levels(self) -> int:
        return 1 + max((each.levels() for each in self.children), default=0)


class JsonColumnDecoder:
    """Decodes batches of messages of one type; made by `json_column_decoder`.

    Args:
        fields: all fields of the type.
        time: the field that holds the event time, an integer.
        wanted: the names of the fields of which columns are made.
        shape: of the type.
        joined: name → the fields whose texts are joined to it.
        as_texts: name → the integer of which it is the text.

    Attributes:
        has_new_fields: whether an unknown field came for the first time since `take_unknown`.
    """

    def __init__(
        self,
        fields: Sequence[_Field],
        time: str,
        wanted: Sequence[str],
        shape: Shape,
        joined: Mapping[str, list[str]],
        as_texts: Mapping[str, str],
    ) -> None:
        self._as_texts = list(as_texts.items())
        self._joined = [(name, parts) for name, parts in joined.items() if name in wanted]
        wanted = [*wanted, *(part for _, parts in self._joined for part in parts)]
        # Values that are restricted are checked after they were read.
        kept = [f for f in fields if f.name != time and (f.name in wanted or f.allowed)]
        texts = [f.name for f in kept if f.kind in _TEXTS]
        integers = [f.name for f in kept if f.kind in _INTEGERS]
        numbers = [f.name for f in kept if f.kind in _NUMBERS]
        self._time_row = 2 * len(texts)
        out = {name: row for row, name in enumerate(texts)}
        out |= {name: row for row, name in enumerate([time, *integers], self._time_row)}
        out |= {name: row for row, name in enumerate(numbers)}
        self._out = out
        self._dimensions = self._time_row + 1 + len(integers), len(texts), len(numbers)
        self._texts = [
            (f.name, out[f.name], slice(2 * out[f.name], 2 * out[f.name] + 2), f.nullable)
            for f in kept
            if f.kind in _TEXTS and f.name in wanted
        ]
        self._numbers = [
            (f.name, out[f.name], f.kind in _BOOLEANS, f.nullable and f.kind in _FLOATS)
            for f in kept
            if f.name in numbers and f.name in wanted
        ]
        self._integers = [(name, out[name]) for name in integers if name in wanted]
        if time in wanted:
            self._integers.append((time, self._time_row))
        self._allowed = [
            (f.kind in _TEXTS, out[f.name], _allowed_array(f)) for f in kept if f.allowed
        ]
        self._defaults = [(f.kind, out[f.name], f.default) for f in kept if f.default is not None]
        self._shape = shape
        self._root = _tree(fields)
        self._lessons = 0
        self.has_new_fields = False
        self._unknown: Counter[str] = Counter()
        self._examples: dict[str, Any] = {}
        self._rejected = self._pause = 0
        self._make_plan()
        none = np.zeros((1, 0), np.int64), np.zeros((1, 0), np.uint64), np.zeros((1, 0))
        published = np.zeros(0, np.int64)
        self._stack = np.zeros((self._root.levels(), 4), np.int64)
        self._read = entry(
            read_rows, b"", 0, self._names, self._plan, 0, 0, published, *none, self._counts,
            self._stack,
        )  # fmt: skip
        self._read_flat = entry(
            read_flat_rows, b"", 0, self._names, self._plan, 0, published, *none
        )
        self._is_flat = all(
            node.field is not None and node.field.kind <= BOOLEAN for node in self._root.children
        )

    def read(self, values: list[bytes], published: I64) -> DecodedColumns | None:
        """Times and columns of the messages; None if any of them is not of the common form."""
        if self._pause:
            self._pause -= 1
            return None
        blob = b"\n".join(values) + b"\n"
        size, rows = len(blob), len(values)
        n_integers, n_texts, n_numbers = self._dimensions
        integers = np.empty((n_integers, rows), _INT64)
        hashes = np.empty((n_texts, rows), _UINT64)
        numbers = np.empty((n_numbers, rows), _FLOAT64)
        if self._defaults:
            blob += self._fill(size, integers, hashes, numbers)
        result, least, greatest, earliest = _NOT_READ
        if self._is_flat:
            result, least, greatest, earliest = self._read_flat(
                blob, size, self._names, self._plan, self._time_row, published, integers, hashes,
                numbers,
            )  # fmt: skip
            self._is_flat = result != REJECTED
        if result == REJECTED:
            result, least, greatest, earliest = self._read(
                blob, size, self._names, self._plan, self._top, self._time_row, published,
                integers, hashes, numbers, self._counts, self._stack,
            )  # fmt: skip
        if (
            result == REJECTED
            or (result == UNICODE and not _is_utf8(blob))
            or (self._allowed and not self._all_allowed(integers, hashes))
        ):
            if result != REJECTED:
                self._counts[1] -= self._counts[0]
            self._on_rejected()
            return None
        self._rejected = 0
        if not self._is_flat and self._counts_unknown and self._counts[0, -1]:
            self._learn(values)
        columns: Columns = {}
        for name, row, spans, is_nullable in self._texts:
            texts = columns[name] = Texts(blob, integers[spans], hashes[row], True)
            if is_nullable and integers[2 * row].min() < 0:
                columns[name] = _with_nulls(texts, integers[2 * row])
        for name, row, is_boolean, is_nullable in self._numbers:
            columns[name] = NumberColumn(numbers[row], is_boolean, is_nullable)
        for name, row in self._integers:
            columns[name] = NumberColumn(integers[row])
        for name, number in self._as_texts:
            columns[name] = _plain_texts(list(map(str, columns[number])))
        for name, parts in self._joined:
            columns[name] = _joined([list(columns.pop(part)) for part in parts])
        return integers[self._time_row], columns, (least, greatest, earliest)

    def _fill(self, end: int, integers: I64, hashes: Any, numbers: Any) -> bytes:
        """Write defaults into the outputs; their texts follow the messages, from ``end`` on."""
        texts = b""
        for kind, row, value in self._defaults:
            if value is NULL_TEXT:
                integers[2 * row] = integers[2 * row + 1] = -1
                hashes[row] = 0
            elif kind in _TEXTS:
                start = end + len(texts)
                texts += value.encode()
                integers[2 * row], integers[2 * row + 1] = start, end + len(texts)
                hashes[row] = hash64([value])
            elif kind in _INTEGERS:
                integers[row] = value
            else:
                numbers[row] = value
        return texts

    def _all_allowed(self, integers: I64, hashes: Any) -> bool:
        return all(
            np.isin(hashes[row] if is_text else integers[row], allowed).all()
            for is_text, row, allowed in self._allowed
        )

    def _on_rejected(self) -> None:
        """Pause after several rejected batches: trying each of them would waste time."""
        self._rejected += 1
        if self._rejected >= _MAX_REJECTED:
            self._pause = _PAUSE

    def _make_plan(self) -> None:
        """The fields as the scanner takes them; see `dataflows.codec.json_scanner`."""
        rows: list[_Node] = []
        paths: list[tuple[Step, ...]] = []
        spans: dict[int, tuple[int, int]] = {}  # row → rows of what is in it
        level: list[tuple[int, _Node, tuple[Step, ...]]] = [(-1, self._root, ())]
        while level:
            below: list[tuple[int, _Node, tuple[Step, ...]]] = []
            for at, node, steps in level:
                spans[at] = len(rows), len(rows) + len(node.children)
                for child in node.children:
                    if child.children:
                        below.append((len(rows), child, (*steps, child.step)))
                    rows.append(child)
                    paths.append((*steps, child.step))
            level = below
        names = b""
        plan = np.zeros((len(rows), 8), np.int64)
        bit = 1
        for row, node in enumerate(rows):
            name = node.step.encode() if isinstance(node.step, str) else b""
            place = len(names) if isinstance(node.step, str) else node.step
            names += name
            size = len(name) if isinstance(node.step, str) else -1
            known = node.kind != SKIPPED
            plan[row] = (
                *(place, size, node.kind, self._out_of(node), bit if known else 0),
                *spans.get(row, (0, 0)),
                self._flags(node),
            )
            bit <<= known
        self._top = len(self._root.children)
        self._plan: I64 = plan
        self._names = np.frombuffer(names, np.uint8).copy()  # writable, as kernels' arrays are
        self._counts_unknown = not self._shape.forbids_unknown
        count = len(rows) + 1 if self._counts_unknown else 0
        self._counts: I64 = np.zeros((2, count), np.int64)
        self._skipped = [
            (row, str(Path(paths[row]))) for row, node in enumerate(rows) if node.kind == SKIPPED
        ]

    def _out_of(self, node: _Node) -> int:
        return -1 if node.field is None else self._out.get(node.field.name, -1)

    def _flags(self, node: _Node) -> int:
        declared, out = node.field, self._out_of(node)
        if declared is None:
            return 0
        required = declared.required or (out >= 0 and declared.default is None)
        holds_null = declared.kind in _FLOATS or declared.kind in _TEXTS
        nullable = declared.nullable and (out < 0 or holds_null)
        return REQUIRED * required | NULLABLE * nullable

    def take_unknown(self) -> tuple[Counter[str], dict[str, Any]]:
        """How often each field came that the type does not have, since the last call.

        Returns:
            Path → count; and path → a value of those that are new.
        """
        self._collect()
        taken = self._unknown, self._examples
        self._unknown, self._examples, self.has_new_fields = Counter(), {}, False
        return taken

    def _collect(self) -> None:
        if not self._counts_unknown:
            return
        counts = self._counts[1].tolist()
        for row, name in self._skipped:
            if counts[row]:
                self._unknown[name] += counts[row]
        if counts[-1]:
            self._unknown[OTHER_FIELDS] += counts[-1]
        self._counts[1] = 0

    def _learn(self, values: list[bytes]) -> None:
        """Put the new unknown fields of a batch into the plan, so that they are expected.

        Those of this batch are counted by name here.
        """
        if self._lessons >= _MAX_LESSONS:
            return
        self._lessons += 1
        self.has_new_fields = True
        self._counts[1] -= self._counts[0]
        self._collect()
        for value in values:
            message = msgspec.json.decode(value)
            found = self._shape.unknown(message)
            self._unknown.update(dict.fromkeys(found, 1))
            self._examples = {**found, **self._examples}
            if len(self._skipped) < _MAX_UNKNOWN:
                _put_in_order(self._root, message)
        self._make_plan()


def _joined(parts: list[list[str]]) -> Texts:
    """The texts of the parts of each row as one; see `join_texts`."""
    rows = list(zip(*parts, strict=True))
    everything = "".join(map("".join, rows))
    if "/" in everything or "\\" in everything:
        return texts_of(list(map(join_texts, rows)))
    return _plain_texts(list(map("/".join, rows)))


def _plain_texts(values: list[str]) -> Texts:
    """A column of texts that need no escape in JSON."""
    texts = texts_of(values)
    return Texts(texts.blob, texts.spans, texts.hashes, True)


def json_column_decoder(
    message: type[msgspec.Struct], time: str, wanted: Sequence[str], texts: Collection[str] = ()
) -> JsonColumnDecoder | None:
    """A decoder for messages of this type; None if the type asks for more than it can check.

    Args:
        message: the type as it is decoded: its time field is an integer.
        time: the field that holds the event time.
        wanted: the fields of which columns are made.
        texts: those whose columns are texts, whatever their type.
    """
    config = message.__struct_config__
    if config.tag is not None or config.array_like or hasattr(message, "__post_init__"):
        return None
    shape = Shape.of(message)
    try:
        single, also = _distinct([each for each in shape.fields if each.path], texts)
        fields = [_field(each, each.name in texts) for each in single]
        joined = {each.name: _parts(each) for each in shape.fields if each.path is None}
        fields += [part for parts in joined.values() for part in parts]
        if time in texts or len(fields) > _MAX_FIELDS:
            return None
        root = _tree(fields)
    except _Unsupported:
        return None
    if _count(root) > _MAX_FIELDS or root.levels() > _MAX_LEVELS:
        return None
    names = {name: [part.name for part in parts] for name, parts in joined.items()}
    as_texts = {name: number for name, number in also.items() if name in wanted}
    wanted = [*wanted, *(number for number in as_texts.values() if number not in wanted)]
    return JsonColumnDecoder(fields, time, wanted, shape, names, as_texts)


def _distinct(
    fields: Sequence[ShapeField], texts: Collection[str]
) -> tuple[list[ShapeField], dict[str, str]]:
    """The fields in places of their own; and name → another integer in its place, of its text.

    Raises:
        _Unsupported: two fields in one place differ in more than that one of them is a text.
    """
    by_path: dict[Path, ShapeField] = {}
    also: dict[str, str] = {}
    for each in sorted(fields, key=lambda each: each.name in texts):
        assert each.path is not None
        other = by_path.setdefault(each.path, each)
        if other is each:
            continue
        same = each.annotation is other.annotation is int and each.required and other.required
        if not same or each.cast or other.cast or each.name not in texts or other.name in texts:
            raise _Unsupported
        also[each.name] = other.name
    return [each for each in fields if each.name not in also], also


def _parts(declared: ShapeField) -> list[_Field]:
    """The fields that are joined to one text.

    Raises:
        _Unsupported: it is not of the payload, or may be absent.
    """
    if not declared.paths or not declared.required or declared.nullable:
        raise _Unsupported
    return [
        _Field(f"{declared.name} {number}", one, SCALAR_AS_TEXT, True, None, False)
        for number, one in enumerate(declared.paths)
    ]


def _field(declared: ShapeField, is_text: bool) -> _Field:
    """A field as the scanner can check it.

    Raises:
        _Unsupported: it can't.
    """
    if declared.path is None or hasattr(declared.annotation, "__metadata__"):
        raise _Unsupported
    members, _ = members_of(declared.annotation)
    kind, allowed = _kind(members, declared.cast, is_text)
    optional = not declared.required or (declared.nullable and len(declared.path.steps) > 1)
    default = declared.default
    if default is None or (declared.required and optional):
        default = None
        if declared.nullable and kind in _FLOATS:
            default = np.nan
        elif declared.nullable and kind in _TEXTS and optional:
            default = NULL_TEXT
    elif default is not msgspec.NODEFAULT:
        default = _as_held(default, kind, members)
    else:
        default = None
    return _Field(
        declared.name, declared.path, kind, not optional, default, declared.nullable, allowed
    )


def _kind(members: list[Any], cast: bool, is_text: bool) -> tuple[int, tuple[Any, ...]]:
    """The kind of a field with values of these types, and the only values that it may have."""
    if set(members) == {int, str} and len(members) == 2 and is_text:
        return (SCALAR_AS_TEXT if cast else KEY_AS_TEXT), ()
    if len(members) != 1:
        raise _Unsupported
    kind = members[0]
    allowed: tuple[Any, ...] = ()
    if get_origin(kind) is Literal:
        allowed = get_args(kind)
    elif isinstance(kind, type) and issubclass(kind, enum.Enum):
        if "_missing_" in vars(kind):  # it takes other values as well
            raise _Unsupported
        allowed = tuple(each.value for each in kind)
    if allowed:
        types = {type(value) for value in allowed}
        if types not in ({str}, {int}):
            raise _Unsupported
        kind = types.pop()
        if kind is int and any(abs(value) >= 10**18 for value in allowed):
            raise _Unsupported
    code = _CODES.get((kind, cast, is_text))
    if code is None:
        raise _Unsupported
    if code in _TEXTS:
        allowed = tuple(map(text_of, allowed))
    return code, allowed


_CODES: dict[tuple[Any, bool, bool], int] = {
    (str, False, False): TEXT,
    (str, False, True): TEXT,
    (str, True, False): SCALAR_AS_TEXT,
    (str, True, True): SCALAR_AS_TEXT,
    (int, False, False): INTEGER,
    (int, False, True): INTEGER_AS_TEXT,
    (int, True, False): INTEGER_OR_TEXT,
    (int, True, True): INTEGER_AS_TEXT,
    (float, False, False): NUMBER,
    (float, True, False): NUMBER_OR_TEXT,
    (bool, False, False): BOOLEAN,
    (bool, False, True): BOOLEAN_AS_TEXT,
    (bool, True, False): BOOLEAN_OR_TEXT,
    (bool, True, True): BOOLEAN_AS_TEXT,
    (decimal.Decimal, False, False): NUMBER_OR_TEXT,
    (decimal.Decimal, True, False): NUMBER_OR_TEXT,
    (uuid.UUID, False, False): UUID_AS_TEXT,
    (uuid.UUID, False, True): UUID_AS_TEXT,
    (uuid.UUID, True, False): UUID_AS_TEXT,
    (uuid.UUID, True, True): UUID_AS_TEXT,
}
"""Type, whether it is cast, whether it becomes a text → kind."""


def _as_held(value: Any, kind: int, members: list[Any]) -> Any:
    """A default as a column holds it; None if it can't, or if it is not of its field's type."""
    if kind in _TEXTS:
        text = text_of(value) if isinstance(value, str | int | uuid.UUID | enum.Enum) else ""
        plain = text.isprintable() and '"' not in text and "\\" not in text
        return text if plain and (text or value == "") else None
    value = value.value if isinstance(value, enum.Enum) else value
    if kind in _INTEGERS:
        return value if type(value) is int and abs(value) < 2**53 else None
    if kind in _BOOLEANS:
        return value if type(value) is bool else None
    if type(value) is decimal.Decimal and members == [decimal.Decimal]:
        return float(value)
    return value if type(value) is float and members == [float] else None


def _allowed_array(declared: _Field) -> NDArray[Any]:
    if declared.kind in _TEXTS:
        return hash64(list(declared.allowed))
    return np.array(declared.allowed, np.int64)


def _tree(fields: Sequence[_Field]) -> _Node:
    """The places of fields, in their order.

    Raises:
        _Unsupported: there is a field in a field, or what is an object for one is an array for
            another.
    """
    root = _Node("")
    for each in fields:
        node = root
        for step in each.path.steps:
            if node.field is not None or (isinstance(step, int) and step < 0):
                raise _Unsupported
            if isinstance(step, str) and not _is_plain_name(step):
                raise _Unsupported
            if node.children and type(node.children[0].step) is not type(step):
                raise _Unsupported
            child = node.child(step)
            if child is None:
                child = _Node(step)
                node.children.append(child)
            node = child
        if node.field is not None or node.children:
            raise _Unsupported
        node.field = each
    if not root.children or not isinstance(root.children[0].step, str):
        raise _Unsupported
    return root


def _is_plain_name(name: str) -> bool:
    """Whether all programs write a name in JSON without escapes."""
    return name.isprintable() and '"' not in name and "\\" not in name


def _count(node: _Node) -> int:
    return len(node.children) + sum(map(_count, node.children))


def _put_in_order(node: _Node, value: Any) -> None:
    """Add the unknown fields of a message to the places, and order these as the message does."""
    if node.kind == ARRAY and isinstance(value, list):
        for child in node.children:
            if child.children and isinstance(child.step, int) and child.step < len(value):
                _put_in_order(child, value[child.step])
    if node.kind != OBJECT or not isinstance(value, dict):
        return
    by_step = {child.step: child for child in node.children}
    present = [by_step.get(name) or _Node(name) for name in value if _is_plain_name(name)]
    node.children = list(_merged(node.children, present))
    for child in present:
        if child.children:
            _put_in_order(child, value[child.step])


def _merged(before: list[_Node], present: list[_Node]) -> Iterator[_Node]:
    """``present``, each followed by what was behind it before and is not present now."""
    here = {id(node) for node in present}
    followers: dict[int, list[_Node]] = {}
    leader = 0
    for node in before:
        if id(node) in here:
            leader = id(node)
        else:
            followers.setdefault(leader, []).append(node)
    yield from followers.get(0, [])
    for node in present:
        yield node
        yield from followers.get(id(node), [])


def _is_utf8(blob: bytes) -> bool:
    # A line end or a quote cannot be part of another character: the whole is valid if each text is.
    try:
        blob.decode()
    except UnicodeDecodeError:
        return False
    return True
