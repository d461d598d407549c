"""Reads CSV files as data frames, each column by what its field is declared to hold.

Values are separated by commas, or by semicolons, tabs or bars, whichever the header has. A block of
rows whose values all fit is parsed at once; in any other block each value is converted on its own,
so that one that does not fit concerns its row alone::

    declared    "4"   "4.0"   "NA"   ""     "x"
    integer     4     4       null   null   "x"  (its row will be a dead letter)
    number      4.0   4.0     null   null   "x"
    text        "4"   "4.0"   "NA"   null   "x"

An id is text in which ``NA`` and the like are null, and where all of a file end in ``.0``, as
pandas writes whole numbers with gaps, that is left out.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anabranch.producers.files.encodings import check_encoding
from anabranch.producers.files.fields import ColumnKind, FileFields
from anabranch.state.errors import InputError

CSV_BLOCK_BYTES = 8 << 20
"""A CSV is read in blocks of this size; types that are not declared follow from the first."""

NULLS = ("", "NA", "N/A", "NULL", "null", "NaN", "nan", "None", "\\N", "<NA>", "#N/A")
"""What stands for null where numbers, booleans, times or ids are declared."""

_SEPARATORS = (",", ";", "\t", "|")
_BOM = b"\xef\xbb\xbf"
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
_DTYPES: dict[ColumnKind, Any] = {"integer": pl.Int64, "number": pl.Float64, "boolean": pl.Boolean}
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class CsvHeader:
    """The first line of a CSV file.

    Attributes:
        names: of the columns.
        separator: between values.
        lines: how many lines it takes.
        size: in bytes, with a byte order mark.
    """

    names: list[str]
    separator: str
    lines: int
    size: int


def csv_header(path: Path) -> CsvHeader:
    """Read the names of the columns.

    Raises:
        InputError: the file is compressed or not in UTF-8, or two columns have the same name.
    """
    check_encoding(path)
    with path.open("rb") as file:
        line = file.readline()
        lines = 1
        while line.count(b'"') % 2 and (more := file.readline()):
            line += more
            lines += 1
    try:
        text = line.removeprefix(_BOM).decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise InputError(f"the header of {path} is not in UTF-8: save the file as UTF-8") from None
    if "\r" in text:
        raise InputError(
            f"the lines of {path} end in a carriage return alone: save it with line feeds"
        )
    unquoted = "".join(text.split('"')[::2])
    separator = max(_SEPARATORS, key=lambda each: (unquoted.count(each), each == ","))
    names = [name.strip() for name in next(csv.reader([text], delimiter=separator), [])]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise InputError(f"{path} has two columns {repeated!r}: rename or remove one of them")
    return CsvHeader(names, separator, lines, len(line))


def csv_frames(path: Path, fields: FileFields) -> Iterator[pl.DataFrame]:
    """The rows of a CSV file with a header, some megabytes at a time.

    Raises:
        InputError: a line has more or fewer values than the header, or is not in UTF-8.
    """
    header = csv_header(path)
    reader = _BlockReader(path, header, fields)
    with path.open("rb") as file:
        file.seek(header.size)
        for block in _blocks(file):
            frame = reader.read(block)
            if len(frame):
                yield frame


class _BlockReader:
    """Makes frames of the blocks of one file."""

    def __init__(self, path: Path, header: CsvHeader, fields: FileFields) -> None:
        self._path = path
        self._header = header
        self._fields = fields
        self._line = 1 + header.lines  # of the block's first row
        self._schema: dict[str, Any] | None = None
        self._whole_ids: bool | None = None  # whether ids are written as 17.0; None: not known yet

    def read(self, block: bytes) -> pl.DataFrame:
        """The rows of a block, which consists of whole lines."""
        block = self._checked(block)
        self._line += block.count(b"\n")
        if not block.strip(b"\r\n"):
            return pl.DataFrame()
        frame = self._parsed(block)
        if frame is None:
            frame = self._converted(self._read(block, dict.fromkeys(self._header.names, pl.String)))
        return self._with_plain_ids(frame)

    def _parsed(self, block: bytes) -> pl.DataFrame | None:
        """The rows, if every value fits the type of its column."""
        schema = self._schema
        if schema is None:
            declared = {name: self._dtype(name) for name in self._header.names}
            schema = {name: dtype for name, dtype in declared.items() if dtype is not None}
        try:
            frame = self._read(block, schema)
        except pl.exceptions.PolarsError:
            return None
        if self._schema is None:
            self._schema = dict(frame.schema)
        return frame

    def _dtype(self, name: str) -> Any:
        """The type by which a column is parsed; None: whatever its values are."""
        kind = self._fields.kind_of(name)
        return pl.String if kind == "text" else _DTYPES.get(kind) if kind is not None else None

    def _read(self, block: bytes, schema: dict[str, Any]) -> pl.DataFrame:
        names = self._header.names
        types: dict[str, Any] = {"schema": {name: schema[name] for name in names if name in schema}}
        if len(types["schema"]) < len(names):  # the other types are inferred from all values
            types = {
                "new_columns": names,
                "schema_overrides": schema,
                "infer_schema_length": None,
            }
        return pl.read_csv(
            BytesIO(block), has_header=False, separator=self._header.separator, **types
        )

    def _converted(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The frame of texts with each value converted as its column asks, where it can be."""
        comma = self._header.separator == ";"
        columns = []
        for column in frame:
            kind = self._fields.kind_of(column.name)
            if kind in (None, "other"):
                columns.append(self._inferred(column))
            else:
                columns.append(column if kind == "text" else _converted(column, kind, comma))
        frame = frame.with_columns(columns)
        if self._schema is None:
            declared = {name: self._dtype(name) for name in frame.columns}
            self._schema = {name: declared[name] or frame.schema[name] for name in frame.columns}
        return frame

    def _inferred(self, column: pl.Series) -> pl.Series:
        """A column whose kind is not declared, as the type that it had before, or that fits."""
        if self._schema is None:
            for dtype in (pl.Int64, pl.Float64, pl.Boolean):
                values = column.cast(dtype, strict=False)
                if values.null_count() == column.null_count():
                    return values
            return column
        values = column.cast(self._schema[column.name], strict=False)
        if values.null_count() > column.null_count():
            row = (values.is_null() & column.is_not_null()).arg_true()[0]
            raise InputError(
                f"{self._path}, before line {self._line}: column {column.name!r} holds "
                f"{column[row]!r}, and other values before; name columns of text that look like "
                "numbers as text fields"
            )
        return values

    def _with_plain_ids(self, frame: pl.DataFrame) -> pl.DataFrame:
        name = self._fields.id
        if name not in frame.columns or frame[name].dtype != pl.String:
            return frame
        ids = frame[name]
        ids = ids.set(ids.is_in(list(NULLS)), None)
        present = ids.drop_nulls()
        if self._whole_ids is None and len(present):
            self._whole_ids = bool(present.str.contains(r"^-?\d+\.0$").all())
        if self._whole_ids:
            other = present.filter(~present.str.contains(r"^-?\d+(\.0)?$"))
            if len(other):
                raise InputError(
                    f"column {name!r} of {self._path} holds {other[0]!r}, and whole numbers "
                    "written as '1.0' before it: write ids as integers or texts"
                )
            ids = ids.str.strip_suffix(".0")
        return frame.with_columns(ids)

    def _checked(self, block: bytes) -> bytes:
        """The block without blank lines.

        Raises:
            InputError: a line does not have as many values as the header, or is not in UTF-8.
        """
        counts, starts, ends = _values_per_line(block, self._header.separator)
        blank = counts == 1
        if len(self._header.names) > 1 and blank.any():
            blank[blank] = [
                not block[start:end].strip(b"\r\n")
                for start, end in zip(starts[blank].tolist(), ends[blank].tolist(), strict=True)
            ]
        else:
            blank[:] = False
        wrong = np.flatnonzero((counts != len(self._header.names)) & ~blank)
        if len(wrong):
            row = int(wrong[0])
            start, end = int(starts[row]), int(ends[row])
            text = block[start:end].rstrip(b"\r\n").decode(errors="replace")
            shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
            few = "fewer" if counts[row] < len(self._header.names) else "more"
            line = self._line + block.count(b"\n", 0, start)
            raise InputError(
                f"line {line} of {self._path} has "
                f"{counts[row]} values, {few} than the {len(self._header.names)} columns of the "
                f"header: {shown!r}; correct or remove it"
            )
        try:
            block.decode()
        except UnicodeDecodeError as error:
            line = self._line + block.count(b"\n", 0, error.start)
            raise InputError(
                f"line {line} of {self._path} is not in UTF-8: save the file as UTF-8"
            ) from None
        if not blank.any():
            return block
        lines = zip(starts[~blank].tolist(), ends[~blank].tolist(), strict=True)
        return b"".join(block[start:end] for start, end in lines)


