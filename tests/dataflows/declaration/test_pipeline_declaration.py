"""A pipeline's declaration: each mistake is one clear sentence; what a valid one derives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal

import msgspec
import pytest
from river import anomaly, linear_model, naive_bayes, preprocessing, tree

import anabranch
from anabranch import (
    Delayed,
    Event,
    Label,
    Pipeline,
    count_distinct,
    day_of_week,
    decayed,
    field,
    hashed,
    hour_of_day,
    inline,
    monitor,
    one_hot,
    since_last,
    slice_by,
    target,
    window,
)
from anabranch.models.learners.learner import Task
from anabranch.state.errors import DeclarationError


class Payment(Event):
    id: str
    ts: int
    card: str
    merchant: str
    amount: float


class Order(Event):
    """One field of every kind."""

    id: str
    ts: int
    user: str
    shop: str | None
    price: float | None
    items: int
    gift: bool
    channel: Literal["web", "app"]
    weight: Annotated[float, msgspec.Meta(ge=0)]
    tags: list[str]
    paid: bool
    maybe: bool | None = None


class Verdict(Label):
    id: str
    ts: int
    fraud: bool
    loss: float
    kind: str
    note: str | None = None


HAS = "Payment has id, ts, card, merchant, amount"
GIFT = [field("gift")]
BAYES = naive_bayes.GaussianNB()
LINEAR = linear_model.LinearRegression()
TREES = anomaly.HalfSpaceTrees()
LOGISTIC = preprocessing.StandardScaler() | linear_model.LogisticRegression()


def payments(**changes: Any) -> Pipeline:
    declared: dict[str, Any] = {
        "name": "payments",
        "event": Payment,
        "label": Verdict.target("fraud"),
        "features": [field("amount")],
        "model": LOGISTIC,
    }
    return Pipeline(**(declared | changes))


def orders(**changes: Any) -> Pipeline:
    declared: dict[str, Any] = {
        "name": "orders",
        "event": Order,
        "label": inline("paid"),
        "features": [field("items")],
        "model": LOGISTIC,
    }
    return Pipeline(**(declared | changes))


def sentence(declare: Callable[[], Any]) -> str:
    """The error message, checked for its form: one line, nothing of the implementation."""
    with pytest.raises(DeclarationError) as raised:
        declare()
    text = str(raised.value)
    assert text
    assert "\n" not in text
    assert "Traceback" not in text
    assert "object at 0x" not in text
    return text


@pytest.mark.parametrize(
    ("feature", "where"),
    [
        (lambda: window("card", "amuont", over="1h"), "window(card)"),
        (lambda: window("amuont", over="1h"), "window(amuont)"),
        (lambda: field("amuont"), "field('amuont')"),
        (lambda: one_hot("amuont", ("a",)), "one_hot('amuont')"),
        (lambda: hashed("amuont"), "hashed('amuont')"),
        (lambda: count_distinct("card", "amuont", over="1h"), "count_distinct(card)"),
        (lambda: decayed("card", "amuont", half_life="1h"), "decayed(card)"),
        (lambda: since_last("amuont"), "since_last(amuont)"),
        (lambda: hour_of_day("amuont"), "hour_of_day"),
        (lambda: day_of_week("amuont"), "day_of_week"),
    ],
)
def test_an_unknown_field_is_named_with_its_place_and_the_fields_there_are(feature, where):
    message = sentence(lambda: payments(features=[feature()]))
    assert message == f"unknown field 'amuont' in {where}: {HAS}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "key"}, f"unknown field 'key' in pipeline 'payments' (id=): {HAS}"),
        ({"time": "at"}, f"unknown field 'at' in pipeline 'payments' (time=): {HAS}"),
        ({"key": "country"}, f"unknown field 'country' in pipeline 'payments' (key=): {HAS}"),
        ({"label": inline("fraud")}, f"unknown field 'fraud' in inline('fraud'): {HAS}"),
        (
            {"label": Verdict.target("fruad")},
            "unknown field 'fruad' in the label of pipeline 'payments': "
            "Verdict has id, ts, fraud, loss, kind, note",
        ),
        (
            {"label": Verdict.target("fraud", id="payment")},
            "unknown field 'payment' in the label of pipeline 'payments': "
            "Verdict has id, ts, fraud, loss, kind, note",
        ),
        (
            {"label": Verdict.target("fraud", time="at")},
            "unknown field 'at' in the label of pipeline 'payments': "
            "Verdict has id, ts, fraud, loss, kind, note",
        ),
    ],
)
def test_an_unknown_field_outside_the_features(changes, message):
    assert sentence(lambda: payments(**changes)) == message


NO_KEY = "must be a text, an integer, a boolean, a UUID or an enum"


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (
            lambda: field("card"),
            "field 'card' in field('card') must be a number or boolean, but Payment.card is text; "
            "if its text is that of a number, declare it as card: Cast[float]",
        ),
        (
            lambda: window("card", "merchant", over="1h"),
            "field 'merchant' in window(card) must be a number or boolean, "
            "but Payment.merchant is text; if its text is that of a number, declare it as "
            "merchant: Cast[float]",
        ),
        (
            lambda: window("amount", over="1h"),
            f"field 'amount' in window(amount) {NO_KEY}, but Payment.amount is a number",
        ),
        (
            lambda: count_distinct("card", "amount", over="1h"),
            f"field 'amount' in count_distinct(card) {NO_KEY}, but Payment.amount is a number",
        ),
        (
            lambda: hashed("amount"),
            f"field 'amount' in hashed('amount') {NO_KEY}, but Payment.amount is a number",
        ),
        (
            lambda: decayed("card", "merchant", half_life="1h"),
            "field 'merchant' in decayed(card) must be a number or boolean, "
            "but Payment.merchant is text; if its text is that of a number, declare it as "
            "merchant: Cast[float]",
        ),
    ],
)
def test_a_field_of_the_wrong_type(feature, message):
    assert sentence(lambda: payments(features=[feature()])) == message


def test_a_list_can_be_no_feature():
    message = sentence(lambda: orders(features=[field("tags")]))
    assert "Order.tags is neither a number nor text" in message


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"features": [field("price")]}, ("field('price') may be null", "fill_null=0.0")),
        ({"features": [hashed("shop")]}, ("'shop'", "hashed('shop')", "may be null")),
        ({"label": inline("maybe")}, ("'maybe'", "inline('maybe')", "may be null")),
    ],
)
def test_null_where_there_must_be_a_value(changes, parts):
    message = sentence(lambda: orders(**changes))
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("rules", "parts"),
    [
        ({"default": 0}, ("default=0", "'payments'", "fraud is a boolean")),
        ({"default": "no"}, ("default='no'", "fraud is a boolean")),
        ({"default": False, "late": "ignore"}, ("late='ignore'", "'refuse'", "'update'")),
        ({"late": "update"}, ("late='update'", "nothing to update", "default=")),
    ],
)
def test_rules_of_labels_that_make_no_sense(rules, parts):
    message = sentence(lambda: payments(label=Verdict.target("fraud", **rules)))
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("field", "default", "fits"),
    [
        ("kind", "theft", True), ("kind", True, False), ("loss", 0.0, True), ("loss", 0, True),
        ("loss", False, False), ("loss", float("nan"), False), ("loss", 1e308, False),
    ],
)  # fmt: skip
def test_a_default_is_a_valid_label(field, default, fits):
    model = BAYES if field == "kind" else LINEAR
    declare = lambda: payments(label=Verdict.target(field, default=default), model=model)  # noqa: E731
    if fits:
        assert declare().label.default == default
    else:
        assert f"default={default!r}" in sentence(declare)


@pytest.mark.parametrize(
    ("declare", "parts"),
    [
        (
            lambda: payments(features=[window("merchnt", target(), over="1d")]),
            ("'merchnt'", "has id"),
        ),
        (lambda: payments(features=[window("amount", target(), over="1d")]), ("must be a text",)),
        (
            lambda: payments(
                features=[window("card", target(), over="1d")],
                label=Verdict.target("kind"),
                model=BAYES,
            ),
            ("window(card) of target()", "a number or a boolean", "it is text"),
        ),
        (
            lambda: payments(
                features=[window("card", target(), over="1d")], label=None, model=TREES
            ),
            ("window(card) of target()", "no labels", "give label="),
        ),
        (
            lambda: payments(features=[window("card", target(), over="1d")] * 2),
            ("'card_target_1d_count' is declared twice",),
        ),
        (
            lambda: payments(features=[count_distinct("card", target(), over="1d")]),
            ("count_distinct(card) can't use target()",),
        ),
    ],
)
def test_a_window_over_labels_that_there_can_not_be(declare, parts):
    message = sentence(declare)
    for part in parts:
        assert part in message


def test_the_columns_and_needs_of_a_window_over_labels():
    pipeline = payments(
        features=[window("merchant", target(), over=("1d", "7d"), stats=("count", "mean"))]
    )
    assert pipeline.columns == [
        f"merchant_target_{width}_{stat}" for width in ("1d", "7d") for stat in ("count", "mean")
    ]
    assert pipeline.entities == {}
    assert pipeline.used_fields == ["merchant"]
    assert pipeline.partition_field == "merchant"


def test_a_label_that_may_be_null():
    message = sentence(lambda: payments(label=Verdict.target("note")))
    assert "'note' in the label of pipeline 'payments' may be null" in message


@pytest.mark.parametrize(
    "features",
    [
        [field("amount"), field("amount")],
        [one_hot("card", ("a", "b")), one_hot("card", ("b", "c"))],
        [window("card", over="1h"), window("card", over=("1m", "60m"))],
        [since_last("card"), since_last("card")],
        [hour_of_day(), hour_of_day("ts")],
    ],
)
def test_two_features_of_one_name(features):
    message = sentence(lambda: payments(features=features))
    assert "is declared twice in pipeline 'payments'" in message


def test_the_same_width_twice_in_one_window():
    message = sentence(lambda: payments(features=[window("card", over=("1h", "60m"))]))
    assert "twice" in message


@pytest.mark.parametrize(
    "feature",
    [
        lambda: field("paid"),
        lambda: window("user", "paid", over="1h"),
        lambda: decayed("user", "paid", half_life="1h"),
        lambda: one_hot("paid", (True, False)),
    ],
)
def test_the_inline_label_can_be_no_feature(feature):
    message = sentence(lambda: orders(features=[feature()]))
    assert "'paid' is the label of pipeline 'orders'" in message
    assert "reveal the label" in message


@pytest.mark.parametrize("feature", [since_last("channel"), window("channel", over="1h")])
def test_the_inline_label_can_be_no_entity_either(feature):
    """Its windows are kept by it: a count over them reveals the label."""
    message = sentence(
        lambda: orders(label=inline("channel"), features=[feature], model=naive_bayes.GaussianNB())
    )
    assert "'channel' is the label of pipeline 'orders'" in message


@pytest.mark.parametrize(
    ("label", "model", "parts"),
    [
        ("fraud", linear_model.LinearRegression(), ("LinearRegression", "binary", "a classifier")),
        ("kind", linear_model.LogisticRegression(), ("LogisticRegression", "multiclass")),
        ("loss", anomaly.HalfSpaceTrees(), ("HalfSpaceTrees", "regression", "a regressor")),
        ("fraud", linear_model.LogisticRegression, ("LogisticRegression()", "class")),
        ("fraud", None, ("NoneType", "a classifier")),
        ("fraud", "LogisticRegression", ("str", "a classifier")),
    ],
)
def test_a_model_that_does_not_fit_the_label(label, model, parts):
    message = sentence(lambda: payments(label=Verdict.target(label), model=model))
    assert all(part in message for part in parts), message


def test_a_classifier_without_a_label_is_an_error_that_names_the_label():
    message = sentence(lambda: payments(label=None))
    assert "LogisticRegression" in message
    assert "label=" in message


def test_an_unknown_metric_comes_with_close_names():
    message = sentence(lambda: payments(metrics=["Acuracy"]))
    assert message.startswith("no metric 'Acuracy' for a binary task: did you mean Accuracy")


def test_a_metric_of_another_task():
    message = sentence(lambda: payments(metrics=["RMSE"]))
    assert "'RMSE'" in message
    assert "binary" in message


def test_a_monitor_of_something_that_is_not_there():
    message = sentence(lambda: payments(monitors=[monitor("amuont")]))
    assert message == (
        "monitor of 'amuont' in pipeline 'payments': there is no such feature; "
        "monitor one of loss, amount"
    )


def test_a_monitor_of_the_loss_without_a_label():
    message = sentence(
        lambda: payments(label=None, model=anomaly.HalfSpaceTrees(), monitors=[monitor("loss")])
    )
    assert "has no label, so there is no loss to monitor" in message


def test_a_monitor_of_a_loss_that_the_task_has_not():
    message = sentence(lambda: payments(monitors=[monitor("loss", loss="squared")]))
    assert "'squared'" in message
    assert "logloss" in message


@pytest.mark.parametrize(
    ("declare", "parts"),
    [
        (lambda: monitor("loss", "ADWINN"), ("'ADWINN'", "ADWIN, PageHinkley")),
        (lambda: monitor("loss", dleta=1), ("'dleta'", "delta")),
        (lambda: monitor("loss", cooldown="soon"), ("'soon'", "not a duration")),
        (lambda: monitor("amount", loss="error"), ("'error'", "monitor('amount')")),
    ],
)
def test_a_monitor_that_can_not_be_made(declare, parts):
    message = sentence(declare)
    assert all(part in message for part in parts), message


BAD_DURATIONS = ["", "10", "10 minutes", "-5m", "5M", "1h 30m", "m", "1e3s", None, 10]


@pytest.mark.parametrize("text", BAD_DURATIONS)
@pytest.mark.parametrize("where", ["allowed_lateness", "max_clock_skew", "dedup_window"])
def test_a_duration_of_the_pipeline_that_is_none(where, text):
    message = sentence(lambda: payments(**{where: text}))
    assert f"{text!r} is not a duration" in message
    assert "'10m'" in message


@pytest.mark.parametrize(
    "declare",
    [
        lambda: window("card", "amount", over=("1h", "ten")),
        lambda: window("card", "amount", over="ten"),
        lambda: window("card", "amount", over="1h", resolution="ten"),
        lambda: since_last("card", within="ten"),
        lambda: count_distinct("card", "merchant", over="ten"),
        lambda: decayed("card", "amount", half_life="ten"),
        lambda: payments(label=Verdict.target("fraud", timeout="ten")),
        lambda: payments(label=Verdict.target("fraud", early_buffer="ten")),
        lambda: payments(label=Verdict.target("fraud", update_within="ten")),
    ],
)
def test_a_duration_of_a_feature_or_label_that_is_none(declare):
    assert "'ten' is not a duration" in sentence(declare)


@pytest.mark.parametrize(
    ("declare", "parts"),
    [
        (lambda: window("card", "amount", over=()), ("window(card)", "over='10m'")),
        (lambda: window("card", "amount", over="0s"), ("positive",)),
        (lambda: window("card", "amount", over="1h", stats=("avg",)), ("count, sum, mean",)),
        (lambda: window("card", "amount", over="1h", stats=()), ("count, sum, mean",)),
        (lambda: window("card", over="1h", stats="sum"), ("window(card)", "can only count")),
        (lambda: decayed("card", "amount", half_life="1h", stats=("max",)), ("mean, count, sum",)),
        (lambda: payments(features=[one_hot("card", ())]), ("one_hot('card')", "needs values")),
        (lambda: payments(features=[one_hot("card", "aa")]), ("one_hot('card')", "twice")),
        (lambda: payments(features=[hashed("card", buckets=1)]), ("hashed('card')", "2 buckets")),
    ],
)
def test_a_feature_that_can_not_be_made(declare, parts):
    message = sentence(declare)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("name", ["", "pay ments", "1st", ".pay", "pay/ments", "a" * 101, None])
def test_a_name_that_can_not_be_used(name):
    message = sentence(lambda: payments(name=name))
    assert repr(name) in message
    assert "a letter, then letters, digits, dots" in message


def test_more_clock_skew_than_lateness_is_refused():
    message = sentence(lambda: payments(max_clock_skew="11m"))
    assert message == (
        "max_clock_skew='11m' of pipeline 'payments' is more than allowed_lateness='10m': "
        "one event that far ahead would make all others late"
    )
    assert payments(max_clock_skew="10m").max_clock_skew == "10m"


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"features": []}, ("'payments'", "no features")),
        ({"features": ["amount"]}, ("'amount'", "'payments'", "use field")),
        ({"features": [Payment]}, ("Payment", "'payments'", "use field")),
        ({"event": Verdict}, ("'payments'", "subclass of Event")),
        ({"event": dict}, ("'payments'", "subclass of Event")),
        ({"event": "Payment"}, ("'payments'", "subclass of Event")),
        ({"label": Verdict}, ("'payments'", "target(", "inline(")),
        ({"label": "fraud"}, ("'payments'", "target(", "inline(")),
        ({"time_unit": "min"}, ("'min'", "'payments'", "ms, s, us, ns")),
        ({"id": "amount"}, ("'amount'", "(id=)", "text")),
        ({"key": "amount"}, ("'amount'", "(key=)", "text")),
    ],
)
def test_parts_that_are_something_else(changes, parts):
    message = sentence(lambda: payments(**changes))
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("feature", [field("ts"), window("card", "ts", over="1h")])
def test_the_time_field_can_be_no_number_since_it_may_be_text_on_the_wire(feature):
    assert "'ts'" in sentence(lambda: payments(features=[feature]))


@pytest.mark.parametrize("feature", [hour_of_day, day_of_week])
def test_the_hour_of_another_field_than_the_time_is_refused(feature):
    """They are made of the event's time: of another field they would silently be wrong."""
    assert "'items'" in sentence(lambda: orders(features=[feature("items")]))


