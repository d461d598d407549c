"""A flipped bit in a file of the embedded bus is found, or changes nothing."""

from __future__ import annotations

import random
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from anabranch.dataflows.bus import BusError, TopicPartition
from anabranch.dataflows.bus.embedded import topic_file
from anabranch.dataflows.bus.embedded.bus import EmbeddedBus
from anabranch.dataflows.bus.embedded.topic_file import COLUMNS, FORMAT, SUFFIX

PARTITIONS = 2
FORMAT_1 = (
    "CREATE TABLE old (id INTEGER PRIMARY KEY, count INTEGER NOT NULL, first_time INTEGER NOT "
    "NULL, last_time INTEGER NOT NULL, messages BLOB NOT NULL)",
    "INSERT INTO old SELECT id, count, first_time, last_time, messages FROM segments",
    "DROP TABLE segments",
    "ALTER TABLE old RENAME TO segments",
    "DROP TABLE settings",
    "PRAGMA user_version=1",
)


def fill(bus: EmbeddedBus, appends: int) -> None:
    chance = np.random.default_rng(appends)
    publisher = bus.publisher()
    for turn in range(appends):
        values = [chance.bytes(int(size)) for size in chance.integers(0, 90, 40)]
        keys = [b"k%d" % (n % 5) if n % 3 else None for n in range(40)]
        times = chance.integers(0, 10**12, 40)
        publisher.append("t", values, keys=keys, times=times, partitions=[turn % 2] * 40)
    publisher.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bus as a clean end leaves it, and one as a kill does, with a write-ahead log."""
    directory = tmp_path_factory.mktemp("made")
    bus = EmbeddedBus(str(directory / "clean"))
    bus.create_topics({"t": PARTITIONS})
    fill(bus, 30)
    shutil.copytree(directory / "clean", directory / "before")
    holding = sqlite3.connect(directory / "before" / f"t{SUFFIX}")
    holding.execute("SELECT count(*) FROM segments").fetchone()
    fill(EmbeddedBus(str(directory / "before")), 12)
    shutil.copytree(directory / "before", directory / "killed")
    holding.close()
    return directory


def contents(directory: Path) -> dict[TopicPartition, list[tuple[object, ...]]]:
    """All messages, as a reader returns them."""
    bus = EmbeddedBus(str(directory))
    ends = bus.end_offsets("t")
    places = [TopicPartition("t", number) for number in range(PARTITIONS)]
    reader = bus.reader(dict.fromkeys(places, 0))
    found: dict[TopicPartition, list[tuple[object, ...]]] = {at: [] for at in places}
    while any(reader.positions()[at] < ends[at.partition] for at in places):
        slices = reader.poll(1000)
        if not slices:
            raise BusError("nothing more is there")
        for piece in slices:
            rows = zip(
                piece.offsets.tolist(), piece.times.tolist(), piece.values, piece.keys, strict=True
            )
            found[TopicPartition("t", piece.partition)] += rows
    reader.close()
    return found


def stored(directory: Path) -> list[Path]:
    """The files that hold something; the index of the log is made anew."""
    return [path for path in directory.iterdir() if path.suffix != f"{SUFFIX}-shm"]


@pytest.mark.parametrize("kind", ["clean", "killed"])
def test_a_flipped_bit_is_found_or_changes_nothing(made: Path, tmp_path: Path, kind: str) -> None:
    chance = random.Random(kind)
    shutil.copytree(made / kind, tmp_path / "whole")
    assert list(EmbeddedBus(str(tmp_path / "whole")).verify()) == []
    before = contents(tmp_path / "whole")
    assert sum(map(len, before.values())) == 40 * (42 if kind == "killed" else 30)
    found = 0
    for turn in range(80):
        directory = tmp_path / str(turn)
        shutil.copytree(made / kind, directory)
        file = chance.choice([path for path in stored(directory) if path.stat().st_size])
        content = bytearray(file.read_bytes())
        at = chance.randrange(len(content))
        content[at] ^= 1 << chance.randrange(8)
        file.write_bytes(content)
        files = {path: path.read_bytes() for path in stored(directory)}
        damaged = list(EmbeddedBus(str(directory)).verify())
        assert files == {path: path.read_bytes() for path in stored(directory)}
        found += bool(damaged)
        try:
            after = contents(directory)
        except BusError:
            assert damaged or kind == "killed", (file, at)
        else:
            # A reader never returns anything else. After a kill the last append may be missing:
            # an incomplete one is what a power failure leaves.
            for place, rows in after.items():
                assert rows == before[place][: len(rows)], (file, at)
            missing = sum(len(before[place]) - len(rows) for place, rows in after.items())
            assert damaged or missing <= 40 * (kind == "killed"), (file, at)
        shutil.rmtree(directory)
    assert found >= 20  # others are in space that nothing is stored in


def test_a_zeroed_patch_is_never_read_as_something_else(made: Path, tmp_path: Path) -> None:
    chance = random.Random(4)
    before = contents(made / "clean")
    size = (made / "clean" / f"t{SUFFIX}").stat().st_size
    for turn in range(30):
        directory = tmp_path / str(turn)
        shutil.copytree(made / "clean", directory)
        file = directory / f"t{SUFFIX}"
        at, length = chance.randrange(100, size), chance.choice([8, 64, 512])
        content = bytearray(file.read_bytes())
        content[at : at + length] = bytes(len(content[at : at + length]))
        file.write_bytes(content)
        damaged = list(EmbeddedBus(str(directory)).verify())
        try:
            assert contents(directory) == before, at
        except BusError:
            assert damaged, at


def test_segments_of_the_former_format_are_read_and_new_ones_have_checksums(
    made: Path, tmp_path: Path
) -> None:
    shutil.copytree(made / "clean", tmp_path / "bus")
    path, bus = tmp_path / "bus" / f"t{SUFFIX}", EmbeddedBus(str(tmp_path / "bus"))
    with sqlite3.connect(path) as connection:
        for statement in FORMAT_1:
            connection.execute(statement)
    assert list(bus.verify()) == []
    assert contents(tmp_path / "bus") == contents(made / "clean")
    assert bus.topic_ids(["t"]).keys() == {"t"}
    assert bus.topic_ids(["t"]) == bus.topic_ids(["t"])
    fill(bus, 1)
    assert list(bus.verify()) == []
    connection = topic_file.connect("t", path)
    checksums = [row[-1] for row in connection.execute(f"SELECT {COLUMNS} FROM segments")]
    assert connection.execute("PRAGMA user_version").fetchone() == (FORMAT,)
    connection.close()
    assert sum(checksum is not None for checksum in checksums) == 1
    assert len(checksums) == 31


def test_damage_is_one_sentence_with_file_and_offset(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "clean", tmp_path / "bus")
    path = tmp_path / "bus" / f"t{SUFFIX}"
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE segments SET last_time = last_time + 1 WHERE id = 40")
    with pytest.raises(BusError, match=rf"{path} is damaged: the segment at offset 40 of"):
        contents(tmp_path / "bus")
