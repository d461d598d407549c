"""Scans Avro messages of one writer's schema into arrays, by a program made of that schema.

A program is a table of instructions (`dataflows.codec.avro_program`): what no field needs is passed
over, the rest goes into columns. Whatever the scanner accepts, the general path accepts with the
same values; it rejects the rest, and the general path then describes what is wrong. The bytes of
fields that nobody reads are measured, but not looked at.

The encoding is that of the Avro 1.12 specification, *Data Serialization and Deserialization*.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.state.compile import F64, I64, U8, inlined, kernel
from anabranch.state.keys.hashing import xxh64

U64 = NDArray[np.uint64]

(
    END, REJECT, SKIP_INTS, SKIP_FIXED, SKIP_BYTES, UNION, JUMP, BLOCK, NEXT, INTEGER, NUMBER,
    FLOAT, DOUBLE, BOOLEAN, TEXT, ENUM, DECIMAL, FIXED_DECIMAL, NULL,
) = range(19)  # fmt: skip
"""Instructions, the first column of a program, `(instructions, 4) int64`. The others, by name:

========================  ==========================================================================
SKIP_INTS n               pass over n integers
SKIP_FIXED n              pass over n bytes
SKIP_BYTES n              pass over n values with a length before them
UNION n                   read the number of a branch; go where that of the next n rows says
JUMP to                   go there
BLOCK end                 begin a block of an array or map; after the last one go to `end`
NEXT block                go to the block's beginning, or to its next entry
INTEGER out unit          an integer
NUMBER out unit           an integer as a float
FLOAT, DOUBLE out         a float
BOOLEAN out               0.0 or 1.0
TEXT out                  a text
ENUM out first n          one of n texts in the table `symbols`
DECIMAL out scale         a decimal in bytes, as a float
FIXED_DECIMAL out scale n a decimal in n bytes, as a float
NULL slot                 the field of this number is null
========================  ==========================================================================

