"""Failures of the embedded bus alone: killed writers, full disks, damaged and foreign files."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from anabranch.dataflows.bus import (
    BusError,
    OnOutOfRange,
    TopicPartition,
    UnreachableError,
    open_bus,
)
from anabranch.dataflows.bus.embedded import publisher as publisher_module
from anabranch.dataflows.bus.embedded import reader as reader_module
from anabranch.dataflows.bus.embedded.bus import EmbeddedBus
from anabranch.dataflows.bus.embedded.topic_file import FORMAT, SUFFIX
from tests.support.waiting import GENEROUS_S, wait_until

AT = TopicPartition("t", 0)
WRITER = """
import sys
from anabranch.dataflows.bus import open_bus
publisher = open_bus(sys.argv[1]).publisher()
turn = 0
while True:
    publisher.append("t", [b"%d" % turn] * 300, partitions=[i % 3 for i in range(300)])
    print(turn, flush=True)
    turn += 1
"""


@pytest.fixture
def bus(tmp_path: Path) -> EmbeddedBus:
    """A bus with the topic ``t`` of one partition."""
    bus = EmbeddedBus(str(tmp_path / "bus"))
    bus.create_topics({"t": 1})
    return bus


def topic_path(tmp_path: Path) -> Path:
    return tmp_path / "bus" / f"t{SUFFIX}"


def append(bus: EmbeddedBus, values: list[bytes]) -> None:
    publisher = bus.publisher()
    publisher.append("t", values)
    publisher.close()


def read(
    bus: EmbeddedBus, start: int = 0, limit: int = 1000, on_out_of_range: OnOutOfRange = "stop"
) -> list[bytes]:
    reader = bus.reader({AT: start}, on_out_of_range=on_out_of_range)
    found: list[bytes] = []
    while slices := reader.poll(limit):
        found += [value for part in slices for value in part.values]
    reader.close()
    return found


def test_a_killed_writer_leaves_only_complete_appends(tmp_path: Path) -> None:
    bus = open_bus(f"sqlite:{tmp_path / 'bus'}")
    bus.create_topics({"t": 3})
    for _ in range(3):
        before = bus.end_offsets("t")
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, bus.url], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "0\n"
        time.sleep(0.2)
        writer.kill()
        acknowledged = int(writer.stdout.read().split("\n")[-2]) + 1
        writer.wait()
        gained = [end - start for end, start in zip(bus.end_offsets("t"), before, strict=True)]
        assert gained[0] % 100 == 0
        assert gained == [gained[0]] * 3  # an append goes to three partitions, or to none
        assert gained[0] // 100 in (acknowledged, acknowledged + 1)
        reader = bus.reader({TopicPartition("t", p): before[p] for p in range(3)})
        counts = [0, 0, 0]
        while slices := reader.poll(10_000):
            for part in slices:
                for value in part.values:
                    assert value == b"%d" % (counts[part.partition] // 100)
                    counts[part.partition] += 1
        assert counts == gained
        reader.close()


def test_full_disk_stores_nothing_of_the_append(bus: EmbeddedBus, tmp_path: Path) -> None:
    append(bus, [b"kept"])
    publisher = bus.publisher()
    publisher.append("t", [b"too"])
    connection = publisher._topics["t"].connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count={pages + 20}")
    # The first segments of the append fit, the last do not.
    with pytest.raises(BusError, match=r"topic t: .* is full; nothing of this append was stored"):
        publisher.append("t", [b"x" * 5] * 4096 * 20)
    assert bus.end_offsets("t") == [2]
    assert read(bus) == [b"kept", b"too"]
    connection.execute(f"PRAGMA max_page_count={pages + 1000}")
    publisher.append("t", [b"again"])
    publisher.close()
    assert read(bus) == [b"kept", b"too", b"again"]


@pytest.mark.parametrize("what", ["head", "middle"])
def test_damaged_file(bus: EmbeddedBus, tmp_path: Path, what: str) -> None:
    append(bus, [b"x" * 100_000])
    path = topic_path(tmp_path)
    content = bytearray(path.read_bytes())
    start = 0 if what == "head" else 4096
    content[start : start + 4096] = b"\xa5" * 4096
    path.write_bytes(content)
    with pytest.raises(BusError, match=r"topic t: .*t\.topic: .*damaged"):
        read(bus)
    with pytest.raises(BusError, match=r"topic t: .*t\.topic: .*damaged"):
        append(bus, [b"y"])


def test_damaged_segment(bus: EmbeddedBus, tmp_path: Path) -> None:
    append(bus, [b"x", b"y"])
    with sqlite3.connect(topic_path(tmp_path)) as connection:
        connection.execute("UPDATE segments SET messages = x'93c0'")
    with pytest.raises(BusError, match=r"t\.topic is damaged: the segment at offset 0"):
        read(bus)


def test_file_of_another_format(bus: EmbeddedBus, tmp_path: Path) -> None:
    with sqlite3.connect(topic_path(tmp_path)) as connection:
        connection.execute("PRAGMA user_version=99")
    with pytest.raises(BusError, match=f"format 99, this version reads format {FORMAT}"):
        read(bus)


def test_foreign_database(bus: EmbeddedBus, tmp_path: Path) -> None:
    other = tmp_path / "bus" / f"other{SUFFIX}"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE a (b)")
    with pytest.raises(BusError, match="is a SQLite database but not a topic"):
        bus.end_offsets("other")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outages are told of at once, and attempts are short."""
    monkeypatch.setattr("anabranch.dataflows.bus.outage_log.SILENT_S", 0.05)
    monkeypatch.setattr("anabranch.dataflows.bus.embedded.publisher.SILENT_S", 0.05)
    monkeypatch.setattr("anabranch.dataflows.bus.embedded.publisher.WAIT_S", 0.02)


