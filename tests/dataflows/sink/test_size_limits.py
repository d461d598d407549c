"""An output larger than its topic takes never ends the stream: it is cut, or a dead letter."""

from __future__ import annotations

import base64
import json
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from river import linear_model, preprocessing

from anabranch import (
    DeadLetter,
    Event,
    MemoryBus,
    Pipeline,
    Prediction,
    field,
    inline,
    one_hot,
    read_outputs,
)
from anabranch.dataflows.batch.dead_letters import payload_fields
from anabranch.dataflows.bus import Bus, open_bus
from anabranch.dataflows.declaration.features import Feature
from anabranch.dataflows.recovery.state_directory import StateDirectory
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.sink.size_limits import encode_within
from anabranch.dataflows.source.bus_source import SourceOptions

T0 = 1_700_000_000_000
BINARY = b"\x00\x00\x00\x00\x07" + b"\xff\xfe" * 50


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
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
    size: float
    hot: bool


def readings(
    name: str = "readings",
    with_features: bool = False,
    features: Sequence[Feature] = (field("size"),),
) -> Pipeline:
    return Pipeline(
        name=name,
        event=Reading,
        label=inline("hot"),
        features=features,
        model=preprocessing.StandardScaler() | linear_model.LogisticRegression(),
        with_features=with_features,
    )


def reading(number: int, name: str | None = None) -> bytes:
    row = {"id": name or f"r{number}", "ts": T0 + number, "size": number % 7, "hot": number % 2 > 0}
    return json.dumps(row, separators=(",", ":")).encode()


