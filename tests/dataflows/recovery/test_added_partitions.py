"""Partitions added to the inputs are reported, and read from the next start on."""

from __future__ import annotations

import json
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from river import linear_model, preprocessing

from anabranch import Event, MemoryBus, Pipeline, StateError, field, inline, read_outputs, window
from anabranch.dataflows.bus import Bus, open_bus
from anabranch.dataflows.recovery.state_directory import StateDirectory
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics
from anabranch.models.rollout.policies import Shadow
from tests.support.commands import run_command
from tests.support.waiting import GENEROUS_S, wait_until

FLOW = """
from river import linear_model
from anabranch import Event, Pipeline, field, inline

class Reading(Event):
    id: str
    ts: int
    place: str
    size: float
    hot: bool

pipeline = Pipeline(name="NAME", event=Reading, label=inline("hot"), features=[field("size")],
                    model=linear_model.LogisticRegression())
"""


@pytest.fixture(
    params=["sqlite", pytest.param("kafka", marks=[pytest.mark.kafka, pytest.mark.slow])]
)
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bus]:
    if request.param == "sqlite":
        url = f"sqlite:{tmp_path / 'bus'}"
    else:
        url = request.getfixturevalue("kafka_broker").url
    opened = open_bus(url)
    yield opened
    opened.close()


class Reading(Event):
    id: str
    ts: int
    place: str
    size: float
    hot: bool


def readings() -> Pipeline:
    return Pipeline(
        name=f"readings-{uuid.uuid4().hex[:8]}",
        event=Reading,
        label=inline("hot"),
        features=[field("size"), window("place", "size", over="1h")],
        model=preprocessing.StandardScaler() | linear_model.LogisticRegression(),
        challengers={"other": linear_model.LogisticRegression()},
        rollout=Shadow(),
    )


def publish(bus: Bus, topic: str, first: int, count: int, partitions: int) -> None:
    """Readings r``first`` and so on, round and round over so many partitions."""
    now = time.time_ns() // 1_000_000
    rows = [
        {"id": f"r{n}", "ts": now + n, "place": f"p{n % 5}", "size": n % 7, "hot": n % 2 > 0}
        for n in range(first, first + count)
    ]
    publisher = bus.publisher()
    values = [json.dumps(row).encode() for row in rows]
    publisher.append(topic, values, partitions=[n % partitions for n in range(count)])
    publisher.close()


def run(pipeline: Pipeline, bus: Bus, state: Path, start_offset: str = "earliest") -> list[str]:
    """Run to the end of the topics; returns the lines that opening the state said."""
    lines: list[str] = []
    with StateDirectory.open(state, pipeline, bus, say=lines.append) as opened:
        run_worker(
            pipeline, bus, SourceOptions(until_end=True, start_offset=start_offset), state=opened
        )
    return lines


def predicted(pipeline: Pipeline | str, bus: Bus) -> list[str]:
    return sorted(each.id for each in read_outputs(pipeline, bus=bus))


def ids(count: int) -> list[str]:
    return sorted(f"r{n}" for n in range(count))


def running(
    pipeline: Pipeline, bus: Bus, state: Path, metrics: WorkerMetrics
) -> Callable[[], None]:
    """Start a run in a thread; the function that is returned stops it."""
    options, failures = SourceOptions(), []

    def work() -> None:
        try:
            with StateDirectory.open(state, pipeline, bus) as opened:
                run_worker(pipeline, bus, options, state=opened, metrics=metrics)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()

    def stop() -> None:
        options.stop.set()
        thread.join(GENEROUS_S)
        assert not thread.is_alive()
        assert failures == []

    return stop


def test_added_partitions_are_told_of_and_read_from_the_next_start_on(bus, tmp_path, caplog):
    pipeline, state = readings(), tmp_path / "state"
    events, metrics = pipeline.topics.events, WorkerMetrics(pipeline.name)

    def unread() -> float | None:
        labels = {"pipeline": pipeline.name, "topic": events}
        return metrics.registry.get_sample_value("anabranch_unread_partitions", labels)

    bus.create_topics({events: 1})
    stop = running(pipeline, bus, state, metrics)
    try:
        publish(bus, events, 0, 10, partitions=1)
        wait_until(lambda: pipeline.topics.predictions in bus.topics())
        wait_until(lambda: bus.end_offsets(pipeline.topics.predictions) == [10])
        bus.add_partitions(events, 3)
        publish(bus, events, 10, 30, partitions=3)
        wait_until(lambda: unread() == 2, what="the metric")
        wait_until(lambda: bus.end_offsets(pipeline.topics.predictions) == [20])
    finally:
        stop()
    (told,) = [r.getMessage() for r in caplog.records if "partitions now" in r.getMessage()]
    assert told.startswith(f"topic {events} has 3 partitions now, and had 1 when this run started")

    shutil.copytree(state, tmp_path / "before")
    (line,) = run(pipeline, bus, state)
    assert "have 3 partitions now, and had 1" in line
    assert predicted(pipeline, bus) == ids(40)
    for topic in (*pipeline.topics.outputs, pipeline.topics.control):
        assert bus.topics()[topic] == 3
    publish(bus, events, 40, 9, partitions=3)
    assert run(pipeline, bus, state) == []
    assert predicted(pipeline, bus) == ids(49)

    shutil.rmtree(state)  # as if all that had never been committed: it is made again
    shutil.copytree(tmp_path / "before", state)
    run(pipeline, bus, state)
    assert predicted(pipeline, bus) == ids(49)
    assert bus.end_offsets(pipeline.topics.dead_letters) == [0, 0, 0]


