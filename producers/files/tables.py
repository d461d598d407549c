"""Reads tables (CSV, Parquet) as data frames, and makes messages of their rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

import msgspec
import polars as pl

from anabranch.dataflows.declaration.casts import join_texts, text_of
from anabranch.dataflows.declaration.shape import Path
from anabranch.producers.batch import Batch, Kind
from anabranch.producers.files.fields import NOT_IN_PAYLOAD, ColumnKind, FileFields
from anabranch.producers.files.json_fields import key_bytes, value_at
from anabranch.state.errors import InputError

PARQUET_ROWS = 131_072
_MAX_INTEGER = 2.0**53
_UUID_BYTES = 16


def parquet_frames(path: FilePath) -> Iterator[pl.DataFrame]:
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


def parquet_rows(path: FilePath) -> int:
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
    path: FilePath,
    frames: Iterator[pl.DataFrame],
    fields: FileFields,
    kind: Kind,
    batch_size: int,
) -> Iterator[Batch]:
    """The rows of ``frames`` as JSON messages of ``kind``; ``path`` is for error messages.

    Raises:
        InputError: the time, the key or the id is no column, no row has a valid time, or there are
            no rows.
    """
    encode = msgspec.json.Encoder().encode_lines
    done, last_ms, nested = 0, None, fields.nested
    for frame in frames:
        _check_columns(path, frame, fields)
        fields.check_id(str(path), frame.columns, may_be_numbered=kind == "events")
        frame = prepare_frame(path, frame, fields, done)
        times = _times(frame, fields)
        if last_ms is None:
            last_ms = next((time for time in times if time is not None), None)
        if last_ms is None and len(frame):
            value = column_at(frame, fields.time, fields.paths_of(fields.time))[0]
            raise InputError(
                f"column {fields.time!r} of {path} holds {value!r}, which is not a time"
                f"{fields.unit_hint(value)}: write ISO-8601 text or a number since 1970"
            )
        for start in range(0, len(frame), batch_size):
            piece = frame[start : start + batch_size]
            values = encode(_messages(piece, nested)).split(b"\n")[:-1]
            filled: list[int] = []
            for time in times[start : start + batch_size]:
                last_ms = last_ms if time is None else time
                filled.append(last_ms or 0)
            yield Batch.of(kind, values, _keys(piece, fields), filled)
        done += len(frame)
    if not done:
        raise InputError(f"{path} has columns but no rows: there is nothing to publish")


def _messages(frame: pl.DataFrame, nested: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """The rows as messages, in which the columns ``nested`` are put where their keys lead."""
    rows: list[dict[str, Any]] = frame.to_dicts()
    for name in nested.keys() & set(frame.columns):
        *above, last = nested[name]
        for row in rows:
            value, inner = row.pop(name), row
            for key in above:
                inner = inner.setdefault(key, {})
            inner[last] = value
    return rows


def has_column(frame: pl.DataFrame, name: str, paths: Sequence[Path]) -> bool:
    """Whether a frame has the column ``name``, or those that hold the ``paths``."""
    if name in frame.columns:
        return True
    return all(_has_path(frame.schema, path) for path in paths)


def _has_path(schema: Mapping[str, Any], path: Path) -> bool:
    if str(path) in schema:
        return True
    head, *rest = path.steps
    dtype = schema.get(str(head))
    for step in rest:
        if isinstance(step, int):
            dtype = getattr(dtype, "inner", None)
        else:
            inner = {each.name: each.dtype for each in getattr(dtype, "fields", [])}
            dtype = inner.get(step)
    return dtype is not None


def column_at(frame: pl.DataFrame, name: str, paths: Sequence[Path]) -> list[Any]:
    """The values of the column ``name``, or of those that hold the ``paths``."""
    if name in frame.columns:
        return frame[name].to_list()
    parts = [_values_at(frame, path) for path in paths]
    if len(parts) == 1:
        return parts[0]
    return [
        None if None in row else join_texts([text_of(value) for value in row])
        for row in zip(*parts, strict=True)
    ]


def _values_at(frame: pl.DataFrame, path: Path) -> list[Any]:
    if str(path) in frame.columns:
        return frame[str(path)].to_list()
    head, *rest = path.steps
    return [value_at(value, rest) for value in frame[str(head)].to_list()]


def _times(frame: pl.DataFrame, fields: FileFields) -> list[int | None]:
    if fields.time.startswith(NOT_IN_PAYLOAD):
        return [0] * len(frame)
    values = column_at(frame, fields.time, fields.paths_of(fields.time))
    return [fields.time_ms(value) for value in values]


def _check_columns(path: FilePath, frame: pl.DataFrame, fields: FileFields) -> None:
    for meaning, name in (("time", fields.time), ("key", fields.key)):
        if name is None or name.startswith(NOT_IN_PAYLOAD) or name == fields.id:
            continue
        if not has_column(frame, name, fields.paths_of(name)):
            raise fields.missing(str(path), name, meaning, frame.columns)


def prepare_frame(
    path: FilePath, frame: pl.DataFrame, fields: FileFields, done: int = 0
) -> pl.DataFrame:
    """The frame with an id, and with every column as its field is declared, where that is exact.

    Text is text: whole numbers without a decimal point, UUIDs in their usual form, dates and times
    in ISO 8601. Integers that were written as floats, as pandas does where one is missing, are
    integers. A value that does not fit stays as it is, and its row will be a dead letter.

    ``done`` rows of the file precede it; ``path`` is for error messages.

    Raises:
        InputError: a column can't be text, or its ids are not exact.
    """
    columns = []
    for column in frame:
        kind = fields.kind_of(column.name)
        try:
            converted = _converted(column, kind, is_id=column.name == fields.id)
        except (pl.exceptions.PolarsError, _NotConvertibleError) as error:
            reason = str(error).strip().split("\n")[0]
            raise InputError(
                f"column {column.name!r} of {path} cannot be read as {kind or 'a number'}: {reason}"
            ) from None
        if converted is not column:
            columns.append(converted.alias(column.name))
    if columns:
        frame = frame.with_columns(columns)
    in_payload = not fields.id.startswith(NOT_IN_PAYLOAD) and fields.id not in fields.paths
    if not in_payload or fields.id in frame.columns:
        return frame
    number = pl.int_range(done, done + len(frame)).cast(pl.String).alias(fields.id)
    return frame.select(number, pl.all())


class _NotConvertibleError(Exception):
    """A column can't be what it is declared to be; the text says why."""


