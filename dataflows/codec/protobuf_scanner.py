"""Scans Protobuf messages of one type into arrays, by a table made of its descriptor.

Whatever the scanner accepts, the runtime accepts with the same values; it rejects the rest, such as
groups, a message that comes in two pieces, and enum values without a name; the general path then
decodes the messages or describes what is wrong. The encoding is that of *Protocol Buffers:
Encoding*.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.codec.avro_scanner import is_text
from anabranch.state.compile import F64, I64, U8, inlined, kernel
from anabranch.state.keys.hashing import xxh64

U64 = NDArray[np.uint64]

(
    SKIP, INTEGER, NUMBER, BOOLEAN, ENUM, ZIGZAG, ZIGZAG_NUMBER, FIXED, FIXED_NUMBER, DOUBLE, FLOAT,
    TEXT, MESSAGE, SECONDS, NANOS,
) = range(15)  # fmt: skip
"""What is done with a field: passed over, or read into a column."""

NUMBER_OF, WIRE, OP, OUT, SLOT, FIRST, COUNT, BITS = range(8)
"""Columns of a table, `(fields, 8) int64`: the field's number, the wire type that it must have,
what is done, the row of the output, the row in which it is marked as present (-1: none), and:

- of `MESSAGE`, the first of its own fields in the table and their number;
- of `ENUM`, the first of its values in the table of symbols and their number;
- `BITS` is 32 or 64, and negative where there is a sign.

