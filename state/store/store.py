"""The store of one state partition (a shard of windows, the models, a source partition).

Each commit is a *generation*: a delta, stored as it is. The state at a generation is the merge of
all deltas up to it; rolling back drops later ones. Old ones are merged in the background
(`compaction`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
from rocksdict import WriteBatch, WriteOptions

from anabranch.state.errors import StateError
from anabranch.state.store.compaction import Compactor, choose
from anabranch.state.store.database import (
    SYNCED,
    UNSYNCED,
    checked,
    create_database,
    disk_errors,
    open_database,
)
from anabranch.state.store.delta import Buffers, Delta, encode_parts
from anabranch.state.store.generations import (
    ROOT,
    Contents,
    Root,
    Segment,
    StoreSummary,
    differences,
    manifest_key,
    measure,
    piece_keys,
    pieces,
    records_of,
    seal,
    segment_range,
    summarise,
)

_log = logging.getLogger("anabranch.state")
_compactor = Compactor()

# Bytes of one write. A growing batch is copied, so large ones cost more per byte; and rocksdict
# holds the GIL while it writes, so those of a merge are small.
_COMMIT_BATCH = 8 << 20
_MERGE_BATCH = 4 << 20


class _Abandoned(Exception):
    """A merge is to end early."""


class Store:
    """The generations of one state partition, for one process and one of its threads.

    ``identity`` says what the state belongs to, and the versions that it depends on; a database
    with another identity is rejected. At least ``retained`` generations can be rolled back.

    Raises:
        StateError: it is in use, damaged, unreadable, of another format or identity.
    """

    def __init__(self, path: Path, identity: Mapping[str, str], *, retained: int = 8) -> None:
        if retained < 1:
            raise ValueError("retained must be at least 1")
        self.path = Path(path)
        self._retained = retained
        self._lock = threading.Condition()  # guards all below; not held while a merge reads
        self._closed = self._merging = self._abandoning = False
        self._failure: str | None = None
        create_database(self.path, (ROOT, seal(Root(dict(identity)))))
        self._database = open_database(self.path)
        self._contents = Contents(self.path, checked(self.path, self._database.get))
        try:
            self._load(identity)
        except BaseException:
            self._database.close()
            raise
        _compactor.submit(self)

    @property
    def generation(self) -> int:
        """The last committed generation; 0 when nothing is committed."""
        return self._root.generation

    def restore(self, generation: int | None) -> Delta:
        """Roll back to ``generation``, drop all later ones for good, and return the state there.

        None is the adopted generation, which is empty (0) as long as none was adopted. The image's
        arrays may be read-only.

        Raises:
            StateError: that generation is missing or damaged. Then nothing is dropped.
        """
        with self._paused():
            target = self._root.adopted if generation is None else generation
            self._check_kept(target)
            kept = [segment for segment in self._segments if segment.last <= target]
            image = self._contents.image(kept)
            if kept != self._segments:
                self._drop(self._segments[len(kept) :], target)
        _compactor.submit(self)
        return image

    def commit(self, delta: Delta) -> int:
        """Store ``delta`` as the next generation, synced to disk, and return its number.

        Raises:
            StateError: this or an earlier write failed. The store must be opened again then.
        """
        records = encode_parts(delta)
        with self._lock:
            self._check_usable()
            new = self.generation + 1
            segment, batch = self._stage(new, new, records.items(), _COMMIT_BATCH)
            batch.put(manifest_key(new, new), seal(segment))
            root = msgspec.structs.replace(
                self._root, generation=new, committed_ms=segment.committed_ms
            )
            self._write(batch, root, [*self._segments, segment], SYNCED)
        _compactor.submit(self)
        return new

    def adopt(self) -> None:
        """Make the current generation the oldest, to which `restore(None)` rolls back.

        Raises:
            StateError: this or an earlier write failed.
        """
        with self._lock:
            self._check_usable()
            root = msgspec.structs.replace(self._root, adopted=self.generation)
            self._write(WriteBatch(raw_mode=True), root, self._segments, SYNCED)
        _compactor.submit(self)

    def summary(self) -> StoreSummary:
        """Generations, sizes and identity."""
        with self._lock:
            self._check_open()
            return summarise(self._root, self._segments)

    def verify(self) -> list[str]:
        """Verify everything; a sentence for each problem. Commits can continue meanwhile."""
        with self._lock:
            self._check_open()
            iterator = self._database.iter()  # a snapshot, whatever is merged later

        def get(key: bytes) -> bytes | None:
            iterator.seek(key)
            iterator.status()
            return iterator.value() if iterator.valid() and iterator.key() == key else None

        return Contents(self.path, checked(self.path, get)).problems()

    def close(self) -> None:
        """Let a running merge finish, and close the database. May be called again."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            _compactor.forget(self)
            while self._merging:
                self._lock.wait()
            try:
                self._database.close()
            except Exception as error:  # all commits are in the write-ahead log
                _log.warning("closing the state at %s: %s", self.path, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def compact(self) -> None:
        """Merge old generations as far as due. Called by the compactor's thread."""
        with self._lock:
            if self._merging or self._must_stop():
                return
            self._merging = True
        try:
            while self._merge_once():
                pass
        except _Abandoned:
            self._unstage()
        except Exception as error:
            self._fail(f"merging old generations failed: {error}")
            _log.error("the state at %s: %s", self.path, self._failure)
        finally:
            with self._lock:
                self._merging = False
                self._lock.notify_all()

    def abandon(self) -> None:
        """Make a running `compact` return early."""
        self._abandoning = True

    def _load(self, identity: Mapping[str, str]) -> None:
        self._root = self._contents.root()
        if differs := differences(self._root.identity, identity):
            raise StateError(
                f"the state at {self.path} belongs to something else: {differs}; "
                "use what wrote it, or name another directory"
            )
        self._segments = self._contents.segments(self._root)
        self._unstage()

    def _merge_once(self) -> bool:
        with self._lock:
            if self._must_stop():
                return False
            run = choose(self._segments, self.generation, self._root.adopted, self._retained)
            if not run:
                return False
        first, last = run[0].first, run[-1].last
        merged = records_of(self._until_abandoned(self._contents.merged(run)))
        segment, batch = self._stage(first, last, merged, _MERGE_BATCH)
        segment = msgspec.structs.replace(segment, committed_ms=run[-1].committed_ms)
        batch.put(manifest_key(first, last), seal(segment))
        with self._lock:
            at = self._segments.index(run[0])
            segments = [*self._segments[:at], segment, *self._segments[at + len(run) :]]
            _delete(batch, run)
            self._write(batch, self._root, segments, UNSYNCED)
        return True

    def _until_abandoned(self, parts: Iterable[Delta]) -> Iterator[Delta]:
        for part in parts:
            if self._abandoning:
                raise _Abandoned
            yield part

    def _stage(
        self, first: int, last: int, records: Iterable[tuple[str, Buffers]], max_bytes: int
    ) -> tuple[Segment, WriteBatch]:
        """A segment, and a batch to be written with its manifest, which makes it exist.

        Whenever there are more than ``max_bytes``, they are written at once, staged.
        """
        described: dict[str, tuple[int, int]] = {}
        batch = WriteBatch(raw_mode=True)
        for part, record in records:
            described[part] = measure(record)
            keys = piece_keys(first, last, part, described[part][0])
            for key, piece in zip(keys, pieces(record), strict=True):
                batch.put(key, piece)
                if batch.size_in_bytes() >= max_bytes:
                    self._write_ahead(batch, (first, last))
                    batch = WriteBatch(raw_mode=True)
        return Segment(first, last, time.time_ns() // 1_000_000, described), batch

    def _write_ahead(self, batch: WriteBatch, name: tuple[int, int]) -> None:
        with self._lock:
            if name not in self._root.staged:
                root = msgspec.structs.replace(self._root, staged=[*self._root.staged, name])
                self._write(WriteBatch(raw_mode=True), root, self._segments, UNSYNCED)
        with self._failing_for_good():
            self._database.write(batch, UNSYNCED)

    def _unstage(self) -> None:
        """Remove what was staged for segments that were never completed."""
        with self._lock:
            if not self._root.staged:
                return
            batch = WriteBatch(raw_mode=True)
            for first, last in self._root.staged:
                batch.delete_range(*segment_range(first, last))
            root = msgspec.structs.replace(self._root, staged=[])
            self._write(batch, root, self._segments, UNSYNCED)

    def _drop(self, dropped: list[Segment], generation: int) -> None:
        """Drop the last segments, so that ``generation`` is the current one."""
        batch = WriteBatch(raw_mode=True)
        _delete(batch, dropped)
        left = self._segments[: len(self._segments) - len(dropped)]
        committed_ms = left[-1].committed_ms if left else 0
        root = msgspec.structs.replace(self._root, generation=generation, committed_ms=committed_ms)
        self._write(batch, root, left, SYNCED)

    def _write(
        self, batch: WriteBatch, root: Root, segments: list[Segment], how: WriteOptions
    ) -> None:
        """Write a batch together with its root record. The lock must be held."""
        names = [(segment.first, segment.last) for segment in segments]
        staged = [name for name in root.staged if name not in names]
        root = msgspec.structs.replace(root, segments=names, staged=staged)
        batch.put(ROOT, seal(root))
        with self._failing_for_good():
            self._database.write(batch, how)
        self._root, self._segments = root, segments

    @contextmanager
    def _failing_for_good(self) -> Iterator[None]:
        """After an error in this block nothing more is written."""
        try:
            with disk_errors(self.path, "written"):
                yield
        except StateError as error:
            self._fail(str(error))
            raise

    def _fail(self, reason: str) -> None:
        self._failure = self._failure or reason

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """Hold the lock, with no merge running."""
        with self._lock:
            self._check_usable()
            self._abandoning = True
            try:
                while self._merging:
                    self._lock.wait()
                self._check_usable()
                yield
            finally:
                self._abandoning = False

    def _must_stop(self) -> bool:
        return self._closed or self._abandoning or self._failure is not None

    def _check_kept(self, generation: int) -> None:
        root = self._root
        if generation > root.generation:
            raise StateError(
                f"the state at {self.path} is older than its token: it ends at generation "
                f"{root.generation}, the token names {generation}; they do not belong together: "
                "restore the state that belongs to the recovery store, or remove both"
            )
        kept = [root.adopted, *(s.last for s in self._segments if s.last > root.adopted)]
        if generation not in kept:
            raise StateError(
                f"generation {generation} of the state at {self.path} is no longer kept: it has "
                f"{', '.join(map(str, kept))}; the token is too old: restore the recovery "
                "store that belongs to this state, or remove both"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise StateError(f"the state at {self.path} is closed: open it again")

    def _check_usable(self) -> None:
        self._check_open()
        if self._failure is not None:
            raise StateError(
                f"the state at {self.path} can't be written after an error: {self._failure}; "
                "fix that, and open it again"
            )


def _delete(batch: WriteBatch, segments: Iterable[Segment]) -> None:
    for segment in segments:
        for key in segment.all_keys():
            batch.delete(key)
