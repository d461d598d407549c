"""Scans JSON objects with known fields into arrays, in one pass over their bytes.

It accepts what programs commonly write: the declared fields, each once, in any order; texts without
escapes; integers of at most 18 digits; fractions whose digits and power of ten are exact doubles,
so that one division gives the correctly rounded value (Clinger 1990, *How to read floating point
numbers accurately*). Anything else is rejected, and msgspec then decodes the messages: it knows the
rest of JSON and describes mistakes. Whatever the scanner accepts, msgspec accepts with the same
values.

Messages are joined by line ends. A line end is part of no text, number or name, so every loop stops
at the last one, whatever the bytes are.

The kernel takes its arrays one by one: packed into NamedTuples a call took 0.25 µs longer, which
would be a per cent of a batch with one row.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from anabranch.state.arrays import extent
from anabranch.state.compile import F64, I64, U8, inlined, kernel
from anabranch.state.keys.hashing import xxh64

U64 = NDArray[np.uint64]

TEXT, INTEGER, NUMBER, BOOLEAN = 0, 1, 2, 3
"""Kinds of fields. A number is a float or an integer; a boolean becomes 0.0 or 1.0."""

NAME_AT, NAME_SIZE, KIND, OUT, REQUIRED = 0, 1, 2, 3, 4
"""Columns of a plan, `(fields, 5) int64`: start and size of the field's name in `names`, its kind,
its row in the output of its kind (-1 for a field that is only checked), and whether it is required.
"""

REJECTED, ASCII, UNICODE = 0, 1, 2
"""Results of `read_rows`. After `UNICODE` the caller must still check that the bytes are UTF-8."""

_POWERS: Final = np.array([float(10**power) for power in range(23)])
_DIGITS: Final = 18
_EXACT: Final = 1 << 53

_LINE, _QUOTE, _BACKSLASH, _SPACE, _TAB, _RETURN = 10, 34, 92, 32, 9, 13
_OPEN, _CLOSE, _COLON, _COMMA, _MINUS, _PLUS, _POINT = 123, 125, 58, 44, 45, 43, 46
_ZERO, _E, _LOWER = 48, 101, 32


@inlined
def _skip(blob: bytes, at: int) -> int:
    """The position after blanks; a line end is none."""
    while blob[at] == _SPACE or blob[at] == _TAB or blob[at] == _RETURN:
        at += 1
    return at


@inlined
def _digit(blob: bytes, at: int) -> int:
    """The digit at `at`; outside 0 to 9 if there is none."""
    return int(blob[at]) - _ZERO


@inlined
def _is_name(blob: bytes, at: int, names: U8, plan: I64, field: int) -> bool:
    """Whether the field's name and a quote follow at `at`."""
    own, size = plan[field, NAME_AT], plan[field, NAME_SIZE]
    i = 0
    while i < size and blob[at + i] == names[own + i]:
        i += 1
    return bool(i == size and blob[at + size] == _QUOTE)


@kernel
def _find_name(blob: bytes, at: int, names: U8, plan: I64) -> int:
    """The field whose name follows at `at`; -1 if none does."""
    for field in range(plan.shape[0]):
        if _is_name(blob, at, names, plan, field):
            return field
    return -1


@inlined
def _skip_text(blob: bytes, at: int) -> tuple[int, bool]:
    """The end of the text at `at`, and whether it is ASCII; -1 if it has escapes."""
    ascii = True
    while blob[at] != _QUOTE:
        if blob[at] < _SPACE or blob[at] == _BACKSLASH:
            return -1, ascii
        if blob[at] >= 128:
            ascii = False
        at += 1
    return at, ascii


@inlined
def _read_integer(blob: bytes, at: int) -> tuple[int, int]:
    """The end of the integer at `at`, and its value; -1 if it is not of the common form."""
    negative = blob[at] == _MINUS
    if negative:
        at += 1
    first, value = at, 0
    while 0 <= _digit(blob, at) <= 9 and at - first <= _DIGITS:
        value = value * 10 + _digit(blob, at)
        at += 1
    size = at - first
    if size == 0 or size > _DIGITS or (blob[first] == _ZERO and (size > 1 or negative)):
        return -1, 0
    return at, -value if negative else value


