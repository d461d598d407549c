"""Where a run without state starts: an end, a time, or the offsets of a file; on every bus."""

from __future__ import annotations

import json
import uuid
from datetime import UTC
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from anabranch import InputError, MemoryBus
from anabranch.dataflows.bus import Bus, TopicPartition, open_bus
from anabranch.dataflows.source.start_offsets import Start, parse_start, resolve_start

HOUR = 3_600_000


@pytest.fixture(params=["memory", "sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Bus:
    if request.param == "memory":
        return MemoryBus()
    if request.param == "sqlite":
        return open_bus(f"sqlite:{tmp_path}/bus")
    return open_bus(request.getfixturevalue("kafka_broker").url)


@pytest.fixture
def topic(bus: Bus) -> str:
    """Two partitions; the messages of the first are one, two, … hours after 1970, one is early."""
    name = uuid.uuid4().hex
    bus.create_topics({name: 2})
    publisher = bus.publisher()
    times = [HOUR * hour for hour in (1, 2, 5, 3, 6)]
    publisher.append(name, [b"x"] * 5, partitions=0, times=times)
    publisher.append(name, [b"x"], partitions=1, times=[2 * HOUR])
    publisher.close()
    return name


@pytest.mark.parametrize(
    ("time_ms", "expected"),
    [
        (0, [0, 0]),
        (2 * HOUR, [1, 0]),
        (2 * HOUR + 1, [2, 1]),
        (5 * HOUR, [2, 1]),
        (7 * HOUR, [5, 1]),
    ],
)
def test_the_first_message_at_a_time_or_later(
    bus: Bus, topic: str, time_ms: int, expected: list[int]
) -> None:
    assert bus.offsets_at(topic, time_ms) == expected
    found = resolve_start(bus, [topic], time_ms)
    assert found == {TopicPartition(topic, n): at for n, at in enumerate(expected)}


def test_the_ends(bus: Bus, topic: str) -> None:
    for start, expected in (("earliest", [0, 0]), ("latest", [5, 1])):
        found = resolve_start(bus, [topic], start)  # type: ignore[arg-type]
        assert list(found.values()) == expected


def test_offsets_must_fit_the_topics(bus: Bus, topic: str) -> None:
    found = resolve_start(bus, [topic], {topic: {0: 3, 1: 1}})
    assert found == {TopicPartition(topic, 0): 3, TopicPartition(topic, 1): 1}
    wrong: list[tuple[Start, str]] = [
        ({topic: {0: 3}}, "no offset of partition 1"),
        ({topic: {0: 3, 1: 2}}, "offset 2 of partition 1 of topic .*, which holds 0 to 1"),
        ({topic: {0: 3, 1: 1, 2: 0}}, "an offset of partition 2 .* partitions are 0 to 1"),
        ({topic: {0: 3, 1: 1}, "x": {0: 0}}, "topic 'x', which is no input: the inputs are"),
    ]
    for start, sentence in wrong:
        with pytest.raises(InputError, match=sentence):
            resolve_start(bus, [topic], start)


def test_times_are_of_the_zone_of_the_pipeline() -> None:
    assert parse_start("1970-01-01T05:00", UTC) == 5 * HOUR
    assert parse_start("1970-01-01T05:00", ZoneInfo("Europe/Paris")) == 4 * HOUR
    assert parse_start("1970-01-01T05:00+02:00", ZoneInfo("Europe/Paris")) == 3 * HOUR
    assert parse_start("-1h30m", UTC, 2 * HOUR) == HOUR // 2


@pytest.mark.parametrize(
    "text", ["orders,0,17\n\norders,1,4\n", 'topic,partition,offset\n"orders",0,17\norders, 1,4']
)
def test_a_file_of_offsets(tmp_path: Path, text: str) -> None:
    path = tmp_path / "offsets"
    path.write_text(text)
    assert parse_start(str(path), UTC) == {"orders": {0: 17, 1: 4}}
    path.write_text(json.dumps({"orders": {"0": 17, "1": 4}}))
    assert parse_start(str(path), UTC) == {"orders": {0: 17, 1: 4}}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("orders,0\n", "line 1: write topic,partition,offset"),
        ("orders,0,-1\n", "line 1: write topic,partition,offset"),
        ("\n", "has no offsets"),
        ('{"orders": {"0": "x"}}', "Expected `int`"),
        ('{"orders": {"0": -3}}', "below 0"),
    ],
)
def test_a_file_with_a_mistake(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "offsets"
    path.write_text(text)
    with pytest.raises(InputError, match=sentence):
        parse_start(str(path), UTC)


@pytest.mark.parametrize("text", ["", "soon", "-2x", "-", "17", "missing.csv", "2026-13-01"])
def test_what_is_none_of_them(text: str) -> None:
    with pytest.raises(InputError, match="is none of: earliest, latest, a time such as"):
        parse_start(text, UTC)