def test_what_a_declaration_derives():
    pipeline = payments(
        features=[
            field("amount"),
            window("merchant", over="1d"),
            window("card", "amount", over=("1m", "1h30m"), stats=("count", "std")),
            hour_of_day(cyclic=True),
            day_of_week(),
            one_hot("merchant", ("shop", "bar")),
            hashed("card", buckets=2),
            since_last("card", within="2h"),
            count_distinct("card", "merchant", over="1h"),
            decayed("card", "amount", half_life="30m", stats=("mean",)),
        ],
        monitors=[monitor("loss"), monitor("card_amount_1m_std", "PageHinkley")],
    )
    assert pipeline.columns == [
        "amount",
        "merchant_1d_count",
        "card_amount_1m_count",
        "card_amount_1m_std",
        "card_amount_1h30m_count",
        "card_amount_1h30m_std",
        "hour_sin",
        "hour_cos",
        "day_of_week",
        "merchant=shop",
        "merchant=bar",
        "card#0",
        "card#1",
        "card_since_last_2h",
        "card_merchant_1h_distinct",
        "card_amount_decay30m_mean",
    ]
    assert list(pipeline.entities) == ["merchant", "card"]
    assert pipeline.partition_field == "merchant"
    assert payments(features=[since_last("card")], key="merchant").partition_field == "merchant"
    assert payments().partition_field is None
    assert pipeline.model_name == "LogisticRegression"
    assert pipeline.metric_names == ("Accuracy", "LogLoss", "ROCAUC")
    assert pipeline.learner().names == tuple(pipeline.columns)


