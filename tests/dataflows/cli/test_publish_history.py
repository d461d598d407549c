"""History that is published stays, or is refused; a row of the future harms no other."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from anabranch import DeadLetter, MemoryBus, read_outputs
from anabranch.dataflows.bus import Bus, TopicPartition, open_bus
from anabranch.dataflows.pipelines.loader import load_pipeline
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.producers.batch import Batch
from anabranch.producers.publish import publish
from anabranch.state.errors import InputError
from tests.support.commands import Call, caller
from tests.support.kafka_broker import KafkaBroker, missing_tools
from tests.support.waiting import wait_until

DAY_MS = 86_400_000
WEEK = {"log.retention.ms": str(7 * DAY_MS)}
PIPELINE = """
from river import linear_model
from anabranch import Event, Pipeline, field, inline

class Reading(Event):
    id: str
    ts: int
    size: float
    hot: bool

pipeline = Pipeline(name="NAME", event=Reading, label=inline("hot"), features=[field("size")],
                    model=linear_model.LogisticRegression())
"""


@pytest.fixture(scope="module")
def default_broker() -> Iterator[KafkaBroker]:
    """A broker with Kafka's retention of 7 days, whose cleaner runs twice a second."""
    reason = missing_tools()
    if reason is not None:
        pytest.skip(reason)
    often = {"log.retention.check.interval.ms": "500", "log.initial.task.delay.ms": "100"}
    with KafkaBroker(fast_start=True, settings=WEEK | often) as broker:
        yield broker


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bus]:
    if request.param == "sqlite":
        url = f"sqlite:{tmp_path / 'bus'}"
    else:
        url = request.getfixturevalue("default_broker").url
    opened = open_bus(url)
    yield opened
    opened.close()


@pytest.fixture
def name(tmp_path: Path) -> str:
    """The name of a new pipeline, in ``flow.py``."""
    found = f"readings-{uuid.uuid4().hex[:8]}"
    (tmp_path / "flow.py").write_text(PIPELINE.replace("NAME", found))
    return found


