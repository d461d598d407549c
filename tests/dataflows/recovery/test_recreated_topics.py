"""Topics that are deleted and created again, between two runs and under one, are never mistaken."""

from __future__ import annotations

import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest
from river import linear_model

from anabranch import Event, Pipeline, StateError, field, inline, read_outputs
from anabranch.dataflows.bus import AdminBus, BusError, OnOutOfRange, open_bus
from anabranch.dataflows.recovery.manifest import read_manifest, write_manifest
from anabranch.dataflows.recovery.resume_point import read_resume_point
from anabranch.dataflows.recovery.state_directory import StateDirectory
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.models.rollout.policies import Shadow
from anabranch.state.errors import AnabranchError
from tests.support.waiting import GENEROUS_S, wait_until


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AdminBus]:
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
    size: float
    hot: bool


def readings() -> Pipeline:
    return Pipeline(
        name=f"readings-{uuid.uuid4().hex[:8]}",
        event=Reading,
        label=inline("hot"),
        features=[field("size")],
        model=linear_model.LogisticRegression(),
        challengers={"other": linear_model.LogisticRegression()},
        rollout=Shadow(),
    )


def publish(bus: AdminBus, topic: str, first: int, count: int) -> None:
    """Readings r``first`` and so on, in partitions 0 and 1 by turns."""
    rows = [
        Reading(f"r{n}", 1_760_000_000_000 + n, float(n % 7), n % 2 > 0)
        for n in range(first, first + count)
    ]
    publisher = bus.publisher()
    values = [msgspec.json.encode(row) for row in rows]
    publisher.append(topic, values, partitions=[n % 2 for n in range(count)])
    publisher.close()


def recreate(bus: AdminBus, topic: str, partitions: int = 2) -> None:
    bus.delete_topics([topic])
    bus.create_topics({topic: partitions})


def run(
    pipeline: Pipeline, bus: AdminBus, state: Path, on_recreated: OnOutOfRange = "stop"
) -> list[str]:
    """Run to the end of the topics; returns the lines that opening the state said."""
    lines: list[str] = []
    options = SourceOptions(until_end=True, on_out_of_range=on_recreated)
    with StateDirectory.open(
        state, pipeline, bus, on_recreated=on_recreated, say=lines.append
    ) as opened:
        run_worker(pipeline, bus, options, state=opened)
    return lines


def predicted(pipeline: Pipeline, bus: AdminBus) -> list[str]:
    return sorted(each.id for each in read_outputs(pipeline, bus=bus))


def ids(*ranges: tuple[int, int]) -> list[str]:
    return sorted(f"r{n}" for first, end in ranges for n in range(first, end))


def started(pipeline: Pipeline, bus: AdminBus, state: Path) -> str:
    """Publish 40 events and predict them; returns the events topic."""
    events = pipeline.topics.events
    bus.create_topics({events: 2})
    publish(bus, events, 0, 40)
    assert run(pipeline, bus, state) == []
    assert predicted(pipeline, bus) == ids((0, 40))
    return events


def test_an_id_is_of_one_topic(bus: AdminBus, tmp_path: Path) -> None:
    name, other = (f"t-{uuid.uuid4().hex[:8]}" for _ in range(2))
    bus.create_topics({name: 1, other: 1})
    before = bus.topic_ids([name, other, f"{name}-missing"])
    assert len(set(before.values())) == 2
    assert before.keys() == {name, other}
    assert bus.topic_ids([name, other]) == before
    publish(bus, name, 0, 0)
    bus.add_partitions(name, 3)
    assert bus.topic_ids([name]) == {name: before[name]}
    recreate(bus, name)
    assert bus.topic_ids([name])[name] != before[name]
    assert bus.topic_ids([]) == {}


def test_a_recreated_input_is_refused_or_read_from_its_start(bus, tmp_path):
    pipeline, state = readings(), tmp_path / "state"
    events = started(pipeline, bus, state)
    recreate(bus, events)
    publish(bus, events, 100, 60)  # more than there were: the old offsets are in range
    for _ in range(2):
        with pytest.raises(StateError, match=rf"topic {events} was deleted and created again"):
            run(pipeline, bus, state)
    assert predicted(pipeline, bus) == ids((0, 40))

    shutil.copytree(state, tmp_path / "before")
    (line,) = run(pipeline, bus, state, "earliest")
    assert line == f"topic {events} is a new one: reading it from its first message on"
    assert predicted(pipeline, bus) == ids((0, 40), (100, 160))
    publish(bus, events, 160, 5)
    assert run(pipeline, bus, state) == []  # no longer needed
    assert predicted(pipeline, bus) == ids((0, 40), (100, 165))


def test_a_crash_after_a_new_input_was_accepted_doubles_and_loses_nothing(bus, tmp_path):
    pipeline, state = readings(), tmp_path / "state"
    events = started(pipeline, bus, state)
    publish(bus, events, 40, 20)
    shutil.copytree(state, tmp_path / "before")
    run(pipeline, bus, state)
    shutil.rmtree(state)  # killed before these were committed
    shutil.copytree(tmp_path / "before", state)
    recreate(bus, events)
    publish(bus, events, 100, 60)
    with StateDirectory.open(state, pipeline, bus, on_recreated="earliest"):
        pass  # accepted, and nothing was read
    shutil.rmtree(tmp_path / "before")
    shutil.copytree(state, tmp_path / "before")
    for _ in range(2):  # the second as if nothing of the first had been committed
        run(pipeline, bus, state)
        assert predicted(pipeline, bus) == ids((0, 60), (100, 160))
        shutil.rmtree(state)
        shutil.copytree(tmp_path / "before", state)


