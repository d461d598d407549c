"""Whether a name stands for a file or for a topic, and what is asked of both before reading."""

from __future__ import annotations

from pathlib import Path

from anabranch.dataflows.bus import Bus, BusError, TopicPartition
from anabranch.dataflows.bus.read_to_end import ends_now
from anabranch.producers.files.formats import FORMATS
from anabranch.producers.files.tables import parquet_rows
from anabranch.state.errors import InputError


def file_of(name: str) -> Path | None:
    """The file that ``name`` stands for; None for a topic.

    >>> file_of("payments.events"), file_of("rows.parquet")
    (None, PosixPath('rows.parquet'))
    """
    path = Path(name)
    return path if path.suffix.lower() in FORMATS or path.is_file() else None


def format_of(path: Path) -> str:
    """The format of a file that is there and has rows: jsonl, csv or parquet.

    Raises:
        InputError: it is missing, empty, damaged, or of another kind.
    """
    if not path.exists():
        raise InputError(f"there is no file {path}")
    if not path.is_file():
        raise InputError(f"{path} is a directory: name a file in it")
    found = FORMATS.get(path.suffix.lower())
    if found is None:
        raise InputError(
            f"{path} is of no known kind: its name must end in {', '.join(sorted(FORMATS))}"
        )
    if path.stat().st_size == 0 or (found == "parquet" and not parquet_rows(path)):
        raise InputError(f"{path} has no rows: there is nothing to check")
    return found


def offsets_of(bus: Bus, topic: str, may_be_empty: bool = False) -> tuple[list[int], list[int]]:
    """The first offset of each partition of a topic, and the one behind the last.

    Raises:
        BusError: there is no such topic.
        InputError: it has no messages, and must not be empty.
    """
    known = bus.topics()
    if topic not in known:
        listed = ", ".join(sorted(known)) or "none yet"
        raise BusError(
            f"topic {topic!r} does not exist on {bus.url}; topics there: {listed} (a file's name "
            f"ends in {', '.join(sorted(FORMATS))})"
        )
    starts = bus.start_offsets(topic)
    places = [TopicPartition(topic, number) for number in range(len(starts))]
    ends = list(ends_now(bus, places).values())
    if sum(ends) <= sum(starts) and not may_be_empty:
        raise InputError(f"topic {topic!r} on {bus.url} has no messages: there is nothing to check")
    return starts, ends
