"""What a message type's own `__post_init__` raises makes a dead letter, with the user's line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from river import linear_model

from anabranch import Event, Label, Pipeline, field
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions

T0 = 1_700_000_000_000
NAMES = {1: "one", 2: "two"}


class Reading(Event):
    id: str
    ts: int
    code: int
    value: float = 1.0

    def __post_init__(self) -> None:
        NAMES[self.code]
        if self.value < 0:
            raise ValueError("below zero")
        self.value /= self.code - 2 or 1 / self.value


class Truth(Label):
    id: str
    ts: int
    y: float

    def __post_init__(self) -> None:
        assert self.y < 100, "too much"


FIRST_LINE = Reading.__post_init__.__code__.co_firstlineno


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_what_a_type_raises_is_a_dead_letter(limit: int) -> None:
    pipeline = Pipeline(
        name="readings", event=Reading, label=Truth.target("y"), features=[field("value")],
        model=linear_model.LinearRegression(), with_features=True,
    )  # fmt: skip
    bus = MemoryBus()
    bus.create_topics(dict.fromkeys(pipeline.inputs, 1))
    publisher = bus.publisher()
    events: list[dict[str, Any]] = [
        {"code": 1}, {"code": 7}, {"code": 1, "value": -1}, {"code": 2, "value": 0.0},
        {"code": 2, "value": 4.0}, {"code": "x"},
    ]  # fmt: skip
    for i, each in enumerate(events):
        value = json.dumps({"id": f"r{i}", "ts": T0 + i} | each).encode()
        publisher.append("readings.events", [value], times=[T0 + i])
    for i, y in enumerate((1.0, 1000.0)):
        value = json.dumps({"id": f"r{4 * i}", "ts": T0 + 50 + i, "y": y}).encode()
        publisher.append("readings.labels", [value], times=[T0 + 50 + i])
    run_worker(pipeline, bus, SourceOptions(limit=limit, until_end=True))
    found = [json.loads(each) for each in bus.values(pipeline.topics.predictions)]
    assert [each["id"] for each in found] == ["r0", "r4"]
    letters = [json.loads(each) for each in bus.values(pipeline.topics.dead_letters)]
    assert {each["reason"] for each in letters} == {"does not fit the type"}
    where = [(each["topic"], each["offset"], each["detail"]) for each in letters]
    here = __file__
    assert where[:3] == [
        ("readings.events", 1, f"KeyError: 7 ({here}, line {FIRST_LINE + 1}, in __post_init__)"),
        (
            "readings.events", 2,
            f"ValueError: below zero ({here}, line {FIRST_LINE + 3}, in __post_init__)",
        ),
        (
            "readings.events", 3,
            f"ZeroDivisionError: float division by zero ({here}, line {FIRST_LINE + 4}, "
            "in __post_init__)",
        ),
    ]  # fmt: skip
    assert where[3][:2] == ("readings.events", 5)
    assert where[3][2].startswith("Expected `int`, got `str`")
    topic, offset, detail = where[4]
    assert (topic, offset) == ("readings.labels", 1)
    assert detail.startswith("AssertionError: too much")
