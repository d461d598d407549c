"""The columns of outputs, of every task and format."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from anabranch import Event, Label, Pipeline, field, inline, window
from anabranch.dataflows.bus import Slice
from anabranch.dataflows.codec import codec_of
from anabranch.dataflows.declaration.formats import Avro, JsonSchema
from anabranch.dataflows.export import output_tables
from anabranch.dataflows.export.output_tables import OutputTable
from anabranch.dataflows.messages.outputs import (
    DeadLetter,
    DriftSignal,
    Prediction,
    Ranked,
    Ranking,
    RolloutMessage,
)
from tests.support.exports import prediction
from tests.support.schema_registry import RegistryServer


class Payment(Event):
    id: str
    ts: int
    amount: float
    fraud: bool
    kind: str
    cost: float


class Page(Event):
    id: str
    ts: int
    visitor: str
    items: list[str]


def declared(**changes: Any) -> Pipeline:
    from river import linear_model

    given: dict[str, Any] = {
        "name": "fraud", "event": Payment, "label": inline("fraud"), "features": [field("amount")],
        "model": linear_model.LogisticRegression(), "with_features": True, **changes,
    }  # fmt: skip
    return Pipeline(**given)


def rows(pipeline: Pipeline, *messages: Any) -> dict[str, list[Any]]:
    """The columns of messages on the topic of predictions."""
    table = OutputTable(pipeline, "predictions")
    codec = codec_of(pipeline, table.topic)
    count = len(messages)
    piece = Slice(
        table.topic, 0, np.arange(count), np.full(count, 1000),
        [codec.encode(each) for each in messages], [None] * count,
    )  # fmt: skip
    rejected: list[Any] = []
    found = table.rows([piece], "", rejected.append)
    assert not rejected
    assert {name: column.kind for name, column in found.columns.items()}.items() >= (
        table.columns.items()
    )
    return {name: column.values for name, column in found.columns.items()}


@pytest.mark.parametrize("format", [Avro, JsonSchema])
def test_outputs_in_other_formats(format: Any) -> None:
    with RegistryServer() as registry:
        pipeline = declared(output_format=format(registry=registry.url))
        made = prediction(3, features={"amount": 1.5})
        columns = rows(pipeline, made, prediction(4, score=None, prediction=None, features=None))
    assert columns["id"] == ["p3", "p4"]
    assert columns["prediction"] == [False, None]
    assert columns["score"] == [made.score, None]
    assert columns["feature_amount"] == [1.5, None]


def test_a_number_as_prediction() -> None:
    from river import linear_model

    pipeline = declared(label=inline("cost"), model=linear_model.LinearRegression())
    columns = rows(pipeline, prediction(1, prediction=3), prediction(2, prediction=None))
    assert columns["prediction"] == [3.0, None]


def test_classes_are_texts() -> None:
    from river import naive_bayes

    pipeline = declared(label=inline("kind"), model=naive_bayes.GaussianNB())
    shares = {"a": 0.25, "b": 0.75}
    columns = rows(pipeline, *(prediction(n, prediction=c, probabilities=shares) for n, c in
                               enumerate(("b", 7, True, None))))  # fmt: skip
    assert columns["prediction"] == ["b", "7", "true", None]
    assert columns["probabilities"][0] == '{"a":0.25,"b":0.75}'


def test_rankings() -> None:
    from river import linear_model

    class Click(Label):
        id: str
        ts: int
        item: str

    pipeline = Pipeline(
        name="shop", event=Page, candidates="items", label=Click.target("item", timeout="10m"),
        features=[window("visitor", over="30m")],
        model=linear_model.LogisticRegression(),
    )  # fmt: skip
    made = Ranking("r", 5, "shop.events", 0, 7, "m", 1, [Ranked("x", 0.5, "m", {"f": 1.0})])
    columns = rows(pipeline, made)
    assert columns["ranking"] == ['[{"item":"x","score":0.5,"ranker":"m","features":{"f":1.0}}]']
    assert "prediction" not in columns


def test_a_time_beyond_all_years_is_null() -> None:
    assert rows(declared(), prediction(1, ts=2**60))["event_time"] == [None]


def test_a_feature_without_a_value_is_null() -> None:
    made: Prediction = prediction(1, features={"amount": None})
    assert rows(declared(), made)["feature_amount"] == [None]


@pytest.mark.parametrize("message", [Prediction, Ranking, DriftSignal, DeadLetter, RolloutMessage])
def test_every_field_of_an_output_is_exported(message: Any) -> None:
    """A field that is added to the messages needs a column, too."""
    of_all = {"id", "ts", "topic", "partition", "offset", "features"}
    fields = {each.name for each in msgspec.structs.fields(message)}
    assert fields - of_all == set(output_tables._FIELDS[message])