def test_a_crash_in_the_first_run_with_added_partitions_doubles_nothing(bus, tmp_path):
    pipeline, state = readings(), tmp_path / "state"
    events = pipeline.topics.events
    bus.create_topics({events: 1})
    publish(bus, events, 0, 10, partitions=1)
    run(pipeline, bus, state)
    bus.add_partitions(events, 2)
    with StateDirectory.open(state, pipeline, bus):
        pass  # the manifest has grown, and nothing was read
    shutil.copytree(state, tmp_path / "before")
    publish(bus, events, 10, 20, partitions=2)
    run(pipeline, bus, state)
    shutil.rmtree(state)
    shutil.copytree(tmp_path / "before", state)
    run(pipeline, bus, state)
    assert predicted(pipeline, bus) == ids(30)


def test_added_partitions_are_read_from_their_start_by_a_run_that_began_at_the_end(bus, tmp_path):
    pipeline, state = readings(), tmp_path / "state"
    events = pipeline.topics.events
    bus.create_topics({events: 1})
    publish(bus, events, 0, 10, partitions=1)
    run(pipeline, bus, state, start_offset="latest")
    assert predicted(pipeline, bus) == []
    bus.add_partitions(events, 4)
    publish(bus, events, 0, 12, partitions=4)
    run(pipeline, bus, state, start_offset="latest")
    assert predicted(pipeline, bus) == ids(12)


def test_from_scratch_the_outputs_grow_along(bus, tmp_path):
    pipeline = readings()
    events = pipeline.topics.events
    bus.create_topics({events: 1})
    publish(bus, events, 0, 10, partitions=1)
    run(pipeline, bus, tmp_path / "state")
    bus.add_partitions(events, 3)
    publish(bus, events, 10, 30, partitions=3)
    run_worker(pipeline, bus, SourceOptions(until_end=True))  # without state: all of it again
    assert sorted(set(predicted(pipeline, bus))) == ids(40)
    run(pipeline, bus, tmp_path / "another")
    assert bus.end_offsets(pipeline.topics.predictions) == [50, 20, 20]


def test_two_processes_read_added_partitions(bus, tmp_path):
    name = f"readings-{uuid.uuid4().hex[:8]}"
    (tmp_path / "flow.py").write_text(FLOW.replace("NAME", name))
    events = f"{name}.events"
    bus.create_topics({events: 1})
    publish(bus, events, 0, 10, partitions=1)
    arguments = ("run", "flow.py", "--bus", bus.url, "--processes", 2, "--until-end")
    first = run_command(tmp_path, *arguments)
    assert first.code == 0, first.err
    bus.add_partitions(events, 3)
    publish(bus, events, 10, 30, partitions=3)
    second = run_command(tmp_path, *arguments)
    assert second.code == 0, second.err
    assert "30 messages behind" in second.err
    assert predicted(name, bus) == ids(40)


def test_fewer_partitions_are_others(tmp_path):
    pipeline, state = readings(), tmp_path / "state"
    bus = MemoryBus()
    bus.create_topics({pipeline.topics.events: 2})
    run(pipeline, bus, state)
    other = MemoryBus()
    other.create_topics({pipeline.topics.events: 1})
    with pytest.raises(StateError, match=r"have 1 partitions, and .* was last used with 2"):
        run(pipeline, other, state)


def test_partitions_are_added_once(bus):
    topic = f"t-{uuid.uuid4().hex[:8]}"
    bus.create_topics({topic: 2})
    publisher = bus.publisher()
    publisher.append(topic, [b"a", b"b"], partitions=[0, 1])
    publisher.close()
    for _ in range(2):
        bus.add_partitions(topic, 4)
        assert bus.end_offsets(topic) == [1, 1, 0, 0]
    with pytest.raises(Exception, match=f"{topic} has 4 partitions, more than 3"):
        bus.add_partitions(topic, 3)
