"""Writes training rows to a Parquet file: directly, or in parts that are joined with late labels.

::

    .rows.parquet.replaying/part-000000     rows without their labels
                           /labels-000000   the labels of that part
                           /result.parquet  all rows; renamed to rows.parquet at the end
                           /dead-letters    renamed at the end, if they are wanted

Parts exist only if labels come from a topic of their own; otherwise the result is written while its
rows are made. The final name always holds a complete file, or what was there before.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

import msgspec
import polars as pl
from polars.io.plugins import register_io_source

from anabranch.dataflows.batch.results import Results
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.inputs import Delayed
from anabranch.dataflows.replay.background_writer import BackgroundWriter
from anabranch.dataflows.replay.late_labels import LateLabels
from anabranch.dataflows.replay.training_rows import RowBuilder, RowColumns, Rows
from anabranch.state.errors import InputError
from anabranch.state.store.atomic_files import sync_directory
from anabranch.state.store.permissions import make_ordinary

PART_ROWS = 131_072
_DISK_FULL_BELOW = 1 << 20  # bytes


class Workspace:
    """A temporary directory beside ``target``; a context manager that removes it in the end.

    What a killed replay has left behind is removed when the next one starts.

    Raises:
        InputError: the directory can't be created beside ``target``.
    """

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(f".{target.name}.replaying")
        self._target = target

    def __enter__(self) -> Workspace:
        try:
            shutil.rmtree(self.path, ignore_errors=True)
            self.path.mkdir()
        except OSError as error:
            raise InputError(
                f"{self._target} can't be written: {error.strerror} ({self.path.parent}); name "
                "another file"
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove the directory with its content; idempotent."""
        shutil.rmtree(self.path, ignore_errors=True)


class TrainingFile:
    """Collects the training rows of one replay, and optionally its dead letters.

    ``part_rows`` is the size of a row group, of which a few are in memory. Always call `close`.

    Attributes:
        rows, labelled: number of rows so far, and how many of them have a label.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        directory: Path,
        *,
        dead_letters: bool = False,
        part_rows: int | None = None,
    ) -> None:
        self._columns = RowColumns(pipeline)
        self._part_rows = part_rows = part_rows or PART_ROWS
        self._builder = RowBuilder(pipeline, self._columns, part_rows)
        self._directory = directory
        self._labels: LateLabels | None = None
        self._parts: list[Path] = []
        self._encoder = msgspec.json.Encoder()
        self._dead = (directory / "dead-letters").open("wb") if dead_letters else None
        self.rows = 0
        self.labelled = 0
        if isinstance(pipeline.label, Delayed):
            self._labels = LateLabels(directory, self._columns, part_rows)
            self._writer: BackgroundWriter[Rows] = BackgroundWriter(self._write_parts)
        else:
            self._writer = BackgroundWriter(self._write_result)

    def add(self, results: Results) -> None:
        """Append the results of a batch.

        Raises:
            InputError: they can't be written to disk.
        """
        try:
            self._add(results)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise _unwritable(self._directory, error) from None

    def finish(self, target: Path, dead_letters: Path | None, check: Callable[[], None]) -> None:
        """Complete the file and move it to ``target``, and the dead letters to theirs.

        ``check`` is called between parts; if it raises, nothing is moved.

        Raises:
            InputError: the file can't be written.
        """
        try:
            if (rest := self._builder.rest()) is not None:
                self._writer.put(rest)
            self._writer.finish()
            if self._labels is not None:
                self._labels.spill()
                self._write_frames(self._labelled_parts(self._labels, check))
            check()
            if dead_letters is not None and self._dead is not None:
                self._dead.close()
                _move(self._directory / "dead-letters", dead_letters)
            _move(self._result, target)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise _unwritable(target, error) from None

    def close(self) -> None:
        """Close open files and stop the writer thread; idempotent."""
        self._writer.close()
        if self._dead is not None:
            self._dead.close()

    @property
    def _result(self) -> Path:
        return self._directory / "result.parquet"

    def _add(self, results: Results) -> None:
        batch = results.batch
        if self._dead is not None and (batch.dead_letters or results.dead_letters):
            dead_letters = batch.raw.sorted(batch.dead_letters + results.dead_letters)
            self._dead.write(self._encoder.encode_lines(dead_letters))
        if self._labels is not None:
            self.labelled += self._labels.add(results)
        elif batch.targets is not None:
            self.labelled += len(batch)
        self.rows += len(batch)
        for rows in self._builder.add(results):
            self._writer.put(rows)

    def _write_result(self, parts: Iterator[Rows]) -> None:
        """Write the result while its rows are made; runs in the writer's thread."""
        self._write_frames(self._builder.frame(rows) for rows in parts)

    def _write_parts(self, parts: Iterator[Rows]) -> None:
        """Write rows whose labels come later; runs in the writer's thread."""
        for rows in parts:
            path = self._directory / f"part-{len(self._parts):06d}"
            self._builder.frame(rows).write_ipc(path)
            self._parts.append(path)

    def _labelled_parts(
        self, labels: LateLabels, check: Callable[[], None]
    ) -> Iterator[pl.DataFrame]:
        """Each part with its label columns."""
        for number, path in enumerate(self._parts):
            check()
            frame = pl.read_ipc(path)
            yield frame.with_columns(labels.columns(number, frame[self._columns.name("ts")]))
            path.unlink()

    def _write_frames(self, frames: Iterator[pl.DataFrame]) -> None:
        _write_frames(self._result, frames, self._part_rows)


def _write_frames(path: Path, frames: Iterator[pl.DataFrame], rows: int) -> None:
    """Stream frames of one schema to a Parquet file, in row groups of ``rows``.

    Without any frame no file is written. Exceptions of ``frames`` are passed on.
    """
    first = next(frames, None)
    if first is None:
        return
    failure: list[BaseException] = []

    def generate(*_: object) -> Iterator[pl.DataFrame]:
        try:
            yield from chain([first], frames)
        except BaseException as error:
            failure.append(error)
            raise

    source = register_io_source(generate, schema=first.schema)
    try:
        source.sink_parquet(path, compression="lz4", row_group_size=rows)
    except pl.exceptions.PolarsError as error:
        raise (failure[0] if failure else error) from None


def _move(source: Path, target: Path) -> None:
    """Move a file to its final name durably: it survives a power failure afterwards."""
    with source.open("rb") as file:
        os.fsync(file.fileno())
    try:
        source.replace(target)
    except OSError:  # on another file system
        near = target.with_name(f".{target.name}.replaying")
        shutil.copyfile(source, near)
        near.replace(target)
    make_ordinary(target)
    sync_directory(target.parent)


def _unwritable(path: Path, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or str(error).strip().split("\n")[0]
    with suppress(OSError):
        if shutil.disk_usage(path.parent).free < _DISK_FULL_BELOW:
            reason = os.strerror(errno.ENOSPC)  # Polars reports misleading errors then
    return InputError(f"{path} can't be written: {reason}; nothing of this replay was saved")
