"""Deltas, what changed since the last commit: the only form in which state is stored.

A delta is a set of named parts of three kinds::

    rows     "card/0/chunks"   index ─▶ a row of each column      arrays: the last write of a row
    items    "card/keys"       number ─▶ bytes, or removed        text, pickles of single things
    blobs    "models"          bytes                              small things, replaced

Deltas of successive generations can be merged: the last write wins, row by row. So only the changed
rows of an array are written, and all deltas merged are the complete state (an *image*).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from anabranch.state.errors import StateError

I64 = NDArray[np.int64]

_HEAD = struct.Struct("<I")
_ALIGN = 8
_KINDS = {"rows": "r/", "items": "i/", "blobs": "b/"}
_CLEARED = "c"


@dataclass(slots=True)
class Rows:
    """Rows of arrays that share an index.

    ``index`` is ``(n,) int64``; each of ``columns`` has ``n`` rows, of any dtype and shape.
    """

    index: I64
    columns: dict[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.index)


@dataclass(slots=True)
class Items:
    """Bytes by number; None where one was removed. ``index`` is ``(n,) int64``."""

    index: I64
    values: list[bytes | None]

    def __len__(self) -> int:
        return len(self.index)


@dataclass(slots=True)
class Delta:
    """Named parts. ``cleared`` are parts that are removed before this delta's own are applied.

    >>> old = Delta(rows={"a": Rows(np.array([0, 1]), {"x": np.array([1.0, 2.0])})})
    >>> new = Delta(rows={"a": Rows(np.array([1, 5]), {"x": np.array([7.0, 8.0])})})
    >>> merged = merge([old, new]).rows["a"]
    >>> merged.index, merged.columns["x"]
    (array([0, 1, 5]), array([1., 7., 8.]))
    """

    rows: dict[str, Rows] = field(default_factory=dict)
    items: dict[str, Items] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    cleared: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.rows or self.items or self.blobs or self.cleared)

    def put(self, name: str, other: Delta) -> None:
        """Add all parts of ``other``, as ``name/…``."""
        for kind in _KINDS:
            getattr(self, kind).update(
                {f"{name}/{part}": value for part, value in getattr(other, kind).items()}
            )
        self.cleared.update(f"{name}/{part}" for part in other.cleared)

    def part(self, name: str) -> Delta:
        """The parts that `put` added under ``name``."""
        head, added = f"{name}/", Delta()
        for kind in _KINDS:
            parts: dict[str, Any] = getattr(self, kind)
            getattr(added, kind).update(
                {part[len(head) :]: value for part, value in parts.items() if part.startswith(head)}
            )
        added.cleared = {part[len(head) :] for part in self.cleared if part.startswith(head)}
        return added


def merge(deltas: Sequence[Delta]) -> Delta:
    """One delta with the same effect as all of these, oldest first."""
    merged = Delta()
    rows: dict[str, list[Rows]] = {}
    items: dict[str, list[Items]] = {}
    for delta in deltas:
        merged.cleared |= delta.cleared
        for name in delta.cleared:
            for parts in (rows, items, merged.blobs):
                parts.pop(name, None)
        for name, changed in delta.rows.items():
            rows.setdefault(name, []).append(changed)
        for name, listed in delta.items.items():
            items.setdefault(name, []).append(listed)
        merged.blobs.update(delta.blobs)
    merged.rows = {name: _merge_rows(parts) for name, parts in rows.items()}
    merged.items = {name: _merge_items(parts) for name, parts in items.items()}
    return merged


Buffers = list[bytes | memoryview]
"""The parts of a record, to be concatenated: large arrays are not copied."""


def encode(delta: Delta) -> dict[str, bytes]:
    """Encode a delta as records by key, one per part (and one for what is cleared)."""
    return {key: b"".join(buffers) for key, buffers in encode_parts(delta).items()}


def encode_parts(delta: Delta) -> dict[str, Buffers]:
    """As `encode`, each record as buffers, which stay valid as long as the delta's arrays do."""
    records: dict[str, Buffers] = {_KINDS["blobs"] + n: [blob] for n, blob in delta.blobs.items()}
    for name, rows in delta.rows.items():
        records[_KINDS["rows"] + name] = _pack({"index": _packed(rows.index), **rows.columns}, b"")
    for name, items in delta.items.items():
        arrays = {"index": _packed(items.index)}
        records[_KINDS["items"] + name] = _pack(arrays, msgspec.msgpack.encode(items.values))
    if delta.cleared:
        records[_CLEARED] = [msgspec.msgpack.encode(sorted(delta.cleared))]
    return records


