"""Predictions in other formats are read again by everything that reads predictions."""

from __future__ import annotations

import json
from typing import Any

import pytest
from river import anomaly, linear_model, naive_bayes

from anabranch import (
    Avro,
    Custom,
    DeclarationError,
    Event,
    JsonSchema,
    MemoryBus,
    MessagePack,
    Pipeline,
    Prediction,
    Protobuf,
    field,
    inline,
    read_outputs,
)
from anabranch.dataflows.bus import BusError, UnreachableError
from anabranch.dataflows.codec import codec_of
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.skew.progress import ignore_progress
from anabranch.dataflows.skew.served_features import served_from_topic
from anabranch.dataflows.source.bus_source import SourceOptions
from tests.support.schema_registry import RegistryServer

T0 = 1_700_000_000_000


class Reading(Event):
    id: str
    ts: int
    size: float | None
    hot: bool
    kind: str
    next: float


TASKS = {
    "binary": {"label": inline("hot"), "model": linear_model.LogisticRegression()},
    "classes": {"label": inline("kind"), "model": naive_bayes.GaussianNB()},
    "regression": {"label": inline("next"), "model": linear_model.LinearRegression()},
    "anomaly": {"model": anomaly.HalfSpaceTrees(seed=1)},
}


def predicted(task: str, format: Any) -> tuple[Pipeline, MemoryBus]:
    declared = Pipeline(
        name="readings", event=Reading, features=[field("size", fill_null=0.0)],
        with_features=True, output_format=format, **TASKS[task],
    )  # fmt: skip
    bus = MemoryBus()
    bus.create_topics({"readings.events": 1})
    rows = [
        {
            "id": f'é"{i}', "ts": T0 + i, "size": None if i % 9 == 0 else i % 7, "hot": i % 7 > 3,
            "kind": "abc"[i % 3], "next": i % 5,
        }
        for i in range(60)
    ]  # fmt: skip
    publisher = bus.publisher()
    publisher.append("readings.events", [json.dumps(row).encode() for row in rows])
    run_worker(declared, bus, SourceOptions(until_end=True, limit=16))
    return declared, bus


def in_lines(message: dict[str, Any]) -> bytes:
    return b"my own: " + json.dumps(message).encode()


@pytest.mark.parametrize("task", list(TASKS))
def test_what_is_written_is_what_json_holds(task: str) -> None:
    with RegistryServer() as registry:
        formats = {
            "avro": Avro(registry=registry.url),
            "json-schema": JsonSchema(registry=registry.url, subject="own"),
            "msgpack": MessagePack(),
            "custom": Custom(
                lambda payload: json.loads(payload.removeprefix(b"my own: ")), in_lines
            ),
        }
        declared, bus = predicted(task, MessagePack())
        expected = list(read_outputs(declared, Prediction, bus=bus))
        assert len(expected) == 60
        for name, format in formats.items():
            declared, bus = predicted(task, format)
            assert list(read_outputs(declared, Prediction, bus=bus)) == expected, name
            codec = codec_of(declared, "readings.predictions")
            served = served_from_topic(
                declared.name, declared.columns, bus, "readings.predictions", ignore_progress, codec
            )
            assert len(served) == 60
        assert set(registry.subjects) == {"readings.predictions-value", "own"}
        (schema_id,) = registry.subjects["readings.predictions-value"]
        fields = json.loads(registry.schemas[schema_id]["schema"])["fields"]
        assert {"name": "id", "type": "string"} in fields
        (schema_id,) = registry.subjects["own"]
        assert json.loads(registry.schemas[schema_id]["schema"])["title"] == "Prediction"


def test_a_registry_that_is_away_or_refuses_says_so_before_anything_is_read() -> None:
    with RegistryServer() as registry:
        declared, _ = predicted("binary", MessagePack())
        declared = Pipeline(
            name="other", event=Reading, features=[field("size", fill_null=0.0)],
            output_format=Avro(registry=registry.url), **TASKS["binary"],
        )  # fmt: skip
        codec: Any = codec_of(declared, "other.predictions")
        registry.status = 503
        with pytest.raises(UnreachableError):
            codec.prepare_writing()
        registry.status = 409
        with pytest.raises(BusError, match=r"refuses the schema of 'other\.predictions-value'"):
            codec.prepare_writing()
        registry.status = None
        codec.prepare_writing()


@pytest.mark.parametrize(
    "format",
    [Protobuf(registry="http://a"), Avro(schema="{}"), Custom(json.loads), "avro", Avro],
)
def test_what_cannot_be_written_is_refused(format: Any) -> None:
    with pytest.raises(DeclarationError, match=r"output_format= of pipeline 'readings'"):
        predicted("binary", format)
