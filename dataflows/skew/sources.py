"""Resolves a name to a file or a topic, and checks that it can be read."""

from __future__ import annotations

from pathlib import Path

from anabranch.dataflows.bus import Bus, BusError, TopicPartition
from anabranch.dataflows.bus.read_to_end import ends_now
from anabranch.producers.files.formats import FORMATS
from anabranch.producers.files.tables import parquet_rows
from anabranch.state.errors import InputError


def file_of(name: str) -> Path | None:
    """The path if ``name`` is that of a file; None for a topic.

    >>> file_of("payments.events"), file_of("rows.parquet")
    (None, PosixPath('rows.parquet'))
    """
    path = Path(name)
    return path if path.suffix.lower() in FORMATS or path.is_file() else None


def format_of(path: Path) -> str:
    """The format of an existing file with rows: jsonl, csv or parquet.

    Raises:
        InputError: the file is missing, empty, damaged, or of another format.
    """
    if not path.exists():
        raise InputError(f"there is no file {path}")
    if not path.is_file():
        raise InputError(f"{path} is a directory: name a file in it")
    file_format = FORMATS.get(path.suffix.lower())
    if file_format is None:
        raise InputError(
            f"{path} has no known format: its name must end in {', '.join(sorted(FORMATS))}"
        )
    if path.stat().st_size == 0 or (file_format == "parquet" and not parquet_rows(path)):
        raise InputError(f"{path} has no rows: there is nothing to check")
    return file_format


def offsets_of(bus: Bus, topic: str, may_be_empty: bool = False) -> tuple[list[int], list[int]]:
    """The first offset and the end offset of each partition of a topic.

    Raises:
        BusError: the topic does not exist.
        InputError: it has no messages, unless ``may_be_empty``.
    """
    existing = bus.topics()
    if topic not in existing:
        listed = ", ".join(sorted(existing)) or "none yet"
        raise BusError(
            f"topic {topic!r} does not exist on {bus.url}; topics there: {listed} (file names "
            f"end in {', '.join(sorted(FORMATS))})"
        )
    starts = bus.start_offsets(topic)
    places = [TopicPartition(topic, number) for number in range(len(starts))]
    ends = list(ends_now(bus, places).values())
    if sum(ends) <= sum(starts) and not may_be_empty:
        raise no_messages(bus, topic)
    return starts, ends


def no_messages(bus: Bus, topic: str) -> InputError:
    """The error for a topic without messages, where there must be some."""
    return InputError(f"topic {topic!r} on {bus.url} has no messages: there is nothing to check")
