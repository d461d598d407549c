"""Reads JSONL, CSV and Parquet files as messages, a piece at a time, in the file's order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from anabranch.producers.batch import Batch, Kind
from anabranch.producers.files.csv_files import csv_frames
from anabranch.producers.files.fields import FileFields
from anabranch.producers.files.jsonl import jsonl_messages
from anabranch.producers.files.tables import frame_messages, parquet_frames, parquet_rows
from anabranch.state.errors import InputError

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
"""Extension → format."""

_COUNT_WITHIN_BYTES = 256 << 20
_BLOCK_BYTES = 1 << 20


def file_messages(
    path: str | Path,
    fields: FileFields | None = None,
    *,
    topic_kind: Kind = "events",
    batch_size: int = 2000,
) -> Iterator[Batch]:
    """The rows of a file as messages; ``fields`` says what they hold.

    The lines of a JSONL file are published as they are, malformed ones too (without a key, with the
    time of the line before): they become dead letters. Rows of CSV and Parquet become JSON objects;
    null and NaN become null, dates ISO-8601 text.

    Raises:
        InputError: the file is missing, empty, damaged or of an unknown kind, or lacks a field.
            Errors in the rows are raised while they are read.
    """
    path, fields = Path(path), fields or FileFields()
    kind = format_of(path)
    if kind == "jsonl":
        return jsonl_messages(path, fields, topic_kind, batch_size)
    frames = csv_frames(path, fields) if kind == "csv" else parquet_frames(path)
    return frame_messages(path, frames, fields, topic_kind, batch_size)


def count_rows(path: str | Path) -> int | None:
    """How many rows a file has; None if counting them would take long.

    Parquet files contain the number. Lines are counted in files up to 256 MB; line breaks inside
    the quotes of a CSV count too, so there it is an estimate, good enough for a progress bar.

    Raises:
        InputError: the file is missing, empty, damaged or of an unknown kind.
    """
    path = Path(path)
    kind = format_of(path)
    if kind == "parquet":
        return parquet_rows(path)
    if path.stat().st_size > _COUNT_WITHIN_BYTES:
        return None
    lines, last = 0, b"\n"
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            lines += block.count(b"\n")
            last = block[-1:]
    lines += last != b"\n"
    return lines - 1 if kind == "csv" else lines


def format_of(path: Path) -> str:
    """The format of an existing, readable file that is not empty: jsonl, csv or parquet.

    Raises:
        InputError: it is missing, empty, unreadable or of an unknown kind.
    """
    kind = FORMATS.get(path.suffix.lower())
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise InputError(f"{path} is a directory: name a file in it")
        with path.open("rb"):
            pass
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if kind is None:
        raise InputError(
            f"{path} is of an unknown kind: its name must end in {', '.join(sorted(FORMATS))}"
        )
    if size == 0:
        raise InputError(f"{path} is empty: there is nothing to publish")
    return kind
