"""Training rows on their way to a Parquet file: at once, or by parts that wait for their labels.

::

    .rows.parquet.replaying/part-000000   rows, as they were made
                           /labels-000000 the labels of that part that have come
                           /whole.parquet all of it, then moved to rows.parquet
                           /dead-letters  moved at the end, where they are wanted

Parts are there only where labels come later; else the whole is written while its rows are made. So
under the final name there is a whole file, or what was there before.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import polars as pl

from anabranch.dataflows.batch.results import Results
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.inputs import Delayed
from anabranch.dataflows.replay.background_writer import Behind
from anabranch.dataflows.replay.late_labels import RowLabels
from anabranch.dataflows.replay.row_groups import write_frames
from anabranch.dataflows.replay.training_rows import RowBuilder, RowColumns, Rows
from anabranch.state.errors import InputError
from anabranch.state.store.atomic_files import sync_directory

PART_ROWS = 131_072
_LITTLE = 1 << 20  # bytes


class Workspace:
    """A directory beside ``target`` for what is not finished; a context manager that removes it.

    What a replay has left that was killed is removed when the next one begins.

    Raises:
        InputError: it can't be made beside ``target``.
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
        """Remove it with all that is in it; idempotent."""
        shutil.rmtree(self.path, ignore_errors=True)


class RowFile:
    """The training rows of one replay, and its dead letters.

    ``part_rows`` are a row group of the file, and held in memory a few times. ``dead_letters`` says
    whether those are kept. Close it in the end.

    Attributes:
        rows, labelled: how many rows there are, and how many of them have a label.
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
        self._labels: RowLabels | None = None
        self._parts: list[Path] = []
        self._encoder = msgspec.json.Encoder()
        self._dead = (directory / "dead-letters").open("wb") if dead_letters else None
        self.rows = 0
        self.labelled = 0
        if isinstance(pipeline.label, Delayed):
            self._labels = RowLabels(directory, self._columns, part_rows)
            self._writer: Behind[Rows] = Behind(self._keep_parts)
        else:
            self._writer = Behind(self._write_whole)

    def add(self, results: Results) -> None:
        """Take what was made of a batch.

        Raises:
            InputError: the disk does not take it.
        """
        try:
            self._add(results)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise _unwritable(self._directory, error) from None

    def finish(self, target: Path, dead_letters: Path | None, check: Callable[[], None]) -> None:
        """Put the whole under its final name, and the dead letters under theirs.

        ``check`` is asked now and then, and may raise to have nothing written.

        Raises:
            InputError: the disk does not take it.
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
            _move(self._whole, target)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise _unwritable(target, error) from None

    def close(self) -> None:
        """Let go of what is open; idempotent."""
        self._writer.close()
        if self._dead is not None:
            self._dead.close()

    @property
    def _whole(self) -> Path:
        return self._directory / "whole.parquet"

    def _add(self, results: Results) -> None:
        batch = results.batch
        if self._dead is not None and (batch.dead_letters or results.dead_letters):
            letters = batch.raw.sorted(batch.dead_letters + results.dead_letters)
            self._dead.write(self._encoder.encode_lines(letters))
        if self._labels is not None:
            self.labelled += self._labels.add(results)
        elif batch.targets is not None:
            self.labelled += len(batch)
        self.rows += len(batch)
        for rows in self._builder.add(results):
            self._writer.put(rows)

    def _write_whole(self, parts: Iterator[Rows]) -> None:
        """Write the file while its rows come."""
        self._write_frames(self._builder.frame(rows) for rows in parts)

    def _keep_parts(self, parts: Iterator[Rows]) -> None:
        """Keep rows whose labels come later; `Behind` does this."""
        for rows in parts:
            path = self._directory / f"part-{len(self._parts):06d}"
            self._builder.frame(rows).write_ipc(path)
            self._parts.append(path)

    def _labelled_parts(
        self, labels: RowLabels, check: Callable[[], None]
    ) -> Iterator[pl.DataFrame]:
        """All parts with their labels."""
        for number, path in enumerate(self._parts):
            check()
            frame = pl.read_ipc(path)
            yield frame.with_columns(labels.columns(number, frame[self._columns.name("ts")]))
            path.unlink()

    def _write_frames(self, frames: Iterator[pl.DataFrame]) -> None:
        write_frames(self._whole, frames, self._part_rows)


def _move(source: Path, target: Path) -> None:
    """Move a file to its final name, so that it survives a power cut there."""
    with source.open("rb") as file:
        os.fsync(file.fileno())
    try:
        source.replace(target)
    except OSError:  # another disk
        near = target.with_name(f".{target.name}.replaying")
        shutil.copyfile(source, near)
        near.replace(target)
    sync_directory(target.parent)


def _unwritable(path: Path, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or str(error).strip().split("\n")[0]
    with suppress(OSError):
        if shutil.disk_usage(path.parent).free < _LITTLE:
            reason = os.strerror(errno.ENOSPC)  # Polars speaks of anything else then
    return InputError(f"{path} can't be written: {reason}; nothing was kept of this replay")
