"""Reads a JSONL file; its lines are published as they are."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from anabranch.producers.batch import Batch, Kind
from anabranch.producers.files.encodings import check_encoding
from anabranch.producers.files.fields import NOT_IN_PAYLOAD, FileFields
from anabranch.producers.files.json_fields import JsonFields, key_bytes
from anabranch.state.errors import InputError

_BOM = b"\xef\xbb\xbf"


def jsonl_messages(path: Path, fields: FileFields, kind: Kind, batch_size: int) -> Iterator[Batch]:
    """The lines of ``path`` that are not blank, as messages of ``kind``.

    A line without a readable time gets the time of the line before it; lines before the first
    readable time get that one.

    Raises:
        InputError: none of the first ``batch_size`` lines has the time field, or the key field, or
            a time in its unit; or the file is compressed, or not in UTF-8.
    """
    check_encoding(path)
    reader = _LineReader(fields)
    first = True
    last_ms: int | None = None
    with path.open("rb") as file:
        while lines := list(islice(file, batch_size)):
            if first and lines[0].startswith(_BOM):
                lines[0] = lines[0].removeprefix(_BOM)
            values = [line.rstrip(b"\r\n") for line in lines if not line.isspace()]
            times, keys = reader.read(values)
            if first and values:
                reader.check(path, len(values))
                first = False
            if last_ms is None:
                last_ms = next((time for time in times if time is not None), 0)
            filled: list[int] = []
            for time in times:
                last_ms = last_ms if time is None else time
                filled.append(last_ms)
            if values:
                yield Batch.of(kind, values, keys, filled)
    if first:
        raise InputError(f"{path} has only blank lines: there is nothing to publish")


class _LineReader:
    """Reads the time and the key of lines, and counts the lines that had them."""

    def __init__(self, fields: FileFields) -> None:
        self._fields = fields
        names = {"time": fields.time}
        if fields.key is not None:
            names["key"] = fields.key
        names = {each: at for each, at in names.items() if not at.startswith(NOT_IN_PAYLOAD)}
        self._names = names
        self._at = {each: index for index, each in enumerate(names)}
        self._json = JsonFields([fields.paths_of(name) for name in names.values()])
        self._objects = 0
        self._first_names: list[str] = []
        self._found = dict.fromkeys(names, 0)
        self._valid = False
        self._refused: Any = None  # the first time that is none

    def read(self, lines: list[bytes]) -> tuple[list[int | None], list[bytes | None]]:
        """Time (epoch ms) and key of each line; None where there is none."""
        times: list[int | None] = []
        keys: list[bytes | None] = []
        time_at, key_at = self._at.get("time"), self._at.get("key")
        for line in lines:
            row = self._json.read(line)
            if row is None:
                times.append(None)
                keys.append(None)
                continue
            if not self._objects:
                self._first_names = list(msgspec.json.decode(line))
            self._objects += 1
            for name, index in self._at.items():
                self._found[name] += row[index] is not None
            times.append(None if time_at is None else self._time_ms(row[time_at]))
            keys.append(None if key_at is None else key_bytes(row[key_at]))
        return times, keys

    def _time_ms(self, value: Any) -> int | None:
        time = self._fields.time_ms(value)
        if time is not None:
            self._valid = True
        elif self._refused is None:
            self._refused = value
        return time

    def check(self, path: Path, lines: int) -> None:
        """Raise InputError if the lines read so far show that a field has the wrong name."""
        if not self._objects:
            return  # all malformed: each becomes a dead letter
        for meaning, name in self._names.items():
            if not self._found[meaning]:
                raise InputError(
                    f"no field {name!r} in the first {lines} lines of {path}: say which field "
                    f"holds the {meaning}"
                )
        self._fields.check_id(str(path), self._first_names, may_be_numbered=True)
        hint = "" if self._valid else self._fields.unit_hint(self._refused)
        if hint:
            raise InputError(
                f"field {self._fields.time!r} of {path} holds {self._refused!r}, which is not a "
                f"time{hint}"
            )