def _values_per_line(
    block: bytes, separator: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """How many values each line has, where it starts, and where it ends (with its line feed)."""
    data = np.frombuffer(block, np.uint8)
    breaks, marks = data == ord("\n"), data == ord(separator)
    if b'"' in block:
        outside = np.cumsum(data == ord('"'), dtype=np.uint8) % 2 == 0
        breaks &= outside
        marks &= outside
    ends = np.flatnonzero(breaks) + 1
    if not len(ends) or ends[-1] != len(block):
        ends = np.append(ends, len(block))
    before = np.searchsorted(np.flatnonzero(marks), ends)
    starts = np.concatenate([[0], ends[:-1]])
    return np.diff(before, prepend=0) + 1, starts, ends


def _converted(column: pl.Series, kind: ColumnKind | None, comma: bool) -> pl.Series:
    """A column of texts as the integers, numbers, booleans or times that it should hold.

    With ``comma``, 1,5 is a number.
    """
    texts = column.str.strip_chars()
    texts = texts.set(texts.is_in(list(NULLS)), None)
    if comma and kind != "time":
        texts = texts.str.replace(r"^([+-]?\d+),(\d+)$", "$1.$2")
    if kind == "boolean":
        values = texts.str.to_lowercase().replace_strict(
            _BOOLEANS, default=None, return_dtype=pl.Boolean
        )
        return _mixed(column, texts, values, lambda text: text)
    integers = texts.str.strip_prefix("+").cast(pl.Int64, strict=False)
    if integers.null_count() == texts.null_count():
        return integers
    numbers = texts.str.strip_prefix("+").cast(pl.Float64, strict=False)
    if kind == "number":
        return _mixed(column, texts, numbers, lambda text: text)
    if kind == "time":
        return numbers if numbers.null_count() == texts.null_count() else texts
    whole = numbers.is_finite() & (numbers == numbers.floor()) & (numbers.abs() < 2.0**53)
    if whole.fill_null(True).all() and numbers.null_count() == texts.null_count():
        return numbers.cast(pl.Int64)
    return _mixed(column, texts, integers, _integer)


def _integer(text: str) -> Any:
    """A text that is no 64-bit integer as the number that it is, else the text."""
    for read in (int, float):
        try:
            number = read(text)
        except (ValueError, OverflowError):
            continue
        whole = isinstance(number, float) and number.is_integer() and abs(number) < 2.0**53
        return int(number) if whole else number
    return text


def _mixed(column: pl.Series, texts: pl.Series, values: pl.Series, convert: Any) -> pl.Series:
    """``values``, and where there is none but a text, what ``convert`` makes of that."""
    left = texts.is_not_null() & values.is_null()
    if not left.any():
        return values.alias(column.name)
    mixed = values.to_list()
    for row in left.arg_true().to_list():
        mixed[row] = convert(column[row])
    return pl.Series(column.name, mixed, dtype=pl.Object)


def _blocks(file: Any) -> Iterator[bytes]:
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