def test_a_deleted_or_recreated_output_is_refused_or_replaced(bus, tmp_path):
    pipeline, state = readings(), tmp_path / "state"
    events = started(pipeline, bus, state)
    publish(bus, events, 40, 10)
    for change in (recreate, lambda bus, topic: bus.delete_topics([topic])):
        change(bus, pipeline.topics.predictions)
        with pytest.raises(StateError, match=r"output topic \S+\.predictions was deleted since"):
            run(pipeline, bus, state)
    (line,) = run(pipeline, bus, state, "earliest")
    assert line.startswith(f"output topic {pipeline.topics.predictions} is a new one")
    assert predicted(pipeline, bus) == ids((40, 50))
    publish(bus, events, 50, 10)
    assert run(pipeline, bus, state) == []
    assert predicted(pipeline, bus) == ids((40, 60))


def test_what_was_published_on_a_recreated_output_is_not_published_again(bus, tmp_path):
    pipeline, state = readings(), tmp_path / "state"
    events = started(pipeline, bus, state)
    shutil.copytree(state, tmp_path / "before")
    recreate(bus, pipeline.topics.predictions)
    publish(bus, events, 40, 50)
    run(pipeline, bus, state, "earliest")
    shutil.rmtree(state)  # as if nothing of that run had been committed
    shutil.copytree(tmp_path / "before", state)
    run(pipeline, bus, state, "earliest")
    assert predicted(pipeline, bus) == ids((40, 90))


def test_a_state_without_ids_gets_them_at_the_next_start(bus, tmp_path):
    pipeline, state = readings(), tmp_path / "state"
    events = started(pipeline, bus, state)
    manifest = read_manifest(state)
    assert manifest is not None
    assert manifest.topic_ids.keys() == {*pipeline.inputs, *pipeline.topics.outputs}
    write_manifest(state, msgspec.structs.replace(manifest, topic_ids={}))
    publish(bus, events, 40, 10)
    assert run(pipeline, bus, state) == []
    assert read_manifest(state) == manifest
    (_, part), *_ = read_resume_point(state / "recovery").partitions()
    assert part.topic_ids == {topic: manifest.topic_ids[topic] for topic in pipeline.inputs}
    recreate(bus, events)
    with pytest.raises(StateError, match="was deleted and created again"):
        run(pipeline, bus, state)


def test_a_bus_without_ids_is_not_checked(bus, tmp_path, monkeypatch):
    monkeypatch.setattr(type(bus), "topic_ids", lambda *_: {})  # a broker that is too old
    pipeline, state = readings(), tmp_path / "state"
    events = started(pipeline, bus, state)
    recreate(bus, events)
    publish(bus, events, 40, 60)
    assert run(pipeline, bus, state) == []


def test_a_restored_copy_of_the_embedded_bus_keeps_its_identity(tmp_path):
    bus = open_bus(f"sqlite:{tmp_path / 'bus'}")
    pipeline, state = readings(), tmp_path / "state"
    events = started(pipeline, bus, state)
    publish(bus, events, 40, 10)
    shutil.copytree(tmp_path / "bus", tmp_path / "backup")
    shutil.rmtree(tmp_path / "bus")
    shutil.copytree(tmp_path / "backup", tmp_path / "bus")
    assert run(pipeline, bus, state) == []
    assert predicted(pipeline, bus) == ids((0, 50))


def test_a_publisher_notices_that_its_topic_was_recreated(bus: AdminBus) -> None:
    topic = f"t-{uuid.uuid4().hex[:8]}"
    bus.create_topics({topic: 1})
    publisher = bus.publisher()
    for _ in range(2):
        publisher.append(topic, [b"x"])
        publisher.flush()
    recreate(bus, topic, 1)
    publisher.append(topic, [b"y"])
    with pytest.raises(BusError, match=f"topic {topic} was deleted and recreated"):
        publisher.flush()
    with suppress(BusError):
        publisher.close()


@contextmanager
def running(pipeline: Pipeline, bus: AdminBus, state: Path | None) -> Iterator[list[BaseException]]:
    """A run in a thread, and how it failed."""
    options, failures = SourceOptions(), []

    def work() -> None:
        try:
            if state is None:
                run_worker(pipeline, bus, options, checkpoint_interval_s=0.1)
                return
            with StateDirectory.open(state, pipeline, bus) as opened:
                run_worker(pipeline, bus, options, state=opened, checkpoint_interval_s=0.1)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield failures
    finally:
        options.stop.set()
        thread.join(GENEROUS_S)
        assert not thread.is_alive()


@pytest.mark.parametrize("kept", [True, False])
def test_an_output_deleted_under_a_run_ends_it_with_one_sentence(bus, tmp_path, kept):
    sentences = set()
    for change in (recreate, lambda bus, topic: bus.delete_topics([topic])):
        pipeline, state = readings(), tmp_path / uuid.uuid4().hex
        events, predictions = pipeline.topics.events, pipeline.topics.predictions
        bus.create_topics({events: 2})
        with running(pipeline, bus, state if kept else None) as failures:
            publish(bus, events, 0, 10)
            wait_until(lambda topic=predictions: topic in bus.topics())
            wait_until(lambda topic=predictions: sum(bus.end_offsets(topic)) == 10)
            change(bus, predictions)
            publish(bus, events, 10, 10)
            wait_until(lambda failed=failures: failed, what="the end of the run")
        (failure,) = failures
        assert isinstance(failure, AnabranchError)
        sentences.add(str(failure).replace(pipeline.name, "readings"))
    assert len(sentences) == 1, sentences
    (sentence,) = sentences
    assert sentence.startswith("output topic readings.predictions was deleted while the run was")