def decode(records: Mapping[str, bytes]) -> Delta:
    """Decode the records of `encode`. The delta's arrays are read-only.

    Raises:
        StateError: a record is damaged.
    """
    delta = Delta()
    try:
        for key, record in records.items():
            if key == _CLEARED:
                delta.cleared = set(msgspec.msgpack.decode(record, type=list[str]))
                continue
            kind, name = key[:2], key[2:]
            if kind == _KINDS["blobs"]:
                delta.blobs[name] = record
                continue
            arrays, rest = _unpack(record)
            index = arrays.pop("index").astype(np.int64)
            if kind == _KINDS["rows"]:
                delta.rows[name] = Rows(index, arrays)
            else:
                values = msgspec.msgpack.decode(rest, type=list[bytes | None])
                delta.items[name] = Items(index, values)
    except (ValueError, KeyError, struct.error, msgspec.MsgspecError, TypeError) as error:
        raise StateError(
            f"a record of the state can't be read: {error}; restore a copy, or replay"
        ) from error
    return delta


def _merge_rows(parts: list[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    present = np.zeros(max(int(part.index.max(initial=-1)) for part in parts) + 1, np.bool_)
    for part in parts:
        present[part.index] = True
    index = np.flatnonzero(present)
    if len(index) == len(present):  # no gap: a row's number is its position
        places = [part.index for part in parts]
    else:
        place = np.cumsum(present) - 1
        places = [place[part.index] for part in parts]
    columns = {}
    for name in parts[-1].columns:
        given = [part.columns[name] for part in parts]
        merged = np.empty((len(index), *given[-1].shape[1:]), np.result_type(*given))
        for at, column in zip(places, given, strict=True):
            merged[at] = column  # the last write of a row is kept
        columns[name] = merged
    return Rows(index, columns)


def _merge_items(parts: list[Items]) -> Items:
    if len(parts) == 1:
        return parts[0]
    index = np.concatenate([part.index for part in parts])
    last = _last_writes(index)
    values = [value for part in parts for value in part.values]
    return Items(index[last], [values[at] for at in last.tolist()])


def _last_writes(index: I64) -> I64:
    """For each distinct number in ``index``, ascending: its last position."""
    if not len(index):
        return index
    latest = np.full(int(index.max()) + 1, -1)
    latest[index] = np.arange(len(index))  # of equal numbers the last is kept
    return latest[latest >= 0]


def _packed(index: I64) -> NDArray[np.int32]:
    if len(index) and int(index.max()) >= 2**31:
        raise StateError("the state has grown beyond 2**31 rows of one kind: use more shards")
    return index.astype(np.int32)


def _pack(arrays: Mapping[str, NDArray[Any]], rest: bytes) -> Buffers:
    """A header with names, types and shapes; then the arrays, each aligned to 8 bytes."""
    fields = [(name, array.dtype.str, array.shape) for name, array in arrays.items()]
    header = msgspec.msgpack.encode(fields)
    buffers: Buffers = [_HEAD.pack(len(header)), header]
    at = len(header) + _HEAD.size
    for array in arrays.values():
        pad = -at % _ALIGN
        data = np.ascontiguousarray(array).data.cast("B") if array.size else b""
        buffers += [bytes(pad), data]
        at += pad + array.nbytes
    buffers.append(rest)
    return buffers


def _unpack(record: bytes) -> tuple[dict[str, NDArray[Any]], memoryview]:
    (length,) = _HEAD.unpack_from(record)
    at = _HEAD.size + length
    fields = msgspec.msgpack.decode(
        record[_HEAD.size : at], type=list[tuple[str, str, tuple[int, ...]]]
    )
    arrays: dict[str, NDArray[Any]] = {}
    for name, dtype, shape in fields:
        at += -at % _ALIGN
        size = int(np.prod(shape, dtype=np.int64))
        array = np.frombuffer(record, np.dtype(dtype), size, at) if size else np.zeros(0, dtype)
        arrays[name] = array.reshape(shape)
        at += array.nbytes
    return arrays, memoryview(record)[at:]