def _converted(column: pl.Series, kind: ColumnKind | None, *, is_id: bool) -> pl.Series:
    """The column by what it is declared to hold; itself if nothing has to change."""
    dtype = column.dtype
    if isinstance(dtype, pl.Categorical | pl.Enum):
        column = column.cast(pl.String)
    if kind == "text":
        return _text(column, is_id)
    if dtype == pl.Binary:
        return _uuids(column) if _holds_uuids(column) else column
    if isinstance(dtype, pl.Decimal):
        return column.cast(pl.Int64 if kind == "integer" and not dtype.scale else pl.Float64)
    if dtype.is_float() and kind == "integer":
        return _integers(column)
    return column


def _text(column: pl.Series, is_id: bool) -> pl.Series:
    dtype = column.dtype
    if dtype == pl.String:
        return column
    if dtype == pl.Binary:
        return _uuids(column) if _holds_uuids(column) else _decoded(column)
    if dtype.is_float():
        return _float_texts(column, is_id)
    if isinstance(dtype, pl.Datetime):
        return column.dt.to_string("iso:strict")
    if isinstance(dtype, pl.Decimal) and is_id:
        return column.cast(pl.String).str.replace(r"\.0*$", "")
    if dtype.is_nested() or dtype == pl.Object:
        if is_id:
            raise _NotConvertibleError(f"it holds values of type {dtype}")
        return column
    return column.cast(pl.String)


def _decoded(column: pl.Series) -> pl.Series:
    try:
        return column.cast(pl.String)
    except pl.exceptions.PolarsError:
        raise _NotConvertibleError("it holds bytes that are neither UTF-8 nor UUIDs") from None


def _holds_uuids(column: pl.Series) -> bool:
    """Whether all values have 16 bytes, and those that a UUID has and text in UTF-8 has not.

    The two highest bits of byte 8 are 1 and 0 in a UUID (its variant).
    """
    present = column.drop_nulls()
    if not len(present) or (present.bin.size() != _UUID_BYTES).any():
        return False
    return bool(present.bin.encode("hex").str.slice(16, 1).is_in(["8", "9", "a", "b"]).all())


def _uuids(column: pl.Series) -> pl.Series:
    """16 bytes each as text: 8-4-4-4-12 hexadecimal digits."""
    digits = column.bin.encode("hex")
    parts = [
        digits.str.slice(start, n) for start, n in ((0, 8), (8, 4), (12, 4), (16, 4), (20, 12))
    ]
    text = parts[0]
    for part in parts[1:]:
        text = text + "-" + part
    return text


def _float_texts(column: pl.Series, is_id: bool) -> pl.Series:
    """Floats as text, whole ones without a decimal point, as integers would be."""
    column = column.fill_nan(None)
    whole = (column == column.floor()) & (column.abs() < _MAX_INTEGER)
    if is_id and not whole.fill_null(True).all():
        value = column.filter(~whole.fill_null(True))[0]
        raise _NotConvertibleError(
            f"it holds the float {value!r}: ids that are floats must be whole numbers below 2**53; "
            "write it as integers or texts"
        )
    texts = column.cast(pl.String)
    if not whole.any():
        return texts
    return (
        column.set(~whole, None)
        .cast(pl.Int64)
        .cast(pl.String)
        .zip_with(whole.fill_null(False), texts)
    )


def _integers(column: pl.Series) -> pl.Series:
    """Floats as integers where they are whole; the others stay."""
    column = column.fill_nan(None)
    whole = ((column == column.floor()) & (column.abs() < _MAX_INTEGER)).fill_null(True)
    if whole.all():
        return column.cast(pl.Int64)
    values = [
        int(value) if is_whole and value is not None else value
        for value, is_whole in zip(column, whole, strict=True)
    ]
    return pl.Series(column.name, values, dtype=pl.Object)


def _keys(frame: pl.DataFrame, fields: FileFields) -> list[bytes | None]:
    if fields.key is None or not has_column(frame, fields.key, fields.paths_of(fields.key)):
        return [None] * len(frame)
    return [key_bytes(key) for key in column_at(frame, fields.key, fields.paths_of(fields.key))]
