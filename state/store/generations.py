"""Storage format of generations: segments of records, each with its checksum.

A *segment* is the merged delta of generations ``first`` to ``last``; a commit makes one of a single
generation. Keys::

    root                                   identity, generation, list of segments
    m/<last>/<first>                       a segment's manifest: size and checksum of each record
    d/<last>/<first>/<part>/<piece>        a record, cut into pieces of at most 4 MiB

Generations are written as 16 hex digits. A segment exists if the root names it: pieces may be
written before, for which the root first names the segment as *staged*.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from anabranch.state.errors import StateError
from anabranch.state.store.delta import Buffers, Delta, decode, encode_parts, merge

FORMAT = 1
PIECE = 4 << 20
ROOT = b"root"
# `encode` prefixes names of parts with two characters, and has one key for what is cleared.
BLOB, CLEARED = "b/", "c"

Get = Callable[[bytes], bytes | None]
T = TypeVar("T")


class Segment(msgspec.Struct, frozen=True):
    """The manifest. ``records`` has size in bytes and CRC-32 by `encode`'s key."""

    first: int
    last: int
    committed_ms: int
    records: dict[str, tuple[int, int]]

    @property
    def size(self) -> int:
        """Total size of its records in bytes."""
        return sum(size for size, _ in self.records.values())

    @property
    def base(self) -> bool:
        """Whether it starts with the first generation."""
        return self.first == 1

    def all_keys(self) -> Iterator[bytes]:
        """All its keys in the database."""
        yield manifest_key(self.first, self.last)
        for part, (size, _) in self.records.items():
            yield from piece_keys(self.first, self.last, part, size)


class Root(msgspec.Struct):
    """The root record. ``segments`` and ``staged`` are pairs of first and last generation."""

    identity: dict[str, str]
    format: int = FORMAT
    generation: int = 0
    adopted: int = 0
    committed_ms: int = 0
    segments: list[tuple[int, int]] = []
    staged: list[tuple[int, int]] = []


class _Format(msgspec.Struct):
    format: int


@dataclass(frozen=True, slots=True)
class StoreSummary:
    """Contents of a store. ``bytes`` are of all its deltas, by part, before compression."""

    generation: int
    adopted: int
    deltas: int
    bytes: dict[str, int]
    identity: dict[str, str]
    format: int
    committed_ms: int


def segment_prefix(first: int, last: int) -> bytes:
    return b"d/%016x/%016x/" % (last, first)


def segment_range(first: int, last: int) -> tuple[bytes, bytes]:
    """From its first possible data key to just after its last."""
    prefix = segment_prefix(first, last)
    return prefix, prefix[:-1] + b"0"  # "0" follows "/"


def manifest_key(first: int, last: int) -> bytes:
    return b"m/%016x/%016x" % (last, first)