The fields of a message of which columns are read come one after the other, in the order of their
numbers. Row 0 is the whole message.
"""

VARINT, WORD, BYTES, HALF = 0, 1, 2, 5
REJECTED, ACCEPTED = 0, 1
DEPTH = 32
"""How deep messages may be in each other."""

_HEAD = 5  # bytes, of a tag or a length
_MOST_TAG = (1 << 32) - 1
_MOST_SECONDS = 253_402_300_799


@inlined
def _varint(blob: bytes, at: int, end: int) -> tuple[int, np.uint64]:
    """The end of the varint at `at`, and its value; -1 if it is cut or too long."""
    value, shift = np.uint64(0), np.uint64(0)
    while at < end and shift < np.uint64(70):
        byte = np.uint64(blob[at])
        at += 1
        value |= (byte & np.uint64(127)) << shift
        if byte < np.uint64(128):
            return (at, value) if shift < np.uint64(63) or byte < np.uint64(2) else (-1, value)
        shift += np.uint64(7)
    return -1, value


@inlined
def _fixed(blob: bytes, at: int, size: int) -> np.uint64:
    """`size` bytes as a little-endian number."""
    value = np.uint64(0)
    for i in range(size):
        value |= np.uint64(blob[at + i]) << np.uint64(8 * i)
    return value


@inlined
def _fits(value: Any, bits: int) -> bool:
    """Whether an integer is of its declared size; of 64 bits without a sign, below 2**63."""
    if bits == 64:
        return bool(value >= 0)
    if bits == 32:
        return bool(0 <= value < (1 << 32))
    if bits == -32:
        return bool(-(1 << 31) <= value < (1 << 31))
    return True


@kernel
def scan_messages(
    blob: bytes, starts: I64, ends: I64, rows: I64, table: I64, symbols: I64, symbol_hashes: U64,
    integers: I64, hashes: U64, numbers: F64, bits: U64, present: U8, escapes: U8, stack: I64,
    single: NDArray[np.float32], single_bits: NDArray[np.uint32],
) -> int:  # fmt: skip
    """Read these rows.

    Args:
        blob: the messages, and behind them the texts of symbols.
        starts, ends: where each message is in `blob`, `(messages,) int64`.
        rows: the messages to read.
        table: see `BITS` and its neighbours.
        symbols: number, start and end in `blob` of each value of an enum, `(symbols, 3) int64`.
        symbol_hashes: `(symbols,) uint64`.
        integers, hashes, numbers, escapes: as in `dataflows.codec.avro_scanner.scan_rows`.
        bits: the memory of `numbers`, as uint64.
        present: `(slots, messages) uint8`, set where a field, or the message around it, came.
        stack: `(2 * DEPTH,) int64`, for work.
        single, single_bits: one number each, in the same memory.

    Returns:
        `ACCEPTED`, or `REJECTED` if any row is not valid, or asks for the general path.
    """
    for index in range(rows.size):
        row = rows[index]
        at, end = starts[row], ends[row]
        around, depth, last = 0, 0, 0
        while True:
            if at == end:
                if depth == 0:
                    break
                depth -= 1
                end, around = stack[2 * depth], stack[2 * depth + 1]
                last = 0
                continue
            at, tag = _varint(blob, at, min(end, at + _HEAD))
            if at < 0 or tag > np.uint64(_MOST_TAG):
                return REJECTED
            number, wire = np.int64(tag >> np.uint64(3)), np.int64(tag & np.uint64(7))
            if number == 0:
                return REJECTED
            first, count = table[around, FIRST], table[around, COUNT]
            field = -1
            for i in range(count):
                candidate = first + (last + i) % count
                if table[candidate, NUMBER_OF] == number:
                    field = candidate
                    last = candidate - first
                    break
            if field < 0 or table[field, OP] == SKIP:
                if field >= 0 and table[field, WIRE] != wire:
                    return REJECTED
                if wire == VARINT:
                    at, _ = _varint(blob, at, end)
                    if at < 0:
                        return REJECTED
                elif wire == WORD:
                    at += 8
                elif wire == HALF:
                    at += 4
                elif wire == BYTES:
                    at, size = _varint(blob, at, min(end, at + _HEAD))
                    if at < 0 or size > np.uint64(end - at):
                        return REJECTED
                    at += np.int64(size)
                else:
                    return REJECTED
                if at > end:
                    return REJECTED
                if field >= 0 and table[field, SLOT] >= 0:
                    present[table[field, SLOT], row] = 1
                continue
            op, out, slot = table[field, OP], table[field, OUT], table[field, SLOT]
            if table[field, WIRE] != wire:
                return REJECTED
            if wire == VARINT:
                at, word = _varint(blob, at, end)
                if at < 0:
                    return REJECTED
                value = np.int64(word)
                if op in (ZIGZAG, ZIGZAG_NUMBER):
                    value = np.int64(word >> np.uint64(1)) ^ -np.int64(word & np.uint64(1))
                if op == BOOLEAN:
                    numbers[out, row] = 1.0 if word != np.uint64(0) else 0.0
                elif op == ENUM:
                    symbol = -1
                    for i in range(table[field, FIRST], table[field, FIRST] + table[field, COUNT]):
                        if symbols[i, 0] == value:
                            symbol = i
                            break
                    if symbol < 0:
                        return REJECTED
                    integers[2 * out, row] = symbols[symbol, 1]
                    integers[2 * out + 1, row] = symbols[symbol, 2]
                    hashes[out, row] = symbol_hashes[symbol]
                elif op == SECONDS:
                    if present[slot, row] == 1 or abs(value) > _MOST_SECONDS:
                        return REJECTED
                    integers[out, row] += value * 1000
                elif op == NANOS:
                    if present[slot, row] == 1 or value < 0 or value > 999_999_999:
                        return REJECTED
                    integers[out, row] += value // 1_000_000
                else:
                    if not _fits(value, table[field, BITS]):
                        return REJECTED
                    if op in (INTEGER, ZIGZAG):
                        integers[out, row] = value
                    else:
                        numbers[out, row] = float(value)
            elif wire in (WORD, HALF):
                width = 8 if wire == WORD else 4
                if end - at < width:
                    return REJECTED
                word = _fixed(blob, at, width)
                at += width
                if op == DOUBLE:
                    bits[out, row] = word
                elif op == FLOAT:
                    single_bits[0] = np.uint32(word)
                    numbers[out, row] = float(single[0])
                else:
                    value = np.int64(word)
                    if table[field, BITS] == -32 and value >= (1 << 31):
                        value -= 1 << 32
                    if not _fits(value, table[field, BITS]):
                        return REJECTED
                    if op == FIXED:
                        integers[out, row] = value
                    else:
                        numbers[out, row] = float(value)
                if op in (DOUBLE, FLOAT) and not np.isfinite(numbers[out, row]):
                    return REJECTED
            else:
                at, length = _varint(blob, at, min(end, at + _HEAD))
                if at < 0 or length > np.uint64(end - at):
                    return REJECTED
                after: Any = at + np.int64(length)
                if op == MESSAGE:
                    if present[slot, row] == 1 or depth >= DEPTH:
                        return REJECTED  # its pieces would have to be merged
                    present[slot, row] = 1
                    stack[2 * depth], stack[2 * depth + 1] = end, around
                    depth += 1
                    end, around, last = after, field, 0
                    continue
                valid, plain = is_text(blob, at, after)
                if not valid:
                    return REJECTED
                if not plain:
                    escapes[out] = 1
                integers[2 * out, row], integers[2 * out + 1, row] = at, after
                hashes[out, row] = xxh64(blob, at, after)
                at = after
            if slot >= 0:
                present[slot, row] = 1
    return ACCEPTED
