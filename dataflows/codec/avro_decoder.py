"""Decodes batches of Avro straight into columns, by programs made of the writers' schemas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from anabranch.dataflows.codec.avro_program import Program
from anabranch.dataflows.codec.avro_scanner import DEPTH, REJECTED, scan_rows
from anabranch.dataflows.codec.column_fields import ColumnField, ColumnLayout, column_layout
from anabranch.dataflows.codec.protocol import DecodedColumns, Undecodable
from anabranch.dataflows.codec.schema_registry import PREFIX_BYTES
from anabranch.state.arrays import extent
from anabranch.state.compile import I64, entry
from anabranch.state.keys.hashing import hash64

ProgramOf = Callable[[int, Sequence[ColumnField]], Program | None]
"""The program for a schema id (-1 without a registry) that reads these fields; None if none can.

It may raise `Undecodable`: then the general path describes what is wrong.
"""

_MAX_REJECTED = 8  # batches in a row
_PAUSE = 20  # batches that then take the general path


@dataclass(slots=True)
class _Compiled:
    """A program as the scanner takes it; ``symbols`` are relative to where ``texts`` begin."""

    program: I64
    texts: bytes
    symbols: I64
    hashes: Any


class AvroColumnDecoder:
    """Decodes batches of messages of one type; made by `avro_column_decoder`.

    Args:
        layout: the columns.
        program_of: makes the programs.
        skip: how many bytes come before the data; with a registry, its prefix.
        has_ids: whether these name a schema.
    """

    def __init__(
        self, layout: ColumnLayout, program_of: ProgramOf, skip: int, has_ids: bool
    ) -> None:
        self._layout, self._program_of = layout, program_of
        self._skip, self._has_ids = skip, has_ids
        self._programs: dict[int, _Compiled | None] = {}
        self._stack = np.zeros(DEPTH, np.int64)
        self._single = np.zeros(1, np.float32)
        self._single_bits = self._single.view(np.uint32)
        self._rejected = self._pause = 0
        ints, none = np.zeros(0, np.int64), layout.outputs(1)
        self._scan = entry(
            scan_rows, b"", ints, 0, 0, np.zeros((1, 4), np.int64),
            np.zeros((1, 2), np.int64), np.zeros(1, np.uint64), none.integers, none.hashes,
            none.numbers, none.numbers.view(np.uint64), none.nulls, none.escapes, self._stack,
            self._single, self._single_bits,
        )  # fmt: skip

    def read(self, values: list[bytes], published: I64) -> DecodedColumns | None:
        """Times and columns of the messages; None if any of them needs the general path."""
        if self._pause:
            self._pause -= 1
            return None
        blob, rows = b"".join(values), len(values)
        sizes = np.fromiter(map(len, values), np.int64, rows)
        outputs, layout = self._layout.outputs(rows), self._layout
        bits = outputs.numbers.view(np.uint64)
        tail = layout.fill_defaults(outputs, len(blob)) if layout.has_defaults else b""
        schema_id = int.from_bytes(values[0][1:PREFIX_BYTES]) if self._has_ids else -1
        left, others = rows, None
        while True:
            compiled = self._compiled(schema_id)
            if compiled is None:
                return None
            symbols = compiled.symbols
            if compiled.texts:
                symbols = symbols + (len(blob) + len(tail))
                tail += compiled.texts
            read = self._scan(
                blob, sizes, self._skip, schema_id, compiled.program, symbols, compiled.hashes,
                outputs.integers, outputs.hashes, outputs.numbers, bits, outputs.nulls,
                outputs.escapes, self._stack, self._single, self._single_bits,
            )  # fmt: skip
            if read == REJECTED:
                self._on_rejected()
                return None
            left -= read
            if left <= 0:
                break
            if others is None:  # most batches are of one schema
                others = {int.from_bytes(value[1:PREFIX_BYTES]) for value in values} - {schema_id}
            schema_id = others.pop()
        self._rejected = 0
        times = outputs.integers[layout.time]
        columns = layout.columns(outputs, blob + tail if tail else blob)
        return times, columns, (*extent(times), extent(published)[0])

    def _compiled(self, schema_id: int) -> _Compiled | None:
        if schema_id in self._programs:
            return self._programs[schema_id]
        try:
            program = self._program_of(schema_id, self._layout.fields)
        except Undecodable:
            return None  # it may be registered later
        compiled = None if program is None else _compiled(program)
        self._programs[schema_id] = compiled
        return compiled

    def _on_rejected(self) -> None:
        """Pause after several rejected batches: trying each of them would waste time."""
        self._rejected += 1
        if self._rejected >= _MAX_REJECTED:
            self._pause = _PAUSE


def avro_column_decoder(
    message: type[msgspec.Struct],
    time: str,
    wanted: Sequence[str],
    program_of: ProgramOf,
    skip: int,
    has_ids: bool,
) -> AvroColumnDecoder | None:
    """A decoder for messages of this type; None if the type asks for more than it can check."""
    layout = column_layout(message, time, wanted)
    return None if layout is None else AvroColumnDecoder(layout, program_of, skip, has_ids)


def _compiled(program: Program) -> _Compiled:
    texts = [symbol.encode() for symbol in program.symbols]
    ends = np.cumsum([0, *map(len, texts)])
    spans = np.ascontiguousarray(np.stack([ends[:-1], ends[1:]], axis=1), np.int64)
    if not texts:
        spans = np.zeros((1, 2), np.int64)
    hashes = hash64(program.symbols) if texts else np.zeros(1, np.uint64)
    return _Compiled(np.array(program.instructions, np.int64), b"".join(texts), spans, hashes)