@pytest.fixture
def call(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    return caller(tmp_path, capfd)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def write_rows(path: Path, times: list[int]) -> Path:
    rows = [{"id": f"r{i}", "ts": ts, "size": 1.5, "hot": i % 2 > 0} for i, ts in enumerate(times)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def year_ago(count: int) -> list[int]:
    return [now_ms() - 365 * DAY_MS + 1000 * i for i in range(count)]


def with_retention(broker: KafkaBroker, topic: str, days: int = 7) -> None:
    """Create a topic of one partition as another program would: it keeps messages for a time."""
    bus = open_bus(broker.url, {"topic.retention.ms": str(days * DAY_MS)})
    bus.create_topics({topic: 1})
    bus.close()


@pytest.mark.kafka
def test_published_history_outlives_the_cleaner_of_a_default_broker(
    default_broker: KafkaBroker, tmp_path: Path, name: str, call: Call
) -> None:
    url, other = default_broker.url, f"{name}.other"
    file = write_rows(tmp_path / "rows.jsonl", year_ago(50))
    assert call("publish", "flow.py", file, "--bus", url).code == 0
    bus = open_bus(url)
    with_retention(default_broker, other)
    publisher = bus.publisher()
    publisher.append(other, [b"x"] * 50, times=year_ago(50))
    publisher.close()
    wait_until(lambda: bus.start_offsets(other)[0] > 0, what="a run of the cleaner")
    assert bus.start_offsets(f"{name}.events") == [0]
    run = call("run", "flow.py", "--bus", url, "--no-state", "--until-end")
    assert run.code == 0, run.err
    assert "beginning" not in run.err
    outputs = list(read_outputs(name, bus=bus))
    assert [each.id for each in outputs] == [f"r{i}" for i in range(50)]
    assert bus.limits(f"{name}.predictions").retention_ms is None


@pytest.mark.kafka
def test_history_that_its_topic_would_delete_is_refused_with_the_setting(
    default_broker: KafkaBroker, tmp_path: Path, name: str, call: Call
) -> None:
    url, topic = default_broker.url, f"{name}.events"
    with_retention(default_broker, topic)
    file = write_rows(tmp_path / "rows.jsonl", year_ago(5))
    done = call("publish", "flow.py", file, "--bus", url)
    assert done.code == 1
    assert f"topic {topic} keeps messages for 7 days (its retention.ms is 604800000)" in done.err
    bus = open_bus(url)
    assert bus.end_offsets(topic) == [0]
    live = call("publish", "flow.py", file, "--bus", url, "--rate", "1000")
    assert live.code == 0, live.err
    assert bus.end_offsets(topic) == [5]


@pytest.mark.kafka
def test_older_rows_later_on_are_warned_of(
    default_broker: KafkaBroker, caplog: pytest.LogCaptureFixture
) -> None:
    topic, bus = f"t-{uuid.uuid4().hex[:8]}", open_bus(default_broker.url)
    with_retention(default_broker, topic)
    recent = Batch.of("events", [b"a"], [None], [now_ms()])
    old = Batch.of("events", [b"b"], [None], np.array(year_ago(1)))
    publish(bus, [recent, old, old], topics={"events": topic})
    (record,) = [r for r in caplog.records if "retention.ms" in r.getMessage()]
    assert topic in record.getMessage()
    with pytest.raises(InputError, match="would be deleted soon"):
        publish(bus, [old, recent], topics={"events": topic})
    assert bus.end_offsets(topic) == [3]


def test_a_row_of_the_future_alone_is_a_dead_letter(
    bus: Bus, tmp_path: Path, name: str, call: Call
) -> None:
    first = now_ms() - 10_000
    times = [first, first + 1000, first + 5 * 3_600_000, first + 2000, first + 3000]
    done = call("publish", "flow.py", write_rows(tmp_path / "rows.jsonl", times), "--bus", bus.url)
    assert done.code == 0, done.err
    assert "event 3, of 20" in done.err
    assert "is ahead of the clock" in done.err
    assert "published 5 events" in done.out
    run = call("run", "flow.py", "--bus", bus.url, "--no-state", "--until-end")
    assert run.code == 0, run.err
    assert [each.id for each in read_outputs(name, bus=bus)] == ["r0", "r1", "r3", "r4"]
    (letter,) = read_outputs(name, DeadLetter, bus=bus)
    assert (letter.reason, letter.offset) == ("event time ahead", 2)


def test_history_within_the_clock_says_nothing(
    bus: Bus, tmp_path: Path, name: str, call: Call
) -> None:
    file = write_rows(tmp_path / "rows.jsonl", year_ago(5))
    done = call("publish", "flow.py", file, "--bus", bus.url)
    assert (done.code, done.err) == (0, "")


@pytest.mark.kafka
def test_a_run_says_once_that_the_beginning_of_a_topic_is_gone(
    default_broker: KafkaBroker, tmp_path: Path, name: str, call: Call
) -> None:
    url, bus = default_broker.url, open_bus(default_broker.url)
    file = write_rows(tmp_path / "rows.jsonl", year_ago(10))
    assert call("publish", "flow.py", file, "--bus", url).code == 0
    default_broker.delete_records(f"{name}.events", {0: 4})
    first = call("run", "flow.py", "--bus", url, "--until-end")
    assert first.err.count(f"topic {name}.events no longer has its beginning") == 1
    assert "offset 4 (partition 0)" in first.err
    again = call("run", "flow.py", "--bus", url, "--until-end")
    assert again.code == 0
    assert "beginning" not in again.err
    assert len(list(read_outputs(load_pipeline(str(tmp_path / "flow.py")), bus=bus))) == 6


def test_a_missing_beginning_is_told_of_on_any_bus(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline, bus = load_pipeline(str(tmp_path / "flow.py")), MemoryBus()
    bus.create_topics({f"{name}.events": 3})
    rows = [
        json.dumps({"id": f"r{i}", "ts": i, "size": 1.5, "hot": True}).encode() for i in range(9)
    ]
    bus.publisher().append(f"{name}.events", rows, partitions=[i % 3 for i in range(9)])
    bus.delete_before(TopicPartition(f"{name}.events", 0), 2)
    bus.delete_before(TopicPartition(f"{name}.events", 2), 3)
    run_worker(pipeline, bus, SourceOptions(until_end=True))
    (told,) = [r.getMessage() for r in caplog.records if "beginning" in r.getMessage()]
    assert "offset 2 (partition 0), 3 (partition 2)," in told
    caplog.clear()
    run_worker(pipeline, bus, SourceOptions(until_end=True, start_offset="latest"))
    assert not [r for r in caplog.records if "beginning" in r.getMessage()]
