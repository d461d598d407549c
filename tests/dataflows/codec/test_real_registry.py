"""A real schema registry: schemas are read and registered as the small one in the tests does."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from anabranch import Avro, BusError, Event, JsonSchema, Prediction, Protobuf
from anabranch.dataflows.codec import make_codec
from anabranch.dataflows.codec.avro_codec import AvroCodec
from anabranch.dataflows.codec.protocol import Undecodable
from anabranch.dataflows.codec.schema_registry import open_registry
from anabranch.dataflows.codec.simple_codecs import JsonSchemaCodec
from anabranch.dataflows.codec.written_schemas import written_type
from anabranch.models.learners.learner import Task
from tests.support.avro_orders import SCHEMA, in_avro, order
from tests.support.kafka_broker import missing_tools
from tests.support.schema_registry import ApicurioRegistry

pytestmark = pytest.mark.kafka  # it needs Java and Maven, as a broker does


@pytest.fixture(scope="module")
def registry() -> Iterator[ApicurioRegistry]:
    reason = missing_tools()
    if reason is not None:
        pytest.skip(f"NOT RUN: no schema registry, as there is {reason}")
    with ApicurioRegistry() as server:
        yield server


def test_schemas_by_id_references_and_unknown_ids(registry: ApicurioRegistry) -> None:
    class Order(Event):
        order_id: str
        amount: float

    client = open_registry(registry.url)
    schema_id = client.register("orders-value", "AVRO", msgspec.json.encode(SCHEMA).decode())
    codec = make_codec(Avro(registry=registry.url))
    found = codec.decoder(Order)(in_avro(order(3), schema_id))
    assert (found.order_id, found.amount) == ("o3", order(3)["amount"])
    with pytest.raises(Undecodable, match="no schema with id 4711"):
        codec.decoder(Order)(in_avro(order(3), 4711))


def test_predictions_are_registered_written_and_read_again(registry: ApicurioRegistry) -> None:
    written = written_type(Task.BINARY, False)
    sent = Prediction(
        id="a", ts=1_700_000_000_000, topic="t", partition=0, offset=7, model="m", version=3,
        prediction=True, score=0.75, features={"amount": 2.0},
    )  # fmt: skip
    url = registry.url
    for codec in (
        AvroCodec(Avro(registry=url), 1.0, "avro-value", written),
        JsonSchemaCodec(JsonSchema(registry=url), "json-value", written),
    ):
        codec.prepare_writing()
        payload = codec.encode(sent)
        assert payload[:1] == b"\0"
        assert codec.decoder(Prediction)(payload) == sent
    with pytest.raises(BusError, match="refuses the schema"):
        open_registry(url).register("bad-value", "AVRO", '{"type": "nonsense"}')


def test_protobuf_without_descriptors_is_a_sentence(registry: ApicurioRegistry) -> None:
    text = 'syntax = "proto3"; package shop; message Order { string id = 1; }'
    schema_id = open_registry(registry.url).register("proto-value", "PROTOBUF", text)

    class Order(Event):
        id: str

    codec = make_codec(Protobuf(registry=registry.url))
    with pytest.raises(BusError, match="as text only, without its descriptor"):
        codec.decoder(Order)(b"\0" + schema_id.to_bytes(4) + b"\0\x0a\x01a")
