"""The shipped clicks pipeline, with rankers of known quality on simulated pages."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest
from river import base, compose, linear_model, optim, preprocessing

from anabranch import Interleave, Pipeline
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.pipelines.clicks import pipeline as shipped
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.producers.publish import publish
from anabranch.producers.simulators.clicks import SHOWN, simulate_clicks


def informed() -> base.Classifier:
    """The shipped ranker, with relevance, price and click rate of an item."""
    model: base.Classifier = preprocessing.StandardScaler() | linear_model.LogisticRegression(
        optimizer=optim.SGD(0.005)
    )
    return model


def by_price() -> base.Classifier:
    """A worse ranker, with prices only."""
    model: base.Classifier = compose.Select("prices") | informed()
    return model


def rollout_of(champion: base.Classifier, challenger: base.Classifier, seed: int) -> Any:
    """The decisions and the rankings for some simulated pages."""
    declared = {each.name: getattr(shipped, each.name) for each in fields(Pipeline) if each.init}
    pipeline = Pipeline(
        **declared
        | {
            "model": champion,
            "challengers": {"new": challenger},
            "rollout": Interleave(min_effect=0.0, report_every=100),
        }
    )
    bus = MemoryBus()
    bus.create_topics(dict.fromkeys(pipeline.inputs, 1))
    topics = pipeline.topics
    assert topics.labels is not None
    publish(
        bus,
        simulate_clicks(seed=seed, events=4000),
        topics={"events": topics.events, "labels": topics.labels},
    )
    run_worker(pipeline, bus, SourceOptions(until_end=True))
    told, lists = (
        [json.loads(value) for log in bus.logs(topic) for value in log.values]
        for topic in (topics.rollouts, topics.predictions)
    )
    return told, lists


def ends(told: list[dict[str, Any]]) -> list[str]:
    return [each["action"] for each in told if each["action"] not in ("started", "progress")]


@pytest.mark.parametrize("seed", [1, 2])
def test_the_better_ranker_is_promoted(seed):
    told, lists = rollout_of(by_price(), informed(), seed)
    assert ends(told) == ["promoted"]
    decision = next(each for each in told if each["action"] == "promoted")
    assert decision["evidence"]["labels"] < 300
    assert len(lists) == 4000
    assert all(len(each["ranking"]) == SHOWN for each in lists)
    for each in lists:
        rankers = [entry["ranker"] for entry in each["ranking"]]
        drafted = each["ts"] < decision["ts"]  # a page of eight is four turns of one each
        assert rankers.count("new") == (SHOWN // 2 if drafted else SHOWN), each["id"]


def test_the_worse_ranker_is_rolled_back():
    told, lists = rollout_of(informed(), by_price(), 3)
    assert ends(told) == ["rolled_back"]
    assert {entry["ranker"] for entry in lists[-1]["ranking"]} == {"LogisticRegression"}


@pytest.mark.parametrize("seed", range(4, 8))
def test_an_equal_ranker_is_neither_promoted_nor_rolled_back(seed):
    told, _ = rollout_of(informed(), informed(), seed)
    assert ends(told) == []
    assert told[-1]["evidence"]["labels"] >= 800
