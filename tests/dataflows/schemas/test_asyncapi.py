"""AsyncAPI documents and JSON Schemas of pipelines: valid, and true of their messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from jsonschema import Draft7Validator, Draft202012Validator
from river import anomaly, linear_model

from anabranch.dataflows.codec import codec_of
from anabranch.dataflows.declaration.features import field
from anabranch.dataflows.declaration.formats import Avro, CloudEvents, Connect, Debezium
from anabranch.dataflows.declaration.message_places import header
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.declaration.shape import Cast, path
from anabranch.dataflows.declaration.topics import Topics, pattern
from anabranch.dataflows.messages.inputs import Event, Label
from anabranch.dataflows.messages.outputs import DeadLetter, Prediction
from anabranch.dataflows.pipelines.loader import load_pipeline
from anabranch.dataflows.schemas.asyncapi import asyncapi, topic_schema
from anabranch.state.errors import InputError
from tests.support.commands import caller

T = 1_736_121_600_000
SPECIFICATION = json.loads(
    (Path(__file__).parents[2] / "support/asyncapi-3.0.0.json").read_text("utf-8")
)


class Order(Event):
    """An order as the shop publishes it.

    More about it.
    """

    id: int = path("order.number")
    ts: int = path("created.at")
    amount: Cast[float] = path("total.amount")
    vip: Cast[bool] = path("customer.vip")
    nick: str | None = path("customer.names.nick")
    price: float = path("items[1].price", default=0.0)
    sku: str = path("items[1].sku", default="")
    tax: float | None = path("total.tax", default=None)
    channel: Literal["web", "app"] = "web"


class Row(Event):
    id: int
    amount: Cast[float]
    ts: int = path("$.ts_ms")


class Traced(Event, forbid_unknown_fields=True):
    id: str
    ts: int
    amount: float
    source: str = header("source")


class Verdict(Label):
    id: str
    ts: int
    fraud: bool


def pipeline(event: type[Event] = Order, **changed: Any) -> Pipeline:
    given: dict[str, Any] = {
        "features": [field("amount")],
        "model": linear_model.LogisticRegression(),
        "label": Verdict.target("fraud"),
    }
    return Pipeline(name="shop", event=event, **(given | changed))


def both() -> Pipeline:
    topics = Topics(events="all", labels="all")
    return pipeline(topics=topics, where={"kind": "order"}, label_where={"kind": "outcome"})


PIPELINES = {
    "payments": lambda: load_pipeline("payments"),
    "rollouts": lambda: load_pipeline("anabranch.dataflows.pipelines.payments_canary:pipeline"),
    "ranking": lambda: load_pipeline("clicks"),
    "data set": lambda: load_pipeline("dataset:ImageSegments"),
    "nested": pipeline,
    "Debezium": lambda: pipeline(Row, format=Debezium()),
    "Avro": lambda: pipeline(Traced, format=Avro(registry="http://localhost:1")),
    "pattern": lambda: pipeline(topics=Topics(events=pattern("shop[.].*"))),
    "several topics": lambda: pipeline(topics=Topics(events=["a", "b"])),
    "one topic for both": both,
    "no label": lambda: pipeline(label=None, model=anomaly.HalfSpaceTrees()),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_the_document_is_valid(name: str) -> None:
    declared = PIPELINES[name]()
    document = json.loads(json.dumps(asyncapi(declared)))
    errors = [f"{e.json_path}: {e.message[:200]}" for e in
              Draft7Validator(SPECIFICATION).iter_errors(document)]  # fmt: skip
    assert not errors
    assert not list(dangling(document))
    for schema in document["components"]["schemas"].values():
        Draft7Validator.check_schema(schema)
    addresses = {each["address"] for each in document["channels"].values()}
    topics = declared.topics
    assert addresses >= {topics.predictions, topics.drift, topics.dead_letters}
    for channel in document["channels"]:
        role = channel.partition("-")[0] if channel[-1].isdigit() else channel
        Draft202012Validator.check_schema(topic_schema(declared, role))


def dangling(document: dict[str, Any]) -> list[str]:
    """References that lead nowhere."""
    found = []

    def look(value: Any) -> None:
        if isinstance(value, dict):
            reference = value.get("$ref")
            if isinstance(reference, str):
                at: Any = document
                for step in reference.removeprefix("#/").split("/"):
                    at = at.get(step) if isinstance(at, dict) else None
                if at is None:
                    found.append(reference)
            for each in value.values():
                look(each)
        elif isinstance(value, list):
            for each in value:
                look(each)

    look(document)
    return found


ORDER = {
    "order": {"number": 7},
    "created": {"at": T},
    "total": {"amount": "12.50", "currency": "EUR"},
    "items": [{}, {"price": 2.5, "sku": "a"}],
    "customer": {"vip": 1, "names": {"nick": "x"}},
    "channel": "app",
    "more": True,
}


def changed(**parts: Any) -> dict[str, Any]:
    return ORDER | parts


@pytest.mark.parametrize(
    ("message", "fits"),
    [
        (ORDER, True),
        (changed(created={"at": "2025-01-06T00:00:00Z"}), True),
        (changed(total={"amount": 12}), True),
        (changed(total={"amount": 12, "tax": None}), True),
        (changed(items=[{}]), True),
        (changed(items=None), True),
        (changed(customer={"vip": "yes", "names": None}), True),
        (changed(customer={"vip": False}), True),
        (changed(order={"number": "7"}), False),
        (changed(order={}), False),
        (changed(order=None), False),
        (changed(total={"amount": True}), False),
        (changed(total={"amount": 1, "tax": "a"}), False),
        (changed(items=[{}, {"price": "2.5"}]), False),
        (changed(customer={"names": None}), False),
        (changed(channel="shop"), False),
        ({key: value for key, value in ORDER.items() if key != "created"}, False),
    ],
)
def test_the_schema_of_an_input_takes_what_the_decoder_takes(
    message: dict[str, Any], fits: bool
) -> None:
    declared = pipeline()
    validator = Draft202012Validator(topic_schema(declared, "events"))
    decode = codec_of(declared, declared.topics.events).decoder(timeless())
    try:
        decode(msgspec.json.encode(message))
        decoded = True
    except msgspec.ValidationError:
        decoded = False
    assert (decoded, validator.is_valid(message)) == (fits, fits)


def timeless() -> Any:
    """The order with any time, as the decoder reads it."""
    return msgspec.defstruct(
        "Order", [("ts", int | str, msgspec.field(name="created.at"))], bases=(Order,), kw_only=True
    )


@pytest.mark.parametrize(
    ("format", "message"),
    [
        (Debezium(), {"op": "c", "ts_ms": T, "after": {"id": 1, "amount": "2.5"}}),
        (Connect(), {"ts_ms": T, "payload": {"id": 1, "amount": "2.5"}}),
        (CloudEvents(), {"ts_ms": T, "data": {"id": 1, "amount": "2.5"}}),
    ],
)
def test_fields_are_inside_their_envelope(format: Any, message: dict[str, Any]) -> None:
    validator = Draft202012Validator(topic_schema(pipeline(Row, format=format), "shop.events"))
    assert validator.is_valid(message)
    inner = next(key for key in message if isinstance(message[key], dict))
    assert not validator.is_valid(message | {inner: {"id": "x", "amount": 1}})
    assert not validator.is_valid(message | {inner: None})


def test_the_row_of_a_delete_is_before_it() -> None:
    validator = Draft202012Validator(topic_schema(pipeline(Row, format=Debezium()), "events"))
    row = {"id": 1, "amount": "2.5"}
    assert validator.is_valid({"op": "d", "ts_ms": T, "before": row, "after": None})
    assert not validator.is_valid({"op": "d", "ts_ms": T, "before": None, "after": None})
    created = topic_schema(pipeline(Row, format=Debezium(operations=("c",))), "events")
    assert not Draft202012Validator(created).is_valid({"op": "d", "ts_ms": T, "before": row})


def test_unknown_fields_are_allowed_unless_they_are_forbidden() -> None:
    schema = topic_schema(pipeline(Traced), "events")
    assert schema["additionalProperties"] is False
    assert "source" not in schema["properties"]
    message = asyncapi(pipeline(Traced))["components"]["messages"]["Traced"]
    assert message["headers"]["required"] == ["source"]
    assert "additionalProperties" not in topic_schema(pipeline(), "events")
    assert topic_schema(pipeline(), "events")["description"].startswith("An order as the shop")


def test_outputs_are_described_as_they_are_published() -> None:
    declared = pipeline()
    prediction = Prediction(
        id="7", ts=T, topic="shop.events", partition=0, offset=1, model="m", version=3,
        prediction=True, score=0.5,
    )  # fmt: skip
    letter = DeadLetter(topic="t", partition=0, offset=1, reason="late", detail="-", payload="{}")
    for role, message in (("predictions", prediction), ("dead-letters", letter)):
        validator = Draft202012Validator(topic_schema(declared, role))
        written = json.loads(msgspec.json.encode(message))
        assert validator.is_valid(written)
        assert not validator.is_valid(written | {"offset": "one"})


def test_a_topic_of_both_has_the_schema_of_both() -> None:
    declared = both()
    validator = Draft202012Validator(topic_schema(declared, "all"))
    assert validator.is_valid(ORDER)
    assert validator.is_valid({"id": "a", "ts": T, "fraud": True})
    assert not validator.is_valid({"id": "a", "ts": T})
    with pytest.raises(InputError, match="has no topic 'nothing': it has events"):
        topic_schema(declared, "nothing")


def test_the_command_prints_them(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    call = caller(tmp_path, capfd)
    document = json.loads(call("schema", "payments").out)
    assert document["channels"]["events"]["address"] == "payments.events"
    assert json.loads(call("schema", "payments", "--topic", "labels").out)["type"] == "object"
    told = call("schema", "payments", "--topic", "label")
    assert (told.code, told.out) == (1, "")
