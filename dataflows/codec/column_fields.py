"""The fields of a message type as compiled decoders of binary formats read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.batch.columns import NumberColumn
from anabranch.dataflows.codec.protocol import Columns
from anabranch.dataflows.declaration.shape import Shape, ShapeField, members_of
from anabranch.state.compile import I64
from anabranch.state.keys.hashing import hash64
from anabranch.state.keys.text_column import Texts

U64 = NDArray[np.uint64]

TEXT, INTEGER, NUMBER, BOOLEAN = 0, 1, 2, 3
"""What columns hold: texts, int64, float64, and booleans as 0.0 and 1.0."""

_KINDS: dict[Any, int] = {str: TEXT, int: INTEGER, float: NUMBER, bool: BOOLEAN}
_INT64, _UINT64, _FLOAT64 = np.dtype(np.int64), np.dtype(np.uint64), np.dtype(np.float64)


@dataclass(frozen=True, slots=True)
class ColumnField:
    """A field, where it is, and what column its values go to.

    Attributes:
        name: its name in the type.
        steps: the keys that lead to it.
        kind: what its column holds.
        out: the row of that among the outputs of its kind; -1 for a field that is only checked.
        slot: the row in which a null is marked; -1 if it may not be null.
        required: whether a message must have it.
        default: what it is where a message lacks it.
        cast: whether other types are taken.
    """

    name: str
    steps: tuple[str, ...]
    kind: int
    out: int
    slot: int
    required: bool
    default: Any
    cast: bool

    @property
    def nullable(self) -> bool:
        """Whether it may be null."""
        return self.slot >= 0


class ColumnLayout:
    """Which column is in which row of the outputs of a compiled decoder.

    Args:
        fields: all fields of the type that are in the payload.
        time: the field with the event time, an integer.
        wanted: the names of the fields of which columns are made.
    """

    def __init__(self, fields: Sequence[ShapeField], time: str, wanted: Sequence[str]) -> None:
        kinds = {field.name: kind_of_column(field.annotation) for field in fields}
        read = [field for field in fields if field.name in wanted or field.name == time]
        of = {
            kind: [field.name for field in read if kinds[field.name][0] == kind]
            for kind in (TEXT, INTEGER, NUMBER, BOOLEAN)
        }
        texts, integers = of[TEXT], of[INTEGER]
        out = {name: row for row, name in enumerate(texts)}
        out |= {name: row for row, name in enumerate(integers, 2 * len(texts))}
        out |= {name: row for row, name in enumerate(of[NUMBER] + of[BOOLEAN])}
        slots = {name: slot for slot, name in enumerate(n for n, k in kinds.items() if k[1])}
        self.fields = [
            ColumnField(
                field.name,
                tuple(map(str, field.paths[0].steps)),
                kinds[field.name][0],
                out.get(field.name, -1),
                slots.get(field.name, -1),
                field.required,
                field.default,
                field.cast,
            )
            for field in fields
        ]
        self.time = out[time]
        self.counts = 2 * len(texts) + len(integers), len(texts), len(of[NUMBER] + of[BOOLEAN])
        self.slots = len(slots)
        found = [field for field in self.fields if field.name in wanted]
        self._texts = [
            (f.name, f.out, slice(2 * f.out, 2 * f.out + 2)) for f in found if f.kind == TEXT
        ]
        self._integers = [(f.name, f.out) for f in found if f.kind == INTEGER]
        self._numbers = [
            (f.name, f.out, f.kind == BOOLEAN) for f in found if f.kind in (NUMBER, BOOLEAN)
        ]
        self._nullable = [(f.name, f.slot) for f in found if f.nullable]
        self._defaulted = [
            f for f in self.fields if f.out >= 0 and not f.required and f.default is not None
        ]

    def outputs(self, rows: int) -> Outputs:
        """Empty columns."""
        integers, texts, numbers = self.counts
        make = np.zeros if self.slots else np.empty  # where a field is null nothing is written
        return Outputs(
            make((integers, rows), _INT64),
            np.empty((texts, rows), _UINT64),
            np.empty((numbers, rows), _FLOAT64),
            np.zeros((self.slots, rows), np.uint8),
            np.zeros(texts, np.uint8),
        )

    def fill_defaults(self, outputs: Outputs, end: int) -> bytes:
        """Write the fields' defaults into the columns; their texts follow what ends at ``end``."""
        texts = b""
        for field in self._defaulted:
            value, out = field.default, field.out
            if field.kind == TEXT:
                start = end + len(texts)
                texts += value.encode()
                outputs.integers[2 * out] = start
                outputs.integers[2 * out + 1] = end + len(texts)
                outputs.hashes[out] = hash64([value])
                if not value.isprintable() or '"' in value or "\\" in value:
                    outputs.escapes[out] = 1
            elif field.kind == INTEGER:
                outputs.integers[out] = value
            else:
                outputs.numbers[out] = value
        return texts

    @property
    def has_defaults(self) -> bool:
        """Whether any column has a default."""
        return bool(self._defaulted)

    def columns(self, outputs: Outputs, blob: bytes) -> Columns:
        """The columns by name; one with nulls is a list."""
        columns: Columns = {}
        integers, numbers, hashes = outputs.integers, outputs.numbers, outputs.hashes
        escapes = outputs.escapes.tolist()
        for name, out, spans in self._texts:
            columns[name] = Texts(blob, integers[spans], hashes[out], not escapes[out])
        for name, out in self._integers:
            columns[name] = NumberColumn(integers[out])
        for name, out, is_boolean in self._numbers:
            columns[name] = NumberColumn(numbers[out], is_boolean)
        for name, slot in self._nullable:
            null = outputs.nulls[slot]
            if null.any():
                columns[name] = [
                    None if is_null else value
                    for value, is_null in zip(columns[name], null.tolist(), strict=True)
                ]
        return columns


