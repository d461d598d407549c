"""What a run has published is read back from Python as typed messages, on every bus."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from river import linear_model

from anabranch import (
    BusError,
    Cause,
    DeadLetter,
    DriftSignal,
    Event,
    InputError,
    Label,
    MemoryBus,
    OutputReader,
    Pipeline,
    Prediction,
    Ranking,
    RolloutMessage,
    Shadow,
    field,
    inline,
    open_bus,
    read_outputs,
)
from anabranch.dataflows.bus import Bus
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions

T0 = 1_700_000_000_000


class Order(Event):
    id: str
    ts: int
    price: float
    returned: bool


class Page(Event):
    id: str
    ts: int
    items: list[str]
    prices: list[float]


class Choice(Label):
    id: str
    ts: int
    item: str


@pytest.fixture(params=["memory", "sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bus]:
    """An open bus of every kind."""
    if request.param == "memory":
        yield MemoryBus()
        return
    url = f"sqlite:{tmp_path / 'bus'}"
    if request.param == "kafka":
        url = request.getfixturevalue("kafka_broker").url
    opened = open_bus(url)
    yield opened
    opened.close()


def orders(**changes: Any) -> Pipeline:
    declared: dict[str, Any] = {
        "name": f"orders-{uuid.uuid4().hex[:12]}",  # the broker is shared
        "event": Order,
        "label": inline("returned"),
        "features": [field("price")],
        "model": linear_model.LogisticRegression(),
    }
    return Pipeline(**(declared | changes))


def order(i: int) -> bytes:
    fields = {"id": f"o{i}", "ts": T0 + i, "price": float(i), "returned": i % 2 == 0}
    return json.dumps(fields).encode()


def publish(bus: Bus, topic: str, values: list[bytes], partition: int = 0) -> None:
    publisher = bus.publisher()
    publisher.append(topic, values, partitions=partition)
    publisher.flush()
    publisher.close()


def run(pipeline: Pipeline, bus: Bus, values: list[bytes], partitions: int = 1) -> None:
    """Publish events, in turn to every partition, and run the pipeline until their end."""
    bus.create_topics(dict.fromkeys(pipeline.inputs, partitions))
    for number in range(partitions):
        publish(bus, pipeline.topics.events, values[number::partitions], number)
    run_worker(pipeline, bus, SourceOptions(until_end=True))


def test_predictions_are_typed_and_the_end_of_the_topic_ends_the_iteration(bus: Bus) -> None:
    pipeline = orders()
    run(pipeline, bus, [order(i) for i in range(5)])
    with read_outputs(pipeline, bus=bus) as reader:
        predictions = list(reader)
        assert list(reader) == []
    assert [each.id for each in predictions] == [f"o{i}" for i in range(5)]
    assert all(isinstance(each, Prediction) for each in predictions)
    assert predictions[3].ts == T0 + 3
    assert predictions[3].cause == Cause(pipeline.topics.events, 0, 3)
    assert predictions[3].version == 3
    assert [each.id for each in read_outputs(pipeline.name, bus=bus)] == [f"o{i}" for i in range(5)]


def test_every_partition_is_read_to_its_end(bus: Bus) -> None:
    pipeline = orders()
    run(pipeline, bus, [order(i) for i in range(30)], partitions=3)
    reader = read_outputs(pipeline, bus=bus)
    by_partition: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for prediction in reader:
        assert reader.coordinates is not None
        assert reader.coordinates.topic == pipeline.topics.predictions
        by_partition[reader.coordinates.partition].append(int(prediction.id[1:]))
    assert by_partition == {n: list(range(n, 30, 3)) for n in range(3)}
    ends = bus.end_offsets(pipeline.topics.predictions)
    assert reader.position == dict(enumerate(ends))


def test_a_position_is_where_another_reader_continues(bus: Bus) -> None:
    pipeline = orders()
    run(pipeline, bus, [order(i) for i in range(6)])
    with read_outputs(pipeline, bus=bus) as reader:
        assert reader.position == {0: 0}
        assert reader.coordinates is None
        assert [next(reader).id, next(reader).id] == ["o0", "o1"]
        assert reader.coordinates == Cause(pipeline.topics.predictions, 0, 1)
    assert list(reader) == []  # it is closed
    rest = read_outputs(pipeline, bus=bus, start=reader.position)
    assert [each.id for each in rest] == ["o2", "o3", "o4", "o5"]
    assert list(read_outputs(pipeline, bus=bus, start="latest")) == []


def test_a_reader_that_follows_waits_for_more_until_it_is_closed(bus: Bus) -> None:
    pipeline = orders()
    run(pipeline, bus, [order(0)])
    with read_outputs(pipeline, bus=bus, follow=True) as reader:
        first = next(reader)
        writer = threading.Timer(
            0.3, publish, (bus, pipeline.topics.predictions, [msgspec.json.encode(first)])
        )
        writer.start()
        assert next(reader) == first
        writer.join()
        threading.Timer(0.3, reader.close).start()
        assert list(reader) == []


def test_dead_letters(bus: Bus) -> None:
    pipeline = orders()
    run(pipeline, bus, [order(0), b"no json", order(0)])
    dead_letters = list(read_outputs(pipeline, DeadLetter, bus=bus))
    assert sorted((each.reason, each.offset) for each in dead_letters) == [
        ("duplicate id", 2),
        ("not JSON", 1),
    ]
    assert {each.payload for each in dead_letters} == {"no json", order(0).decode()}


def test_drift_signals_and_rollout_messages(bus: Bus) -> None:
    pipeline = orders(
        challengers={"other": linear_model.LogisticRegression(l2=0.1)}, rollout=Shadow()
    )
    run(pipeline, bus, [order(i) for i in range(3)])
    signal = DriftSignal(
        pipeline="orders", subject="loss", detector="PageHinkley", ts=T0, statistic={"sum": 51.0},
        topic="e", partition=0, offset=7,
    )  # fmt: skip
    publish(bus, pipeline.topics.drift, [msgspec.json.encode(signal)])
    assert list(read_outputs(pipeline, DriftSignal, bus=bus)) == [signal]
    messages = list(read_outputs(pipeline, RolloutMessage, bus=bus))
    assert {each.challenger for each in messages} <= {"other"}
    assert all(each.cause.topic == pipeline.topics.events for each in messages)


def test_rankings() -> None:
    bus = MemoryBus()
    pipeline = Pipeline(
        name="pages",
        event=Page,
        candidates="items",
        label=Choice.target("item"),
        features=[field("prices")],
        model=linear_model.LogisticRegression(),
    )
    page = {"id": "p", "ts": T0, "items": ["a", "b"], "prices": [1.0, 2.0]}
    run(pipeline, bus, [json.dumps(page).encode()])
    (ranking,) = read_outputs(pipeline, Ranking, bus=bus)
    assert {each.item for each in ranking.ranking} == {"a", "b"}
    assert ranking.cause == Cause("pages.events", 0, 0)
    with pytest.raises(InputError, match="'pages' publishes no Prediction messages: read Ranking"):
        read_outputs(pipeline, bus=bus)
    with pytest.raises(InputError, match=r"offset 0 of partition 0 of topic pages\.predictions"):
        next(read_outputs("pages", bus=bus))


def test_a_message_of_another_type_is_an_error_and_the_next_call_continues(bus: Bus) -> None:
    pipeline = orders()
    run(pipeline, bus, [order(0)])
    publish(bus, pipeline.topics.predictions, [b'{"id":"odd"}', b"\xff"])
    reader = read_outputs(pipeline, bus=bus)
    first = next(reader)
    with pytest.raises(InputError, match=r"offset 1 of partition 0 .* is no Prediction: .*ts"):
        next(reader)
    with pytest.raises(InputError, match=r"offset 2 .* is no Prediction"):
        next(reader)
    assert first.id == "o0"
    assert next(reader, None) is None


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def test_a_bus_may_be_given_by_its_url(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:{tmp_path / 'bus'}"
    if kind == "kafka":
        url = request.getfixturevalue("kafka_broker").url
    pipeline, bus = orders(), open_bus(url)
    run(pipeline, bus, [order(0), order(1)])
    bus.close()
    with read_outputs(pipeline, bus=url) as reader:
        assert [each.id for each in reader] == ["o0", "o1"]


def read(**arguments: Any) -> OutputReader[Any]:
    bus = MemoryBus()
    bus.create_topics({"orders.predictions": 2})
    return read_outputs(**({"pipeline": "orders", "bus": bus} | arguments))


@pytest.mark.parametrize(
    ("arguments", "kind", "sentence"),
    [
        (
            {"pipeline": "other"},
            BusError,
            "topic 'other.predictions' does not exist on memory:: run the pipeline there first",
        ),
        ({"output": Order}, InputError, "is no type of output: read one of Prediction, Ranking"),
        ({"start": "first"}, InputError, "start='first' must be 'earliest', 'latest'"),
        ({"start": {5: 0}}, InputError, "names partition 5, but topic 'orders.predictions' has"),
        ({"start": {0: 9}}, BusError, "ends at offset 0, before offset 9"),
        ({"bus": "ftp:bus"}, BusError, "'ftp:bus' is not a bus"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: dict[str, Any], kind: type[Exception], sentence: str
) -> None:
    with pytest.raises(kind) as raised:
        read(**arguments)
    assert sentence in str(raised.value)