def large_messages(limit: int) -> list[bytes]:
    """Messages that a topic takes, between readings, whose dead letters or outputs it does not."""
    repeated = "d" * (limit // 2)
    return [
        reading(0),
        BINARY * int(0.85 * limit / len(BINARY)),
        reading(1),
        bytes(limit // 5),
        b'"' * int(0.6 * limit),
        ("é" * int(0.4 * limit) + '"' * (limit // 6)).encode(),
        reading(2, "i" * (limit - 90)),
        reading(3, repeated),
        reading(4, repeated),
        reading(5),
    ]


def publish(bus: Bus, topic: str, values: list[bytes]) -> None:
    publisher = bus.publisher()
    for value in values:
        publisher.append(topic, [value], partitions=0)
    publisher.close()


def run(pipeline: Pipeline, bus: Bus, state: Path) -> None:
    with StateDirectory.open(state, pipeline, bus) as opened:
        run_worker(pipeline, bus, SourceOptions(until_end=True), state=opened)


def test_oversized_outputs_are_cut_or_dead_letters_and_published_once(bus, tmp_path):
    pipeline = readings(f"readings-{uuid.uuid4().hex[:8]}")
    events, state = pipeline.topics.events, tmp_path / "state"
    bus.create_topics({events: 1})
    messages = large_messages(bus.limits(events).max_message_bytes)
    publish(bus, events, messages[:4])
    run(pipeline, bus, state)
    shutil.copytree(state, tmp_path / "before")
    publish(bus, events, messages[4:])
    run(pipeline, bus, state)
    shutil.rmtree(state)  # as if nothing had been committed: what follows is made again
    shutil.copytree(tmp_path / "before", state)
    run(pipeline, bus, state)

    predicted = [each.offset for each in read_outputs(pipeline, bus=bus)]
    assert predicted == [0, 2, 7, 9]
    letters = {each.offset: each for each in read_outputs(pipeline, DeadLetter, bus=bus)}
    assert bus.end_offsets(pipeline.topics.dead_letters) == [6]
    assert {offset: letter.reason for offset, letter in letters.items()} == {
        1: "not JSON",
        3: "not JSON",
        4: "does not fit the type",
        5: "not JSON",
        6: "output too large",
        8: "duplicate id",
    }
    for offset, letter in letters.items():
        sent = messages[offset]
        assert (letter.topic, letter.partition) == (events, 0)
        if letter.payload_base64 is not None:
            kept = base64.b64decode(letter.payload_base64, validate=True)
        else:
            kept = letter.payload.encode()
        assert sent.startswith(kept)
        assert len(kept) > len(sent) // 10
        if kept == sent:
            assert letter.truncated_from is msgspec.UNSET
        else:
            assert letter.truncated_from == len(sent)
    assert letters[1].truncated_from == len(messages[1])
    assert pipeline.topics.predictions in letters[6].detail


def test_a_prediction_with_features_too_large_for_its_topic_is_a_dead_letter():
    bus, pipeline = MemoryBus(max_message_bytes=300), readings(with_features=True)
    bus.create_topics({pipeline.topics.events: 3})
    values = [reading(n, "x" * 160 + str(n) if n % 5 == 0 else None) for n in range(60)]
    bus.publisher().append(pipeline.topics.events, values, partitions=[n % 3 for n in range(60)])
    run_worker(pipeline, bus, SourceOptions(until_end=True))
    predicted = {each.ts - T0 for each in read_outputs(pipeline, bus=bus)}
    letters = list(read_outputs(pipeline, DeadLetter, bus=bus))
    assert predicted == {n for n in range(60) if n % 5}
    assert {3 * each.offset + each.partition for each in letters} == set(range(0, 60, 5))
    assert {each.reason for each in letters} == {"output too large"}
    for topic in pipeline.topics.outputs:
        assert all(len(value) <= 300 for value in bus.values(topic))


def test_a_prediction_is_measured_also_where_its_event_is_small():
    """With features it may be many times as large as the message of its event."""
    many = one_hot("id", tuple(f"reading {n}" for n in range(100)))
    bus, pipeline = MemoryBus(max_message_bytes=2000), readings(features=[many], with_features=True)
    bus.create_topics({pipeline.topics.events: 1})
    bus.publisher().append(pipeline.topics.events, [reading(n) for n in range(3)])
    run_worker(pipeline, bus, SourceOptions(until_end=True))
    assert list(read_outputs(pipeline, bus=bus)) == []
    letters = list(read_outputs(pipeline, DeadLetter, bus=bus))
    assert [(each.offset, each.reason) for each in letters] == [
        (n, "output too large") for n in range(3)
    ]


@given(
    payload=st.one_of(
        st.binary(max_size=400),
        st.text(max_size=400).map(str.encode),
        st.text('"\\\0a', max_size=400).map(str.encode),
    ),
    most=st.integers(min_value=350, max_value=1000),
    detail=st.sampled_from(["-", "id 'x' came before", "é" * 500]),
)
def test_a_letter_within_a_limit_keeps_as_much_of_its_payload_as_fits(payload, most, detail):
    letter = DeadLetter(
        topic="readings.events", partition=3, offset=77, reason="not JSON", detail=detail,
        **payload_fields(payload),
    )  # fmt: skip
    encoded = encode_within(letter, msgspec.json.encode, most)
    whole = msgspec.json.encode(letter)
    found = msgspec.json.decode(encoded, type=DeadLetter)
    assert (found.topic, found.partition, found.offset) == ("readings.events", 3, 77)
    if len(whole) <= most:
        assert encoded == whole
        return
    if len(detail) < 200:
        assert len(encoded) <= most
        assert found.detail == detail
    binary = found.payload_base64 is not None
    kept = base64.b64decode(found.payload_base64) if binary else (found.payload or "").encode()
    assert payload.startswith(kept)
    assert payload == b"" or found.truncated_from == len(payload)
    if detail == "-":
        assert len(encoded) > most - 12  # another character might not fit


def test_a_prediction_of_usual_size_is_published_as_ever():
    bus, pipeline = MemoryBus(max_message_bytes=400), readings()
    bus.create_topics({pipeline.topics.events: 1})
    bus.publisher().append(pipeline.topics.events, [reading(n) for n in range(50)])
    run_worker(pipeline, bus, SourceOptions(until_end=True))
    found = list(read_outputs(pipeline, Prediction, bus=bus))
    assert [each.id for each in found] == [f"r{n}" for n in range(50)]
    assert bus.values(pipeline.topics.dead_letters) == []


@pytest.mark.kafka
def test_thousands_of_messages_pass_topics_that_take_small_batches(kafka_broker):
    bus = open_bus(kafka_broker.url, {"topic.max.message.bytes": "2000", "linger.ms": "20"})
    pipeline = readings(f"readings-{uuid.uuid4().hex[:8]}")
    bus.create_topics({pipeline.topics.events: 1})
    publisher = bus.publisher()
    publisher.append(pipeline.topics.events, [reading(n) for n in range(4000)])
    publisher.append(pipeline.topics.events, [BINARY * 15])
    publisher.close()
    run_worker(pipeline, bus, SourceOptions(until_end=True))
    assert [each.offset for each in read_outputs(pipeline, bus=bus)] == list(range(4000))
    (letter,) = read_outputs(pipeline, DeadLetter, bus=bus)
    assert letter.truncated_from == 15 * len(BINARY)
    bus.close()