@inlined
def _read_number(blob: bytes, at: int) -> tuple[int, float]:
    """The end of the number at `at`, and its value; -1 if it is not of the common form."""
    negative = blob[at] == _MINUS
    if negative:
        at += 1
    first, digits, power = at, 0, 0
    while 0 <= _digit(blob, at) <= 9 and at - first <= _DIGITS:
        digits = digits * 10 + _digit(blob, at)
        at += 1
    size = at - first
    if size == 0 or (blob[first] == _ZERO and size > 1):
        return -1, 0.0
    whole = True
    if blob[at] == _POINT:
        whole = False
        at += 1
        point = at
        while 0 <= _digit(blob, at) <= 9 and size + at - point <= _DIGITS:
            digits = digits * 10 + _digit(blob, at)
            at += 1
        power = point - at
        size -= power
        if power == 0:
            return -1, 0.0
    if blob[at] | _LOWER == _E:
        whole = False
        at += 1
        negative_power = blob[at] == _MINUS
        if negative_power or blob[at] == _PLUS:
            at += 1
        exponent_at, exponent = at, 0
        while 0 <= _digit(blob, at) <= 9 and at - exponent_at < 4:
            exponent = exponent * 10 + _digit(blob, at)
            at += 1
        if at == exponent_at:
            return -1, 0.0
        power += -exponent if negative_power else exponent
    if size > _DIGITS or digits > _EXACT or abs(power) > 22 or (whole and negative and digits == 0):
        return -1, 0.0
    value = float(digits)
    value = value * _POWERS[power] if power >= 0 else value / _POWERS[-power]
    return at, -value if negative else value


@inlined
def _read_boolean(blob: bytes, at: int) -> tuple[int, float]:
    """The end of `true` or `false` at `at`, and 1.0 or 0.0; -1 if it is neither."""
    if blob[at] == 116 and blob[at + 1] == 114 and blob[at + 2] == 117 and blob[at + 3] == _E:
        return at + 4, 1.0
    if blob[at] != 102 or blob[at + 1] != 97 or blob[at + 2] != 108 or blob[at + 3] != 115:
        return -1, 0.0
    return (at + 5, 0.0) if blob[at + 4] == _E else (-1, 0.0)


@kernel
def read_rows(
    blob: bytes, size: int, names: U8, plan: I64, time: int, published: I64, integers: I64,
    hashes: U64, numbers: F64,
) -> tuple[int, int, int, int]:  # fmt: skip
    """Read as many objects as the outputs have rows (at least one).

    Args:
        blob: the objects, each followed by a line end; `size` bytes.
        names: the names of all fields, concatenated.
        plan: `(fields, 5) int64`, at most 60 fields.
        time: the row of `integers` that holds the event time.
        published: `(rows,) int64` ms.
        integers: `(any, rows) int64`: a row of values for each integer field; for text field `n`,
            rows `2n` and `2n + 1` are its start and end in `blob`.
        hashes: `(texts, rows) uint64`.
        numbers: `(any, rows) float64`, for numbers and booleans.

    Where an object lacks a field, the outputs stay as they were.

    Returns:
        The result; the least and the greatest time; the least of `published`.
    """
    fields, at, result = plan.shape[0], 0, ASCII
    required = 0
    for field in range(fields):
        required |= plan[field, REQUIRED] << field
    for row in range(integers.shape[1]):
        at = _skip(blob, at)
        if blob[at] != _OPEN:
            return REJECTED, 0, 0, 0
        seen, field = 0, -1
        while True:
            at = _skip(blob, at + 1)
            if blob[at] != _QUOTE:
                return REJECTED, 0, 0, 0
            at += 1
            field = field + 1 if field + 1 < fields else 0
            if not _is_name(blob, at, names, plan, field):
                field = _find_name(blob, at, names, plan)
            if field < 0 or seen >> field & 1:
                return REJECTED, 0, 0, 0
            seen |= 1 << field
            at = _skip(blob, at + plan[field, NAME_SIZE] + 1)
            if blob[at] != _COLON:
                return REJECTED, 0, 0, 0
            at = _skip(blob, at + 1)
            kind, out = plan[field, KIND], plan[field, OUT]
            if kind == TEXT:
                if blob[at] != _QUOTE:
                    return REJECTED, 0, 0, 0
                start = at + 1
                at, ascii = _skip_text(blob, start)
                if at < 0:
                    return REJECTED, 0, 0, 0
                if not ascii:
                    result = UNICODE
                if out >= 0:
                    integers[2 * out, row], integers[2 * out + 1, row] = start, at
                    hashes[out, row] = xxh64(blob, start, at)
                at += 1
            elif kind == INTEGER:
                at, integer = _read_integer(blob, at)
                if out >= 0:
                    integers[out, row] = integer
            else:
                if kind == NUMBER:
                    at, value = _read_number(blob, at)
                else:
                    at, value = _read_boolean(blob, at)
                if out >= 0:
                    numbers[out, row] = value
            if at < 0:
                return REJECTED, 0, 0, 0
            at = _skip(blob, at)
            if blob[at] != _COMMA:
                break
        if blob[at] != _CLOSE or seen & required != required:
            return REJECTED, 0, 0, 0
        at = _skip(blob, at + 1)
        if blob[at] != _LINE:
            return REJECTED, 0, 0, 0
        at += 1
    if at != size:
        return REJECTED, 0, 0, 0
    least, greatest = extent(integers[time])
    return result, least, greatest, extent(published)[0]
