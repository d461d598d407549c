"""What leaves on the output topics can be read with the types that are offered for it."""

from __future__ import annotations

import msgspec
import pytest
from river import linear_model, naive_bayes, preprocessing

from dataflows import Event, Pipeline, Prediction, field, inline, monitor
from dataflows.bus.memory import MemoryBus
from dataflows.intake import IntakeOptions
from dataflows.messages import DeadLetter, DriftSignal
from dataflows.worker import run_worker


class Reading(Event):
    id: str
    ts: int
    size: float
    hot: bool
    kind: str
    heat: float


MODELS = {
    "hot": preprocessing.StandardScaler() | linear_model.LogisticRegression(),
    "kind": naive_bayes.GaussianNB(),
    "heat": preprocessing.StandardScaler() | linear_model.LinearRegression(),
}


@pytest.mark.parametrize("target", MODELS)
def test_every_output_decodes_as_its_type_with_nothing_left_over(target):
    pipeline = Pipeline(
        name="readings",
        event=Reading,
        label=inline(target),
        features=[field("size")],
        model=MODELS[target],
        monitors=[monitor("size", cooldown="0s")],
        with_features=True,
    )
    bus = MemoryBus()
    bus.create_topics({"readings.events": 1})
    events = [
        Reading(
            id=str(i),
            ts=1_700_000_000_000 + i * 1000,
            size=float(i % 5 + (50 if i > 500 else 0)),
            hot=i % 2 == 0,
            kind="abc"[i % 3],
            heat=i / 7,
        )
        for i in range(1000)
    ]
    messages = [msgspec.json.encode(event) for event in events] + [b"oops"]
    bus.publisher().append("readings.events", messages)
    run_worker(pipeline, bus, IntakeOptions(until_end=True))
    for topic, kind, least in (
        ("readings.predictions", Prediction, 1000),
        ("readings.drift", DriftSignal, 1),
        ("readings.dead-letters", DeadLetter, 1),
    ):
        values = bus.values(topic)
        assert len(values) >= least
        for value in values:
            raw, typed = msgspec.json.decode(value), msgspec.json.decode(value, type=kind)
            assert set(raw) <= set(kind.__struct_fields__)
            assert all(getattr(typed, name) == raw[name] for name in raw)