class Outputs(msgspec.Struct):
    """The arrays that a compiled decoder writes; `ColumnLayout` says what is where.

    Attributes:
        integers: ``(any, rows) int64``: start and end of each text, then integers.
        hashes: ``(texts, rows) uint64``.
        numbers: ``(any, rows) float64``.
        nulls: ``(slots, rows) uint8``.
        escapes: ``(texts,) uint8``, set where a text needs an escape in JSON.
    """

    integers: I64
    hashes: U64
    numbers: NDArray[np.float64]
    nulls: NDArray[np.uint8]
    escapes: NDArray[np.uint8]


def column_layout(
    message: type[msgspec.Struct], time: str, wanted: Sequence[str]
) -> ColumnLayout | None:
    """The layout for a message type; None if it asks for more than compiled decoders check."""
    config = message.__struct_config__
    if (
        config.tag is not None
        or config.array_like
        or config.forbid_unknown_fields
        or hasattr(message, "__post_init__")
    ):
        return None
    fields = [field for field in Shape.of(message).fields if field.origin == "payload"]
    if {field.name for field in fields} < {*wanted, time}:
        return None
    if not all(_is_supported(field) for field in fields):
        return None
    return ColumnLayout(fields, time, wanted)


def kind_of_column(annotation: Any) -> tuple[int, bool]:
    """What a column of this type holds, -1 if none can, and whether it may have nulls."""
    members, nullable = members_of(annotation)
    if hasattr(annotation, "__metadata__") or len(members) != 1:
        return -1, nullable
    return _KINDS.get(members[0], -1), nullable


def _is_supported(field: ShapeField) -> bool:
    kind, nullable = kind_of_column(field.annotation)
    if kind < 0 or len(field.paths) != 1:
        return False
    if not all(isinstance(step, str) for step in field.paths[0].steps):
        return False
    if field.required:
        return True
    default: Any = field.default
    if default is None:
        return nullable
    fits: Any = {TEXT: str, INTEGER: int, NUMBER: float, BOOLEAN: bool}[kind]
    return type(default) is fits and (kind != INTEGER or abs(default) < 2**62)
