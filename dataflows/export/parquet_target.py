"""Rows in Parquet files, by output and hour: each message once.

::

    DIR/anabranch-export.json     the positions, and the files of the last batch
        predictions/hour=2026-11-30T08/fraud.predictions-0-…-….parquet
        drift/hour=…
        .partial/                 files that have no name yet

A batch is written to files without a name, which are synchronized; then the manifest is replaced,
which makes them part of the export; then they are renamed. Whoever opens the export next renames
those that a kill has left behind, and removes those of which the manifest knows nothing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from anabranch.dataflows.bus import TopicPartition
from anabranch.dataflows.export.file_lock import FileLock
from anabranch.dataflows.export.output_tables import Kind, OutputTable, TableRows
from anabranch.dataflows.export.target import Batch, ExportError, Position, Positions
from anabranch.dataflows.recovery.sealed_json import seal, unseal
from anabranch.state.errors import StateError
from anabranch.state.store.atomic_files import atomic_write, sync_directory
from anabranch.state.store.permissions import make_ordinary, make_ordinary_directory

MANIFEST = "anabranch-export.json"
_PARTIAL, _LOCK = ".partial", ".lock"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HOUR_MS = 3_600_000
_NO_TIME = "none"
_MAX_TOPIC = 150

_TYPES: dict[Kind, Any] = {
    "text": pl.String(),
    "integer": pl.Int64(),
    "double": pl.Float64(),
    "boolean": pl.Boolean(),
    "time": pl.Datetime("ms", "UTC"),
    "json": pl.String(),
}


class _StoredTopic(msgspec.Struct):
    """How far a topic is exported.

    Attributes:
        id: the topic's.
        former: how many topics of that name were exported before it.
        next_offsets: by partition.
    """

    id: str
    former: int = 0
    next_offsets: dict[int, int] = {}


class _Manifest(msgspec.Struct):
    """What the directory holds.

    Attributes:
        batches: how many were written; what is in ``.partial`` is named after it.
        files: those of the last batch, by their names there.
    """

    pipeline: str
    topics: dict[str, _StoredTopic] = {}
    batches: int = 0
    files: dict[str, str] = {}


class ParquetTarget:
    """The files in ``directory``, which is created; it is of one pipeline.

    Raises:
        ExportError: something else is in the directory, or it can't be written.
    """

    batch_size = 100_000
    interval_s = 60.0

    def __init__(self, directory: Path) -> None:
        self.name = f"parquet:{directory}"
        self._directory = directory
        self._partial = directory / _PARTIAL
        self._lock: FileLock | None = None
        self._manifest = _Manifest("")
        manifest = directory / MANIFEST
        try:
            if not directory.exists():
                directory.mkdir(parents=True)
                make_ordinary_directory(directory)
            others = {path.name for path in directory.iterdir()} - {_PARTIAL, _LOCK}
        except OSError as error:
            raise ExportError(f"{directory} can't be used: {error.strerror}") from None
        if others and not manifest.exists():
            raise ExportError(
                f"{directory} has files and is no export: name an empty or a new directory"
            )

    def prepare(self, pipeline: str, tables: Sequence[OutputTable]) -> Positions:
        """Complete what a kill interrupted; returns the positions that are stored."""
        self._lock = FileLock(self._directory / _LOCK, self.name)
        path = self._directory / MANIFEST
        try:
            if path.exists():
                self._manifest = _read(path)
            else:
                self._write_manifest(_Manifest(pipeline))
            if self._manifest.pipeline != pipeline:
                raise ExportError(
                    f"{self._directory} is the export of pipeline {self._manifest.pipeline!r}: "
                    "name another directory"
                )
            self._partial.mkdir(exist_ok=True)
            self._rename()
            for left in self._partial.iterdir():
                left.unlink()
        except OSError as error:
            raise self._error(error) from None
        return self.stored()

    def stored(self) -> Positions:
        """The positions that are stored."""
        return {
            TopicPartition(topic, partition): Position(stored.id, offset)
            for topic, stored in self._manifest.topics.items()
            for partition, offset in stored.next_offsets.items()
        }

    def write(self, batch: Batch) -> None:
        """Write the files of a batch, then the manifest, then rename them."""
        manifest = msgspec.json.decode(msgspec.json.encode(self._manifest), type=_Manifest)
        manifest.batches += 1
        for at, (topic_id, offset) in batch.after.items():
            stored = manifest.topics.setdefault(at.topic, _StoredTopic(topic_id))
            if stored.id != topic_id:
                stored = _StoredTopic(topic_id, stored.former + 1)
                manifest.topics[at.topic] = stored
            stored.next_offsets[at.partition] = offset
        try:
            manifest.files = {}
            for rows in batch.rows:
                if rows.size:
                    former = manifest.topics[rows.table.topic].former
                    self._write_files(rows, former, manifest)
            sync_directory(self._partial)
            self._write_manifest(manifest)
            self._rename()
        except OSError as error:
            raise self._error(error) from None
        except (pl.exceptions.PolarsError, StateError) as error:
            raise ExportError(f"{self.name} can't be written: {error}") from None

    def keep(self) -> None:
        """Do nothing: the lock is kept by the open file."""

    def close(self) -> None:
        """Release the directory. Idempotent."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _write_files(self, rows: TableRows, former: int, manifest: _Manifest) -> None:
        """Write the rows of each hour and partition to a file, which the manifest then lists."""
        frame = pl.DataFrame(
            {name: column.values for name, column in rows.columns.items()},
            schema={name: _TYPES[column.kind] for name, column in rows.columns.items()},
        )
        table, files = rows.table, manifest.files
        of_topic = _short(table.topic) + (f".{former}" if former else "")
        by = [
            (pl.col(table.time).cast(pl.Int64) // _HOUR_MS).alias("_hour"),
            pl.col("output_partition").alias("_partition"),
        ]
        for (hour, number), part in frame.group_by(by, maintain_order=True):
            first, last = part["output_offset"][0], part["output_offset"][-1]
            name = f"{of_topic}-{number!s}-{first:020}-{last:020}.parquet"
            place = f"{table.output}/hour={_hour_text(hour)}"
            temporary = f"{manifest.batches}-{len(files)}.parquet"
            files[temporary] = f"{place}/{name}"
            path = self._partial / temporary
            part.write_parquet(path)
            make_ordinary(path)
            _sync_file(path)

    def _rename(self) -> None:
        """Give the files of the last batch their names, as far as they have none yet."""
        changed = set()
        for temporary, name in self._manifest.files.items():
            source, target = self._partial / temporary, self._directory / name
            if source.exists():
                for directory in (target.parent.parent, target.parent):
                    if not directory.exists():
                        directory.mkdir()
                        make_ordinary_directory(directory)
                        changed.add(directory.parent)
                source.rename(target)
                changed.add(target.parent)
        for directory in changed:
            sync_directory(directory)

    def _write_manifest(self, manifest: _Manifest) -> None:
        path = self._directory / MANIFEST
        atomic_write(path, seal(msgspec.to_builtins(manifest, str_keys=True)))
        make_ordinary(path)
        self._manifest = manifest

    def _error(self, error: OSError) -> ExportError:
        where = f" ({error.filename})" if error.filename else ""
        return ExportError(f"{self.name} can't be written: {error.strerror or error}{where}")


def _read(path: Path) -> _Manifest:
    """The manifest.

    Raises:
        StateError: it is damaged, or is something else.
    """
    try:
        return msgspec.convert(unseal(path.read_bytes(), path), _Manifest, str_keys=True)
    except msgspec.ValidationError as error:
        raise ExportError(f"{path} is no manifest of an export: {error}") from None


def _hour_text(hour: Any) -> str:
    if hour is None:
        return _NO_TIME
    return (_EPOCH + timedelta(hours=hour)).replace(tzinfo=None).isoformat(timespec="hours")


def _short(topic: str) -> str:
    """The topic's name, cut where the name of a file would be too long for the file system."""
    if len(topic) <= _MAX_TOPIC:
        return topic
    return f"{topic[:_MAX_TOPIC]}_{hashlib.sha256(topic.encode()).hexdigest()[:8]}"


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