def test_topics_are_named_after_the_pipeline():
    pipeline = payments(name="pay-2_b")
    assert pipeline.inputs == ("pay-2_b.events", "pay-2_b.labels")
    assert pipeline.topics.outputs == (
        "pay-2_b.predictions",
        "pay-2_b.drift",
        "pay-2_b.dead-letters",
    )
    assert orders().inputs == ("orders.events",)


@pytest.mark.parametrize(
    ("pipeline", "task"),
    [
        (payments(), Task.BINARY),
        (orders(), Task.BINARY),
        (payments(label=Verdict.target("kind"), model=BAYES), Task.MULTICLASS),
        (orders(label=inline("channel"), model=BAYES), Task.MULTICLASS),
        (orders(label=inline("items"), features=GIFT, model=BAYES), Task.MULTICLASS),
        (orders(label=inline("items"), features=GIFT, model=LINEAR), Task.REGRESSION),
        (orders(label=inline("weight"), model=tree.HoeffdingTreeRegressor()), Task.REGRESSION),
        (payments(label=None, model=TREES), Task.ANOMALY),
        (payments(model=TREES), Task.ANOMALY),
        (orders(model=preprocessing.MinMaxScaler() | TREES), Task.ANOMALY),
    ],
)
def test_the_label_and_the_model_determine_the_task(pipeline, task):
    assert pipeline.task is task


