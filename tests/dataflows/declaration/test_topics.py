"""Topics by names of their own: what follows from the pipeline's name, and what can't be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from river import linear_model

from anabranch import DeclarationError, Event, Label, Pipeline, Shadow, Topics, field, inline


class Order(Event):
    id: str
    ts: int
    amount: float
    paid: bool


class Dispute(Label):
    id: str
    ts: int
    disputed: bool


def orders(**changes: Any) -> Pipeline:
    declared: dict[str, Any] = {
        "name": "risk",
        "event": Order,
        "label": Dispute.target("disputed", timeout="7d"),
        "features": [field("amount")],
        "model": linear_model.LogisticRegression(),
    }
    return Pipeline(**{**declared, **changes})


def test_what_is_left_out_follows_from_the_name_of_the_pipeline() -> None:
    pipeline = orders(topics=Topics(events="prod.orders.v2", labels="Disputes"))
    assert pipeline.inputs == ("prod.orders.v2", "Disputes")
    assert pipeline.topics.outputs == ("risk.predictions", "risk.drift", "risk.dead-letters")
    assert replace(pipeline, name="fraud").inputs == ("prod.orders.v2", "Disputes")
    assert replace(pipeline, name="fraud").topics.predictions == "fraud.predictions"


def test_all_by_their_own_names() -> None:
    pipeline = orders(
        rollout=Shadow(),
        topics=Topics(
            events="e", labels="l", predictions="p", drift="d", dead_letters="x", control="c",
            rollouts="r",
        ),
    )  # fmt: skip
    assert pipeline.inputs == ("e", "l", "c")
    assert pipeline.topics.outputs == ("p", "d", "x", "r")


@pytest.mark.parametrize("name", ["Orders", "prod.orders.v2", "team-a.Risk_1"])
def test_a_name_may_have_dots_and_capitals(name: str) -> None:
    assert orders(name=name).topics.events == f"{name}.events"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"topics": Topics(events="all orders")}, "events= in topics= of pipeline 'risk': 'all or"),
        ({"topics": Topics(drift="")}, "drift= in topics= of pipeline 'risk': '' is not a topic"),
        ({"topics": Topics(drift=3)}, "drift=3 in topics= of pipeline 'risk' must be the name"),  # type: ignore[arg-type]
        ({"topics": {"events": "orders"}}, 'give Topics(events="…", …)'),
        ({"topics": "orders"}, 'give Topics(events="…", …)'),
        (
            {"topics": Topics(events="orders", predictions="orders")},
            "pipeline 'risk' would read what it writes: topic 'orders' is its events= and its "
            "predictions=; give predictions= another name in topics=",
        ),
        ({"topics": Topics(events="risk.drift")}, "topic 'risk.drift' is its events= and its drif"),
        (
            {"topics": Topics(predictions="out", dead_letters="out")},
            "topic 'out' is both predictions= and dead_letters= of pipeline 'risk'",
        ),
        (
            {"topics": Topics(labels="l"), "label": inline("paid")},
            "none of this pipeline arrive on a topic of their own: leave out labels=",
        ),
        ({"topics": Topics(control="c")}, "names control='c', and the pipeline has no rollouts"),
    ],
)
def test_a_mistake_is_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DeclarationError) as raised:
        orders(**changes)
    assert sentence in str(raised.value)