@pytest.fixture
def holder(bus: EmbeddedBus, tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """Another process's connection to the topic's file."""
    connection = sqlite3.connect(
        topic_path(tmp_path), isolation_level=None, check_same_thread=False
    )
    yield connection
    connection.close()


def test_an_append_waits_for_a_lock_and_says_so(
    bus: EmbeddedBus,
    holder: sqlite3.Connection,
    impatient: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    publisher = bus.publisher()
    publisher.append("t", [b"x"])
    holder.execute("BEGIN IMMEDIATE")
    appending = threading.Thread(target=publisher.append, args=("t", [b"y"]))
    appending.start()
    wait_until(lambda: "locked by another process" in caplog.text, what="the warning")
    assert appending.is_alive()
    holder.execute("ROLLBACK")
    appending.join(GENEROUS_S)
    publisher.append("t", [b"z"])
    publisher.close()
    assert read(bus) == [b"x", b"y", b"z"]


def test_a_stopped_publisher_does_not_wait_for_a_lock(
    bus: EmbeddedBus, holder: sqlite3.Connection, impatient: None
) -> None:
    stop = threading.Event()
    publisher = bus.publisher(stop)
    publisher.append("t", [b"x"])
    holder.execute("BEGIN IMMEDIATE")
    stop.set()
    with pytest.raises(UnreachableError, match=r"topic t: .*locked by another process"):
        publisher.append("t", [b"y"])
    holder.execute("ROLLBACK")
    publisher.close()
    assert read(bus) == [b"x"]


def test_a_reader_waits_for_a_lock_and_says_so(
    bus: EmbeddedBus, holder: sqlite3.Connection, impatient: None
) -> None:
    append(bus, [b"x"])
    reader = bus.reader({AT: 0})
    failing = reader._files["t"].connection
    reader._files["t"].connection = Locked()
    assert reader.poll(10) == []
    assert reader.ends() == {AT: 1}
    wait_until(lambda: reader.poll(10) == [] and reader.unavailable_reason() is not None)
    assert "locked by another process" in (reader.unavailable_reason() or "")
    reader._files["t"].connection = failing
    (piece,) = reader.poll(10)
    assert piece.values == [b"x"]
    assert reader.unavailable_reason() is None
    reader.close()


class Locked:
    """A connection to a file that another process has locked exclusively."""

    def execute(self, *_: object) -> None:
        raise sqlite3.OperationalError("database is locked")


def test_deleted_segments_move_the_start_and_are_never_skipped(
    bus: EmbeddedBus, tmp_path: Path
) -> None:
    for run in ([b"0", b"1"], [b"2", b"3", b"4"], [b"5"]):
        append(bus, run)
    early = bus.reader({AT: 1})
    with sqlite3.connect(topic_path(tmp_path)) as connection:
        connection.execute("DELETE FROM segments WHERE id < 2")
    assert bus.start_offsets("t") == [2]
    assert bus.end_offsets("t") == [6]
    with pytest.raises(BusError, match="keeps nothing before offset 2, but offset 1 is"):
        early.poll(10)
    early.close()
    assert read(bus, 2) == [b"2", b"3", b"4", b"5"]
    with pytest.raises(
        BusError, match=r"1 messages are gone; .* --on-offset-out-of-range earliest"
    ):
        bus.reader({AT: 1})
    assert read(bus, 1, on_out_of_range="earliest") == [b"2", b"3", b"4", b"5"]
    with sqlite3.connect(topic_path(tmp_path)) as connection:
        connection.execute("DELETE FROM segments")
    assert bus.start_offsets("t") == bus.end_offsets("t") == [6]
    append(bus, [b"6"])
    assert read(bus, 6) == [b"6"]
    with pytest.raises(BusError, match="keeps nothing before offset 6, but offset 3 is"):
        read(bus, 3)


def test_a_gap_in_mid_run_is_skipped_if_the_reader_continues(
    bus: EmbeddedBus, tmp_path: Path
) -> None:
    for run in ([b"0", b"1"], [b"2", b"3", b"4"], [b"5"]):
        append(bus, run)
    reader = bus.reader({AT: 0}, on_out_of_range="earliest")
    assert [s.values for s in reader.poll(1)] == [[b"0"]]
    with sqlite3.connect(topic_path(tmp_path)) as connection:
        connection.execute("DELETE FROM segments WHERE id < 5")
    found = [value for _ in range(5) for part in reader.poll(10) for value in part.values]
    assert found == [b"1", b"5"]  # what was fetched already is not lost
    assert reader.positions() == {AT: 6}
    with sqlite3.connect(topic_path(tmp_path)) as connection:
        connection.execute("DELETE FROM segments")
        connection.execute("UPDATE partitions SET next = 9")
    assert [reader.poll(10) for _ in range(3)] == [[], [], []]
    assert reader.positions() == reader.ends() == {AT: 9}
    assert reader.unavailable_reason() is None
    reader.close()


@pytest.mark.parametrize("then", ["no longer exists", "recreated"])
def test_a_file_deleted_or_replaced_is_noticed(
    bus: EmbeddedBus, tmp_path: Path, then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "_CHECK_S", 0.0)
    append(bus, [b"0"])
    reader, publisher = bus.reader({AT: 0}), bus.publisher()
    publisher.append("t", [b"1"])
    publisher.flush()
    assert [s.values for s in reader.poll(10)] == [[b"0", b"1"]]
    assert reader.poll(10) == []
    for name in (f"t{SUFFIX}", f"t{SUFFIX}-wal", f"t{SUFFIX}-shm"):
        (tmp_path / "bus" / name).rename(tmp_path / name)
    if then == "recreated":
        bus.create_topics({"t": 1})
    with pytest.raises(BusError, match=f"topic t .*{then}"):
        reader.poll(10)
    publisher.append("t", [b"2"])
    with pytest.raises(BusError, match=f"topic t .*{then}"):
        publisher.flush()
    publisher.close()
    reader.close()


def test_large_appends_become_several_segments(
    bus: EmbeddedBus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "MAX_BYTES", 1000)
    values = [b"x" * size for size in (10, 2000, 10, 400, 400, 400)] + [b""] * 10_000
    append(bus, values)
    with sqlite3.connect(topic_path(tmp_path)) as connection:
        counts = [row[0] for row in connection.execute("SELECT count FROM segments")]
    assert counts[:3] == [1, 1, 3]
    assert max(counts) == 4096
    assert sum(counts) == len(values)
    assert read(bus, limit=999) == values


def test_concurrent_creators_create_each_topic_once(tmp_path: Path) -> None:
    script = (
        "import sys; from anabranch.dataflows.bus import open_bus;"
        "print(len(open_bus(sys.argv[1]).create_topics({f't{i}': 2 for i in range(20)})))"
    )
    url = f"sqlite:{tmp_path / 'bus'}"
    creators = [
        subprocess.Popen([sys.executable, "-c", script, url], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    created = [int(creator.communicate()[0]) for creator in creators]
    assert sum(created) == 20
    assert open_bus(url).topics() == {f"t{i}": 2 for i in sorted(range(20), key=str)}
    assert not [p for p in (tmp_path / "bus").iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize(("url", "level"), [("", 1), ("?synchronous=full", 2)])
def test_synchronous_is_chosen_in_the_url(tmp_path: Path, url: str, level: int) -> None:
    bus = EmbeddedBus(f"{tmp_path}/bus{url}")
    bus.create_topics({"t": 1})
    publisher = bus.publisher()
    publisher.append("t", [b"x"])
    connection = publisher._topics["t"].connection
    assert connection.execute("PRAGMA synchronous").fetchone()[0] == level
    assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    publisher.close()