def test_null_is_allowed_in_values_of_windows_and_in_fields_with_fill_null():
    pipeline = orders(
        features=[
            field("price", fill_null=-1.0),
            window("user", "price", over="1h"),
            count_distinct("user", "shop", over="1h"),
            decayed("user", "maybe", half_life="1h"),
            one_hot("shop", ("a",)),
            one_hot("channel", ("web", "app")),
        ]
    )
    assert pipeline.task is Task.BINARY


def test_a_declared_model_is_not_trained_by_its_pipelines():
    model = linear_model.LogisticRegression()
    pipeline = payments(model=model)
    first, second = pipeline.learner(), pipeline.learner()
    assert first is not second
    assert not model._weights


@pytest.mark.parametrize(
    ("declare", "expected"),
    [
        (lambda: payments(lateness="1m"), "Pipeline(lateness=) is now called allowed_lateness="),
        (lambda: payments(ahead="1m"), "Pipeline(ahead=) is now called max_clock_skew="),
        (lambda: payments(duplicates="1m"), "Pipeline(duplicates=) is now called dedup_window="),
        (
            lambda: payments(segment_after=2),
            "Pipeline(segment_after=) is now called min_labels_per_segment=",
        ),
        (
            lambda: replace(payments(), lateness="1m"),
            "Pipeline(lateness=) is now called allowed_lateness=",
        ),
        (
            lambda: Verdict.target("fraud", wait="1h"),
            "target(wait=) is now called timeout=",
        ),
        (
            lambda: Verdict.target("fraud", otherwise=False),
            "target(otherwise=) is now called default=",
        ),
        (
            lambda: Delayed(Verdict, "fraud", correct_within="1h"),
            "Delayed(correct_within=) is now called update_within=",
        ),
        (
            lambda: Delayed(Verdict, "fraud", early="1h"),
            "Delayed(early=) is now called early_buffer=",
        ),
        (
            lambda: payments(label=Verdict.target("fraud", default=False, late="correct")),
            "late='correct' is now called late='update'",
        ),
        (lambda: field("price", missing=0.0), "field(missing=) is now called fill_null="),
        (lambda: slice_by("card", most=9), "slice_by(most=) is now called max_values="),
        (lambda: slice_by("card", called="x"), "slice_by(called=) is now called name="),
        (lambda: slice_by("amount", edges=(1,)), "slice_by(edges=) is now called bins="),
        (
            lambda: slice_by("amount", bins=(1,), names=("a", "b")),
            "slice_by(names=) is now called bin_names=",
        ),
        (lambda: anabranch.distinct, "distinct(…) is now called count_distinct(…)"),
    ],
)
def test_a_renamed_parameter_is_refused_with_its_new_name(declare, expected):
    assert sentence(declare) == expected