``unit`` is what the integer counts, see `UNITS_MS`.
"""

MILLIS, MICROS, NANOS, DAYS = 0, 1, 2, 3
"""What an integer counts: milliseconds (or nothing), …; it is read as milliseconds."""

REJECTED = -1
DEPTH = 64
"""How deep arrays and maps may be in each other."""

_EXACT = 1 << 53
_MAX_SCALE = 22


@inlined
def _read_varint(blob: bytes, at: int, end: int) -> tuple[int, np.uint64]:
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
def _read_integer(blob: bytes, at: int, end: int) -> tuple[int, Any]:
    """The end of the zigzag integer at `at`, and its value; -1 if there is none."""
    after, coded = _read_varint(blob, at, end)
    return after, np.int64(coded >> np.uint64(1)) ^ -np.int64(coded & np.uint64(1))


@inlined
def _skip_integer(blob: bytes, at: int, end: int) -> int:
    """The end of the integer at `at`; -1 if it is cut or too long."""
    limit = min(end, at + 10)
    while at < limit:
        if blob[at] < 128:
            return at + 1
        at += 1
    return -1


@inlined
def _in_unit(value: int, unit: int) -> int:
    """An integer as milliseconds."""
    if unit == MILLIS:
        return value
    if unit == MICROS:
        return value // 1000
    if unit == NANOS:
        return value // 1_000_000
    return value * 86_400_000


@kernel
def is_text(blob: bytes, at: int, end: int) -> tuple[bool, bool]:
    """Whether the bytes are UTF-8, and whether the text needs no escape in JSON."""
    plain = True
    while at < end:
        byte = blob[at]
        if byte < 128:
            if byte < 32 or byte == 34 or byte == 92:
                plain = False
            at += 1
            continue
        if byte < 0xC2 or byte > 0xF4:
            return False, False
        size = 2 if byte < 0xE0 else (3 if byte < 0xF0 else 4)
        if at + size > end:
            return False, False
        second = blob[at + 1]
        least = 0xA0 if byte == 0xE0 else (0x90 if byte == 0xF0 else 0x80)
        most = 0x9F if byte == 0xED else (0x8F if byte == 0xF4 else 0xBF)  # no surrogates
        if second < least or second > most:
            return False, False
        for i in range(2, size):
            if blob[at + i] < 0x80 or blob[at + i] > 0xBF:
                return False, False
        at += size
    return True, plain


@inlined
def _read_decimal(blob: bytes, at: int, size: int, scale: int) -> tuple[Any, float]:
    """Whether the decimal is an exact quotient of floats, and its value."""
    if size < 1 or size > 8 or scale > _MAX_SCALE:
        return False, 0.0
    value: Any = np.int64(blob[at])
    if value >= 128:
        value -= 256
    for i in range(1, size):
        value = value * 256 + np.int64(blob[at + i])
    power = 1.0
    for _ in range(scale):
        power *= 10.0
    return abs(value) <= _EXACT, float(value) / power


@inlined
def _word(blob: bytes, at: int, size: int) -> np.uint64:
    """`size` bytes as a little-endian number."""
    value = np.uint64(0)
    for i in range(size):
        value |= np.uint64(blob[at + i]) << np.uint64(8 * i)
    return value


@kernel
def scan_rows(
    blob: bytes, sizes: I64, skip: int, wanted: int, program: I64, symbols: I64, symbol_hashes: U64,
    integers: I64, hashes: U64, numbers: F64, bits: U64, nulls: U8, escapes: U8, stack: I64,
    single: NDArray[np.float32], single_bits: NDArray[np.uint32],
) -> int:  # fmt: skip
    """Read messages by a program.

    Args:
        blob: the messages one after the other, and behind them the texts of symbols.
        sizes: how many bytes each message has, `(messages,) int64`.
        skip: how many bytes of each come before the data.
        wanted: the schema id that these name, of the messages to read; -1: all are read.
        program: see `NULL` and its neighbours.
        symbols: start and end in `blob` of each symbol of an enum, `(symbols, 2) int64`.
        symbol_hashes: `(symbols,) uint64`.
        integers: `(any, messages) int64`: for text `n`, rows `2n` and `2n + 1` are its start and
            end in `blob`.
        hashes: `(texts, messages) uint64`.
        numbers: `(any, messages) float64`; `bits` is the same memory as uint64.
        nulls: `(slots, messages) uint8`, set where a field is null.
        escapes: `(texts,) uint8`, set where a text needs an escape in JSON.
        stack: `(DEPTH,) int64`, for work.
        single, single_bits: one number each, in the same memory.

    Returns:
        How many messages were read; `REJECTED` if any is not valid, or asks for the general path.
    """
    end, read = 0, 0
    for row in range(sizes.size):
        at = end
        end += sizes[row]
        if end - at < skip:
            return REJECTED
        if wanted >= 0:
            if blob[at] != 0:
                return REJECTED
            named = np.int64(0)
            for i in range(1, 5):
                named = named * 256 + np.int64(blob[at + i])
            if named != wanted:
                continue
        at += skip
        read += 1
        pc, depth = 0, 0
        while True:
            op, a = program[pc, 0], program[pc, 1]
            if op == SKIP_INTS:
                for _ in range(a):
                    at = _skip_integer(blob, at, end)
                    if at < 0:
                        return REJECTED
            elif op == SKIP_FIXED:
                at += a
            elif op == SKIP_BYTES:
                for _ in range(a):
                    at, size = _read_integer(blob, at, end)
                    if at < 0 or size < 0 or size > end - at:
                        return REJECTED
                    at += size
            elif op == UNION:
                if at < end and blob[at] < 128:
                    branch: Any = np.int64(blob[at]) >> 1
                    if (blob[at] & 1) == 1 or branch >= a:
                        return REJECTED
                    at += 1
                else:
                    at, branch = _read_integer(blob, at, end)
                    if at < 0 or branch < 0 or branch >= a:
                        return REJECTED
                pc = program[pc + 1 + branch, 1]
                continue
            elif op == JUMP:
                pc = a
                continue
            elif op == TEXT:
                at, size = _read_integer(blob, at, end)
                if at < 0 or size < 0 or size > end - at:
                    return REJECTED
                valid, plain = is_text(blob, at, at + size)
                if not valid:
                    return REJECTED
                if not plain:
                    escapes[a] = 1
                integers[2 * a, row], integers[2 * a + 1, row] = at, at + size
                hashes[a, row] = xxh64(blob, at, at + size)
                at += size
            elif op in (INTEGER, NUMBER):
                at, value = _read_integer(blob, at, end)
                if at < 0:
                    return REJECTED
                unit = program[pc, 2]
                if unit == DAYS and abs(value) > 10**10:
                    return REJECTED
                value = _in_unit(value, unit)
                if op == INTEGER:
                    integers[a, row] = value
                else:
                    numbers[a, row] = float(value)
            elif op == DOUBLE:
                if end - at < 8:
                    return REJECTED
                bits[a, row] = _word(blob, at, 8)
                if not np.isfinite(numbers[a, row]):
                    return REJECTED
                at += 8
            elif op == FLOAT:
                if end - at < 4:
                    return REJECTED
                single_bits[0] = np.uint32(_word(blob, at, 4))
                numbers[a, row] = float(single[0])
                if not np.isfinite(numbers[a, row]):
                    return REJECTED
                at += 4
            elif op == BOOLEAN:
                if at >= end or blob[at] > 1:
                    return REJECTED
                numbers[a, row] = float(blob[at])
                at += 1
            elif op == ENUM:
                at, symbol = _read_integer(blob, at, end)
                if at < 0 or symbol < 0 or symbol >= program[pc, 3]:
                    return REJECTED
                symbol += program[pc, 2]
                integers[2 * a, row] = symbols[symbol, 0]
                integers[2 * a + 1, row] = symbols[symbol, 1]
                hashes[a, row] = symbol_hashes[symbol]
            elif op in (DECIMAL, FIXED_DECIMAL):
                size = program[pc, 3]
                if op == DECIMAL:
                    at, size = _read_integer(blob, at, end)
                if at < 0 or size < 0 or size > end - at:
                    return REJECTED
                exact, number = _read_decimal(blob, at, size, program[pc, 2])
                if not exact:
                    return REJECTED
                numbers[a, row] = number
                at += size
            elif op == NULL:
                nulls[a, row] = 1
            elif op == BLOCK:
                at, count = _read_integer(blob, at, end)
                if at < 0:
                    return REJECTED
                if count == 0:
                    pc = a
                    continue
                if count < 0:
                    at, size = _read_integer(blob, at, end)
                    if at < 0 or size < 0 or size > end - at:
                        return REJECTED
                    at += size
                    continue
                if depth >= DEPTH or count > end - at:
                    return REJECTED
                stack[depth] = count
                depth += 1
            elif op == NEXT:
                stack[depth - 1] -= 1
                if stack[depth - 1] > 0:
                    pc = a + 1
                else:
                    depth -= 1
                    pc = a
                continue
            elif op == END:
                break
            else:
                return REJECTED
            if at > end:
                return REJECTED
            pc += 1
        if at != end:
            return REJECTED
    return read