def piece_keys(first: int, last: int, part: str, size: int) -> list[bytes]:
    prefix = segment_prefix(first, last) + part.encode()
    return [b"%s/%08x" % (prefix, at) for at in range(max(1, -(-size // PIECE)))]


def pieces(record: Buffers) -> Iterator[bytes]:
    """A record cut into pieces, at least one."""
    gathered: Buffers = []
    size = cut = 0
    for buffer in record:
        at = 0
        while len(buffer) - at >= PIECE - size:
            gathered.append(buffer[at : at + PIECE - size])
            at += PIECE - size
            yield b"".join(gathered)
            gathered, size, cut = [], 0, cut + 1
        if at < len(buffer):
            gathered.append(buffer[at:])
            size += len(buffer) - at
    if size or not cut:
        yield b"".join(gathered)


def measure(record: Buffers) -> tuple[int, int]:
    """Size in bytes and CRC-32 of a record."""
    size = checksum = 0
    for buffer in record:
        size += len(buffer)
        checksum = zlib.crc32(buffer, checksum)
    return size, checksum


def seal(value: Root | Segment) -> bytes:
    """Its encoding, preceded by a checksum."""
    packed = msgspec.msgpack.encode(value)
    return zlib.crc32(packed).to_bytes(4, "little") + packed


class Contents:
    """The contents of a store, read through ``get``, which returns a key's value or None.

    Errors are StateErrors that name ``path`` and what is damaged.
    """

    def __init__(self, path: Path, get: Get) -> None:
        self.path, self._get = path, get

    def damaged(self, what: str) -> StateError:
        return StateError(
            f"the state at {self.path} is damaged: {what}; "
            "restore a copy of it, or remove it to start from scratch"
        )

    def root(self) -> Root:
        packed = self._unseal(ROOT, "its root record")
        stored = self._unpack(packed, _Format, "its root record").format
        if stored != FORMAT:
            raise StateError(
                f"the state at {self.path} has format {stored}, this program reads {FORMAT}: "
                "run the version that wrote it, or remove it to start from scratch"
            )
        return self._unpack(packed, Root, "its root record")

    def segments(self, root: Root) -> list[Segment]:
        """The manifests, oldest first; checks that no generation is missing between them."""
        segments: list[Segment] = []
        for first, last in root.segments:
            what = f"the manifest of {_generations(first, last)}"
            packed = self._unseal(manifest_key(first, last), what)
            segment = self._unpack(packed, Segment, what)
            expected = segments[-1].last + 1 if segments else 1
            if (segment.first, segment.last) != (first, last) or first != expected:
                raise self.damaged(f"{what} does not match the root record")
            segments.append(segment)
        if (segments[-1].last if segments else 0) != root.generation:
            raise self.damaged(f"generation {root.generation} is missing")
        return segments

    def record(self, segment: Segment, part: str) -> bytes:
        """A record of a segment; its checksum is verified."""
        size, checksum = segment.records[part]
        what = f"record {part!r} of {_generations(segment.first, segment.last)}"
        parts = []
        for key in piece_keys(segment.first, segment.last, part, size):
            piece = self._get(key)
            if piece is None:
                raise self.damaged(f"{what} is missing")
            parts.append(piece)
        record = parts[0] if len(parts) == 1 else b"".join(parts)
        if len(record) != size or zlib.crc32(record) != checksum:
            raise self.damaged(f"{what} has a wrong checksum")
        return record

    def image(self, segments: list[Segment]) -> Delta:
        """The complete state after these segments, oldest first. Its arrays may be read-only."""
        image = Delta()
        for part in self.merged(segments):
            image.rows.update(part.rows)
            image.items.update(part.items)
            image.blobs.update(part.blobs)
        return image

    def merged(self, run: list[Segment]) -> Iterator[Delta]:
        """The segments, oldest first, merged part by part, so that one part at a time is in memory.

        If the run starts with the first generation, what was removed or cleared is left out.
        """
        base = not run or run[0].base
        cleared_at: dict[str, int] = {}
        for at, segment in enumerate(run):
            if CLEARED in segment.records:
                for name in self._decode(segment, CLEARED).cleared:
                    cleared_at[name] = at
        if cleared_at and not base:
            yield Delta(cleared=set(cleared_at))
        for part in sorted({part for segment in run for part in segment.records} - {CLEARED}):
            since = run[cleared_at.get(part[2:], 0) :]
            holders = [segment for segment in since if part in segment.records]
            if not holders:
                continue
            if part.startswith(BLOB):
                holders = holders[-1:]  # the last write replaces it
            merged = merge([self._decode(segment, part) for segment in holders])
            if base:
                _drop_removed(merged)
            yield merged

    def problems(self) -> list[str]:
        """Verify everything; a sentence for each problem."""
        try:
            segments = self.segments(self.root())
        except StateError as error:
            return [str(error)]
        problems = []
        for segment in segments:
            for part in segment.records:
                try:
                    self._decode(segment, part)
                except StateError as error:
                    problems.append(str(error))
        return problems

    def summary(self) -> StoreSummary:
        root = self.root()
        return summarise(root, self.segments(root))

    def _decode(self, segment: Segment, part: str) -> Delta:
        record = self.record(segment, part)
        try:
            return decode({part: record})
        except StateError as error:
            raise self.damaged(f"{error} ({part!r})") from error

    def _unseal(self, key: bytes, what: str) -> bytes:
        sealed = self._get(key)
        if sealed is None:
            raise self.damaged(f"{what} is missing")
        if zlib.crc32(sealed[4:]).to_bytes(4, "little") != sealed[:4]:
            raise self.damaged(f"{what} has a wrong checksum")
        return sealed[4:]

    def _unpack(self, packed: bytes, kind: type[T], what: str) -> T:
        try:
            return msgspec.msgpack.decode(packed, type=kind)
        except msgspec.MsgspecError as error:
            raise self.damaged(f"{what} can't be read: {error}") from error


def summarise(root: Root, segments: list[Segment]) -> StoreSummary:
    sizes: dict[str, int] = {}
    for segment in segments:
        for part, (size, _) in segment.records.items():
            if part != CLEARED:
                sizes[part[2:]] = sizes.get(part[2:], 0) + size
    return StoreSummary(
        generation=root.generation,
        adopted=root.adopted,
        deltas=len(segments),
        bytes=sizes,
        identity=dict(root.identity),
        format=root.format,
        committed_ms=root.committed_ms,
    )


def differences(stored: Mapping[str, str], given: Mapping[str, str]) -> str:
    """The differences of two identities: ``river 0.24.2, here 0.25.0``; empty if there are none."""
    names = sorted(name for name in {*stored, *given} if stored.get(name) != given.get(name))
    return "; ".join(
        f"{name} {stored.get(name, '(none)')}, here {given.get(name, '(none)')}" for name in names
    )


def records_of(deltas: Iterable[Delta]) -> Iterator[tuple[str, Buffers]]:
    """The records of deltas without a common part."""
    for delta in deltas:
        yield from encode_parts(delta).items()


def _drop_removed(delta: Delta) -> None:
    for items in delta.items.values():
        if None in items.values:
            kept = [at for at, value in enumerate(items.values) if value is not None]
            items.index = items.index[kept]
            items.values = [items.values[at] for at in kept]


def _generations(first: int, last: int) -> str:
    return f"generation {last}" if first == last else f"generations {first} to {last}"
