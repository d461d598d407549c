"""Reads CSV and Parquet as data frames of a few thousand rows, and makes messages of the rows."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from anabranch.producers.batch import Batch, Kind
from anabranch.producers.files.fields import FileFields
from anabranch.state.errors import InputError

CSV_BLOCK_BYTES = 8 << 20
"""A CSV is read in blocks of this size; the types of its columns are inferred from the first."""

PARQUET_ROWS = 131_072
_BOM = b"\xef\xbb\xbf"


def csv_frames(path: Path, text: Collection[str]) -> Iterator[pl.DataFrame]:
    """The rows of a CSV file with a header; columns in ``text`` are read as text.

    The types of the others are inferred from the whole first block.

    Raises:
        InputError: a row does not fit the header, or a value the type of its column.
    """
    schema: dict[str, Any] | None = None
    done = 0
    with path.open("rb") as file:
        header = file.readline().removeprefix(_BOM)
        if not header.endswith(b"\n"):
            header += b"\n"
        for block in _csv_blocks(file):
            source = BytesIO(header + block)
            try:
                if schema is None:
                    names = pl.read_csv(BytesIO(header), n_rows=0).columns
                    overrides = {name: pl.String for name in text if name in names}
                    frame = pl.read_csv(
                        source, infer_schema_length=None, schema_overrides=overrides
                    )
                    schema = dict(frame.schema)
                else:
                    frame = pl.read_csv(source, schema=schema)
            except pl.exceptions.PolarsError as error:
                raise InputError(_csv_error(path, done, error)) from None
            done += len(frame)
            yield frame


def parquet_frames(path: Path) -> Iterator[pl.DataFrame]:
    """The rows of a Parquet file, some row groups at a time.

    Raises:
        InputError: the file is damaged, or not Parquet.
    """
    rows = parquet_rows(path)
    for start in range(0, rows, PARQUET_ROWS):
        try:
            yield pl.scan_parquet(path).slice(start, PARQUET_ROWS).collect()
        except (pl.exceptions.PolarsError, OSError):
            raise InputError(f"{path} is damaged after row {start}: create it again") from None


def parquet_rows(path: Path) -> int:
    """The number of rows that a Parquet file says it has.

    Raises:
        InputError: the file is damaged, or not Parquet.
    """
    try:
        return int(pl.scan_parquet(path).select(pl.len()).collect().item())
    except (pl.exceptions.PolarsError, OSError):
        raise InputError(
            f"{path} is not a complete Parquet file: it is damaged, truncated, or of another kind"
        ) from None


def frame_messages(
    path: Path,
    frames: Iterator[pl.DataFrame],
    fields: FileFields,
    kind: Kind,
    batch_size: int,
) -> Iterator[Batch]:
    """The rows of ``frames`` as JSON messages of ``kind``; ``path`` is for error messages.

    Raises:
        InputError: the time or the key is no column, no row has a valid time, or there are no rows.
    """
    encode = msgspec.json.Encoder().encode_lines
    done, last_ms = 0, None
    for frame in frames:
        _check_columns(path, frame, fields)
        frame = prepare_frame(path, frame, fields, done)
        times = [fields.time_ms(value) for value in frame[fields.time]]
        if last_ms is None:
            last_ms = next((time for time in times if time is not None), None)
        if last_ms is None and len(frame):
            value = frame[fields.time][0]
            raise InputError(
                f"column {fields.time!r} of {path} holds {value!r}, which is not a time"
                f"{fields.unit_hint(value)}: write ISO-8601 text or a number since 1970"
            )
        for start in range(0, len(frame), batch_size):
            piece = frame[start : start + batch_size]
            values = encode(piece.to_dicts()).split(b"\n")[:-1]
            filled: list[int] = []
            for time in times[start : start + batch_size]:
                last_ms = last_ms if time is None else time
                filled.append(last_ms or 0)
            yield Batch.of(kind, values, _keys(piece, fields), filled)
        done += len(frame)
    if not done:
        raise InputError(f"{path} has columns but no rows: there is nothing to publish")


def _check_columns(path: Path, frame: pl.DataFrame, fields: FileFields) -> None:
    for meaning, name in (("time", fields.time), ("key", fields.key)):
        if name is not None and name not in frame.columns:
            raise InputError(
                f"no column {name!r} in {path}: it has {', '.join(frame.columns)}; name the one "
                f"that holds the {meaning}"
            )


def prepare_frame(
    path: Path, frame: pl.DataFrame, fields: FileFields, done: int = 0
) -> pl.DataFrame:
    """The frame with text columns as text, an id, and only numbers that JSON has.

    ``done`` rows of the file precede it; ``path`` is for error messages.

    Raises:
        InputError: a column that must be text cannot be converted.
    """
    casts = [pl.col(name).cast(pl.String) for name in fields.text_columns if name in frame.columns]
    decimals = [name for name, kind in frame.schema.items() if isinstance(kind, pl.Decimal)]
    casts += [pl.col(name).cast(pl.Float64) for name in decimals if name not in fields.text_columns]
    try:
        frame = frame.with_columns(casts)
    except pl.exceptions.PolarsError as error:
        reason = str(error).strip().split("\n")[0]
        names = ", ".join(fields.text_columns)
        raise InputError(f"{path}: {names} cannot all be read as text: {reason}") from None
    if fields.id in frame.columns:
        return frame
    number = pl.int_range(done, done + len(frame)).cast(pl.String).alias(fields.id)
    return frame.select(number, pl.all())


def _keys(frame: pl.DataFrame, fields: FileFields) -> list[bytes | None]:
    if fields.key is None:
        return [None] * len(frame)
    return [None if key is None else key.encode() for key in frame[fields.key]]


def _csv_blocks(file: Any) -> Iterator[bytes]:
    """The rest of ``file`` in blocks that end with a row, never inside quotes."""
    rest = b""
    while block := file.read(CSV_BLOCK_BYTES):
        rest += block
        end = rest.rfind(b"\n") + 1
        while end and rest.count(b'"', 0, end) % 2:
            end = rest.rfind(b"\n", 0, end - 1) + 1
        if end:
            yield rest[:end]
            rest = rest[end:]
    if rest.strip():
        yield rest


def _csv_error(path: Path, done: int, error: Exception) -> str:
    reason = str(error).strip().split("\n")[0]
    where = f"{path}, after row {done}" if done else str(path)
    return f"{where}: {reason}; name columns of text that look like numbers as text fields"
