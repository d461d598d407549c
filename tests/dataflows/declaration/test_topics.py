"""Topics by names of their own: what follows from the pipeline's name, and what can't be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from river import linear_model

from anabranch import (
    BusError,
    DeclarationError,
    Event,
    Label,
    Pipeline,
    Shadow,
    Topics,
    field,
    inline,
    pattern,
)


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


def test_an_input_may_be_several_topics_or_all_that_match() -> None:
    several = orders(topics=Topics(events=("orders.eu", "orders.us"), labels=["disputes"]))
    assert several.inputs == ("orders.eu", "orders.us", "disputes")
    matching = orders(topics=Topics(events=pattern(r"prod\.orders\..*")))
    existing = {"prod.orders.us": 1, "prod.orders.eu": 1, "prod.orders": 1, "risk.labels": 1}
    assert matching.topics.resolved(existing).all_events == ("prod.orders.eu", "prod.orders.us")
    with pytest.raises(BusError, match=r"no topic matches events=pattern\('prod.*'\) of pipe"):
        matching.topics.resolved({"prod": 1})


def test_what_a_pipeline_writes_is_never_read_by_its_pattern() -> None:
    pipeline = orders(name="prod.orders.risk", topics=Topics(events=pattern("prod.*")))
    existing = ["prod.orders.eu", *pipeline.topics.outputs]
    assert pipeline.topics.resolved(existing).all_events == ("prod.orders.eu",)


@pytest.mark.parametrize(
    ("topics", "sentence"),
    [
        (lambda: Topics(events=()), r"events=\(\) in topics= .* several names, or a pattern"),
        (lambda: Topics(events=("a", "a")), "names a topic twice"),
        (lambda: Topics(events=("a", "b c")), "events= in topics= of pipeline 'risk': 'b c'"),
        (lambda: Topics(events=("a", "b"), labels="b"), "topic 'b' is both events= and labels="),
        (lambda: Topics(events=("a", "b"), drift="b"), "would read what it writes: topic 'b'"),
        (lambda: Topics(events=pattern("a.*"), drift="ab"), "drift='ab' matches events=pattern"),
        (lambda: Topics(predictions=("a", "b")), r"predictions=\('a', 'b'\) .* must be the name"),
        (lambda: Topics(events=pattern("a(")), r"pattern\('a\('\) is no regular expression"),
    ],
)
def test_a_mistake_in_several_topics_is_one_sentence(topics: Any, sentence: str) -> None:
    with pytest.raises(DeclarationError, match=sentence):
        orders(topics=topics())
