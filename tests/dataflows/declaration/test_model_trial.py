"""A model that can't take its features is refused when it is declared, in one sentence."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from river import (
    anomaly,
    base,
    compose,
    feature_extraction,
    linear_model,
    naive_bayes,
    neighbors,
    preprocessing,
    stats,
)

from anabranch import Event, Pipeline, Shadow, field, inline, one_hot
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.state.errors import DeclarationError


class Visit(Event):
    id: str
    ts: int
    amount: float
    page: str = "home"
    code: int = 0
    odd: bool = False


def visits(**changes: Any) -> Pipeline:
    declared: dict[str, Any] = {
        "name": "visits",
        "event": Visit,
        "label": inline("odd"),
        "features": [field("amount"), one_hot("page", ("home", "about"))],
        "model": naive_bayes.GaussianNB(),
    }
    return Pipeline(**(declared | changes))


def log_amount(x: dict[str, float]) -> dict[str, float]:
    return {"log": math.log(x["amount"])}


def other_field(x: dict[str, float]) -> dict[str, float]:
    return {"other": x["other"]}


class NeverLearns(base.Classifier):
    def predict_proba_one(self, x: dict[str, float]) -> dict[bool, float]:
        return {True: 0.5, False: 0.5}

    def learn_one(self, x: dict[str, float], y: bool) -> None:
        raise NotImplementedError


REFUSED = {
    "BagOfWords in the model of pipeline 'visits' needs text": feature_extraction.BagOfWords()
    | naive_bayes.MultinomialNB(),
    "TFIDF in the model of pipeline 'visits' needs text": feature_extraction.TFIDF()
    | linear_model.LogisticRegression(),
    "KeyError: 'page'": feature_extraction.TargetAgg(by="page", how=stats.Mean())
    | linear_model.LogisticRegression(),
    "KeyError: 'other'": compose.FuncTransformer(other_field) | linear_model.LogisticRegression(),
    "failed while learning: NotImplementedError": NeverLearns(),
}


@pytest.mark.parametrize("words", REFUSED)
def test_a_model_that_can_not_take_its_features_is_refused(words: str) -> None:
    for changes in (
        {"model": REFUSED[words]},
        {"challengers": {"other": REFUSED[words]}, "rollout": Shadow()},
    ):
        with pytest.raises(DeclarationError) as raised:
            visits(**changes)
        expected = words
        if "challengers" in changes:
            expected = words.replace("the model of", "challenger 'other' of")
        assert expected in str(raised.value)
        assert "\n" not in str(raised.value)


def test_the_refusal_names_the_columns_and_the_line() -> None:
    with pytest.raises(DeclarationError) as raised:
        visits(model=compose.FuncTransformer(other_field) | naive_bayes.GaussianNB())
    line = other_field.__code__.co_firstlineno + 1
    assert str(raised.value) == (
        "the model of pipeline 'visits' can't take the features (amount, page=home, page=about): "
        "GaussianNB failed while predicting: KeyError: 'other' "
        f"({__file__}, line {line}, in other_field)"
    )


def test_a_function_that_raises_for_some_numbers_only_is_accepted() -> None:
    model = compose.FuncTransformer(log_amount) | linear_model.LogisticRegression()
    assert visits(model=model).model is model


def test_the_declared_model_is_left_untouched() -> None:
    model = preprocessing.MinMaxScaler() | neighbors.KNNClassifier()
    visits(model=model)
    assert model["KNNClassifier"].classes == set()


@pytest.mark.parametrize("filtered", [anomaly.QuantileFilter, anomaly.ThresholdFilter])
def test_a_filter_works_behind_a_scaler(filtered: Any) -> None:
    detector = anomaly.HalfSpaceTrees(seed=42, window_size=5)
    settings: dict[str, Any] = {"q": 0.95} if filtered is anomaly.QuantileFilter else {}
    if not settings:
        settings = {"threshold": 0.95}
    model = preprocessing.MinMaxScaler() | filtered(detector, **settings)
    pipeline = visits(label=None, model=model, features=[field("amount")])
    bus = MemoryBus()
    bus.create_topics(dict.fromkeys(pipeline.inputs, 1))
    publisher = bus.publisher()
    expected = []
    for i in range(60):
        x = {"amount": 0.5 + (i * 7 % 11) / 20 + 90 * (i == 50)}
        event = {"id": f"v{i}", "ts": 1_700_000_000_000 + i} | x
        publisher.append("visits.events", [json.dumps(event).encode()], times=[event["ts"]])
        verdict = model._last_step.classify(model.score_one(x))
        model.learn_one(x)
        expected.append(float(verdict))
    run_worker(pipeline, bus, SourceOptions(until_end=True))
    found = [json.loads(each) for each in bus.values(pipeline.topics.predictions)]
    assert [each["score"] for each in found] == expected
    assert bus.values(pipeline.topics.dead_letters) == []
    assert 0.0 in expected


WRONG_VALUES = {
    "'1' in one_hot('code') is never a value of Visit.code, which is number": ("code", ("1", "2")),
    "1 in one_hot('page') is never a value of Visit.page, which is text": ("page", (1, "2")),
    "True in one_hot('code') is never a value of Visit.code": ("code", (True, 2)),
    "1 in one_hot('odd') is never a value of Visit.odd, which is boolean": ("odd", (0, 1)),
}


@pytest.mark.parametrize("words", WRONG_VALUES)
def test_values_that_a_field_never_has_are_refused(words: str) -> None:
    name, values = WRONG_VALUES[words]
    with pytest.raises(DeclarationError) as raised:
        visits(label=inline("amount"), model=linear_model.LinearRegression(),
               features=[one_hot(name, values)])  # fmt: skip
    if name != "odd":
        assert words in str(raised.value)
    assert "is never a value of" in str(raised.value)


def test_values_of_the_field_are_accepted() -> None:
    features = [one_hot("code", (1, 2.0)), one_hot("page", ("a",))]
    assert len(visits(features=features).columns) == 3
