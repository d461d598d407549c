"""Messages as other programs write them: what each becomes, in the strict and in the lenient type.

A row, or a dead letter that says why. The general path and the compiled one agree.
"""

from __future__ import annotations

import decimal
import enum
import gzip
import json
import logging
from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any

import msgspec
import numpy as np
import pytest
from river import linear_model

from anabranch import (
    Cast,
    Event,
    Label,
    Pipeline,
    count_distinct,
    field,
    hashed,
    inline,
    one_hot,
    path,
    window,
)
from anabranch.dataflows.batch.batch import Batch, RawBatch, RawRows
from anabranch.dataflows.source.decoder import BatchDecoder

NOW = 1_700_000_000_000
DAY_MS = 86_400_000


class Strict(Event):
    id: str
    ts: int
    card: str
    amount: float
    fraud: bool


class Lenient(Event):
    id: Cast[str]
    ts: int
    card: Cast[str]
    amount: Cast[float]
    fraud: Cast[bool]


def raw(values: list[bytes], labels: list[bytes] | None = None) -> RawBatch:
    def rows(topic: str, values: list[bytes]) -> RawRows:
        at = np.arange(len(values))
        return RawRows(topic, values, at * 0, at, np.full(len(values), NOW))

    labels = labels or []
    order = np.arange(len(values) + len(labels))
    return RawBatch("0", 1, rows("x.events", values), rows("x.labels", labels), order, NOW / 1000)


def pipeline(event: type[Event], **parts: Any) -> Pipeline:
    return Pipeline(
        **{
            "name": "x",
            "event": event,
            "label": inline("fraud"),
            "features": [field("amount"), window("card", "amount", over="1h")],
            "model": linear_model.LogisticRegression(),
        }
        | parts
    )


@cache
def decoder(event: type[Event]) -> BatchDecoder:
    return BatchDecoder(pipeline(event), now=lambda: NOW / 1000)


def decoded(event: type[Event], value: bytes) -> tuple[Any, ...] | str:
    """Id, time, card, amount and label of the row; or what the dead letter says."""
    both = []
    for values in ([value], [value, b'{"id":"\\n","ts":1,"card":"c","amount":1,"fraud":false}']):
        batch = decoder(event).decode(raw(values))
        if batch.dead_letters:
            both.append(f"{batch.dead_letters[0].reason}: {batch.dead_letters[0].detail}")
        else:
            columns = batch.columns
            assert batch.targets is not None
            row = batch.ids[0], int(batch.times[0]), columns["card"][0], columns["amount"][0]
            both.append((*row, batch.targets[0]))
    assert both[0] == both[1]
    return both[0]


def m(**changes: Any) -> dict[str, Any]:
    return {"id": "x", "ts": NOW, "card": "c", "amount": 1.5, "fraud": False} | changes


def js(**changes: Any) -> bytes:
    return json.dumps(m(**changes)).encode()


VALID = ("x", NOW, "c", 1.5, False)
MONDAY = 1_699_999_200_000  # 2023-11-14T22:00:00Z

BOTH: dict[str, tuple[bytes, Any]] = {
    "plain": (js(), VALID),
    "trailing newline": (js() + b"\n", VALID),
    "pretty": (json.dumps(m(), indent=2).encode(), VALID),
    "added field": (js(channel="web"), VALID),
    "added object": (js(more={"a": [1, None]}), VALID),
    "duplicate keys": (js().replace(b'{"id"', b'{"id": "w", "id"'), VALID),
    "empty card": (js(card=""), ("x", NOW, "", 1.5, False)),
    "long card": (js(card="x" * 100_000), ("x", NOW, "x" * 100_000, 1.5, False)),
    "zero byte in the id": (js(id="x\0"), ("x\0", NOW, "c", 1.5, False)),
    "text of epoch ms": (js(ts=str(NOW)), VALID),
    "fraction of a ms": (js(ts=NOW + 0.4), VALID),
    "ISO Z": (js(ts="2023-11-14T22:00:00Z"), ("x", MONDAY, "c", 1.5, False)),
    "ISO ns": (js(ts="2023-11-14T22:00:00.123456789Z"), ("x", MONDAY + 123, "c", 1.5, False)),
    "ISO offset": (js(ts="2023-11-14T23:00:00+01:00"), ("x", MONDAY, "c", 1.5, False)),
    "space UTC": (js(ts="2023-11-14 22:00:00 UTC"), ("x", MONDAY, "c", 1.5, False)),
    "seconds": (js(ts=NOW // 1000), ("x", NOW // 1000, "c", 1.5, False)),  # told of once
    "tombstone": (b"", "not JSON"),
    "null literal": (b"null", "Expected `object`, got `null`"),
    "byte order mark": (b"\xef\xbb\xbf" + js(), "not JSON"),
    "registry's prefix": (b"\x00\x00\x00\x00\x07" + js(), "not JSON"),
    "gzip": (gzip.compress(js(), mtime=0), "not JSON"),
    "NaN": (js(amount=float("nan")), "not JSON"),
    "Infinity": (js(amount=float("inf")), "not JSON"),
    "1e400": (js().replace(b"1.5", b"1e400"), "out of range"),
    "microseconds": (js(ts=NOW * 1000), "it would be a time of today in us"),
    "time as a list": (js(ts=[2026, 11, 30]), "`$.ts`"),
    "time as an object": (js(ts={"$date": "2026-11-30T21:00:00Z"}), "`$.ts`"),
    "time of a mail": (js(ts="Mon, 30 Nov 2026 21:00:00 +0000"), "not a time"),
    "time of Java": (js(ts="2026-11-30T22:00:00+01:00[Europe/Berlin]"), "not a time"),
    "two documents": (js() + b"\n" + js(), "not JSON"),
    "array": (b"[" + js() + b"]", "Expected `object`, got `array`"),
    "latin1": (js(card="Z\u00fc").replace(b"\\u00fc", b"\xfc"), "not JSON"),
    "utf16": (json.dumps(m()).encode("utf-16"), "not JSON"),
    "comma at the end": (js()[:-1] + b",}", "not JSON"),
    "single quotes": (str(m()).encode(), "not JSON"),
    "deep": (b"[" * 100_000, ": "),
    "deep unknown": (js()[:-1] + b',"z":' + b"[" * 100_000 + b"}", "not JSON"),
    "envelope": (json.dumps({"before": None, "after": m(), "op": "c"}).encode(), "missing"),
}


@pytest.mark.parametrize("event", [Strict, Lenient])
@pytest.mark.parametrize("name", BOTH)
def test_what_a_message_becomes(event: type[Event], name: str) -> None:
    value, expected = BOTH[name]
    result = decoded(event, value)
    if isinstance(expected, str):
        assert isinstance(result, str)
        assert expected in result
    else:
        assert result == expected


CASTS: dict[str, tuple[dict[str, Any], str, Any]] = {
    "id number": (
        {"id": 10},
        "Expected `str`, got `int` - at `$.id`",
        ("10", NOW, "c", 1.5, False),
    ),
    "id 1.0": ({"id": 1.0}, "at `$.id`", ("1", NOW, "c", 1.5, False)),
    "card number": ({"card": 4929}, "at `$.card`", ("x", NOW, "4929", 1.5, False)),
    "amount text": ({"amount": "12.50"}, "at `$.amount`", ("x", NOW, "c", 12.5, False)),
    "fraud 0": ({"fraud": 0}, "at `$.fraud`", VALID),
    "fraud 1": ({"fraud": 1}, "at `$.fraud`", ("x", NOW, "c", 1.5, True)),
    "fraud text": ({"fraud": "true"}, "at `$.fraud`", ("x", NOW, "c", 1.5, True)),
    "fraud 2": ({"fraud": 2}, "at `$.fraud`", "2 is neither true nor false - at `$.fraud`"),
    "null amount": ({"amount": None}, "at `$.amount`", "null is not a number - at `$.amount`"),
    "amount word": ({"amount": "x"}, "at `$.amount`", "'x' is not a number - at `$.amount`"),
    "card list": ({"card": [1]}, "at `$.card`", "[1] has no text - at `$.card`"),
}


@pytest.mark.parametrize("name", CASTS)
def test_types_are_strict_unless_a_cast_is_declared(name: str) -> None:
    changes, strict, lenient = CASTS[name]
    result = decoded(Strict, js(**changes))
    assert isinstance(result, str)
    assert strict in result
    result = decoded(Lenient, js(**changes))
    assert lenient in result if isinstance(lenient, str) else result == lenient


def test_a_number_that_no_int64_holds_is_a_float_or_an_id() -> None:
    big = 12345678901234567890123
    for event in (Strict, Lenient):
        assert decoded(event, js(amount=big)) == ("x", NOW, "c", float(big), False)
    assert decoded(Lenient, js(id=big)) == (str(big), NOW, "c", 1.5, False)


class Customer(enum.StrEnum):
    NEW = "new"
    OLD = "old"


class Debezium(Event):
    """A row of a database as Debezium tells of it, with a decimal as text and 0 or 1 as truth."""

    id: int = path("payload.after.id")
    ts: int = path("payload.ts_ms")
    card: int | None = path("payload.after.card.number")
    amount: Cast[float] = path("payload.after.amount")
    fraud: Cast[bool] = path("payload.after.fraud")
    kind: Customer = path("payload.after.kind", default=Customer.OLD)
    last: float = path("payload.after.lines[0].price", default=-1.0)
    source: str | None = path("payload.source", default=None)


def debezium(**after: Any) -> bytes:
    row = {"id": 7, "amount": "12.50", "fraud": 1, "card": {"number": 4929}, "kind": "new"} | after
    row = {name: value for name, value in row.items() if value is not ...}
    return json.dumps({"schema": {}, "payload": {"after": row, "op": "c", "ts_ms": NOW}}).encode()


def nested(**parts: Any) -> Pipeline:
    features = [
        field("amount"), field("last"), one_hot("kind", ("new", "old")), hashed("kind", buckets=2),
        window("card", "amount", over="1h"), count_distinct("card", "kind", over="1h"),
    ]  # fmt: skip
    return pipeline(Debezium, features=features, **parts)


def decode(values: list[bytes], declared: Pipeline | None = None, **hooks: Any) -> Batch:
    reader = BatchDecoder(declared or nested(), now=lambda: NOW / 1000, **hooks)
    return reader.decode(raw(values))


def test_a_nested_message_is_a_row() -> None:
    batch = decode([debezium(), debezium(id=8, kind=..., lines=[{"price": 2}])])
    assert not batch.dead_letters
    assert list(batch.ids) == ["7", "8"]
    assert list(batch.columns["card"]) == ["4929", "4929"]
    assert list(batch.columns["kind"]) == ["new", "old"]
    assert list(batch.targets or []) == [True, True]
    assert batch.features[:, :4].tolist() == [[12.5, -1.0, 1.0, 0.0], [12.5, 2.0, 0.0, 1.0]]


@pytest.mark.parametrize("card", [None, ..., {"number": None}, {}])
def test_an_entity_may_be_null(card: Any) -> None:
    batch = decode([debezium(card=card), debezium()])
    assert not batch.dead_letters
    assert list(batch.columns["card"]) == [None, "4929"]


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        (debezium(amount="12,50"), "'12,50' is not a number - at `$.payload.after.amount`"),
        (debezium(amount=...), "missing required field `payload.after.amount`: `payload.after` "
         "has no `amount`"),
        (debezium(fraud=None), "at `$.payload.after.fraud`"),
        (debezium(kind="gone"), "Invalid enum value 'gone' - at `$.payload.after.kind`"),
        (debezium(id="7"), "Expected `int`, got `str` - at `$.payload.after.id`"),
        (debezium(id=7.5), "at `$.payload.after.id`"),
        (debezium(card=4), "Expected `object`, got `int` - at `$.payload.after.card`"),
        (b'{"payload":{"after":null,"ts_ms":1}}', "`payload.after` is null"),
        (b'{"payload":null}', "missing required field `payload.after.id`: `payload` is null"),
        (b"{}", "missing required field `payload.after.id`"),
    ],
)  # fmt: skip
def test_a_bad_nested_message_names_the_path_and_the_stream_goes_on(
    value: bytes, detail: str
) -> None:
    batch = decode([debezium(id=1), value, debezium(id=2)])
    assert list(batch.ids) == ["1", "2"]
    (letter,) = batch.dead_letters
    assert letter.reason == "does not fit the type"
    assert detail in letter.detail


def test_a_decimal_that_is_no_number_is_a_dead_letter() -> None:
    class Priced(Event):
        id: str
        ts: int
        card: str
        amount: decimal.Decimal
        fraud: bool

    declared = pipeline(Priced)
    values = [js(amount=amount) for amount in ("12.50", 2, "NaN", "Infinity", "1e200", "x")]
    for cut in (values, *([value] for value in values)):
        batch = decode(cut, declared)
        expected = [each for value, each in zip(values, [12.5, 2.0], strict=False) if value in cut]
        assert list(batch.columns["amount"]) == expected
        assert len(batch.dead_letters) == len(cut) - len(expected)


def test_labels_may_be_named_cast_and_nested_as_well() -> None:
    class Order(Event):
        id: int
        ts: int
        amount: float

    class Verdict(Label):
        id: Cast[str] = path("order.id")
        ts: Cast[int] = path("at")
        fraud: Cast[bool] = path("verdict.fraud")

    declared = pipeline(Order, features=[field("amount")], label=Verdict.target("fraud"))
    label = {"order": {"id": 7}, "at": str(NOW), "verdict": {"fraud": 0, "by": "me"}}
    bad = {"order": {"id": 7}, "at": str(NOW), "verdict": {"fraud": "perhaps"}}
    reader = BatchDecoder(declared, now=lambda: NOW / 1000)
    values = [json.dumps(each).encode() for each in (label, bad)]
    batch = reader.decode(raw([b'{"id":7,"ts":1,"amount":1}'], values))
    assert list(batch.ids) == list(batch.labels.ids) == ["7"]
    assert batch.labels.values == [False]
    (letter,) = batch.dead_letters
    assert "'perhaps' is neither true nor false - at `$.verdict.fraud`" in letter.detail


class Seen:
    """Counts what a decoder reports."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    def __call__(self, topic: str, counts: Mapping[str, int]) -> None:
        for name, count in counts.items():
            self.counts[topic, name] += count


@pytest.mark.parametrize("general", [False, True])
def test_unknown_fields_are_counted_and_told_of_once(
    general: bool, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen()
    reader = BatchDecoder(pipeline(Strict), now=lambda: NOW / 1000, on_unknown_fields=seen)
    # An escape in a text is left to msgspec.
    card = "c\n" if general else "c"
    with caplog.at_level(logging.INFO, logger="anabranch"):
        for count in (0, 3, 2):
            values = [js(id=f"{count}{n}", card=card, channel="web") for n in range(count)]
            batch = reader.decode(raw([*values, js(card=card)]))
            assert len(batch) == count + 1
            assert not batch.dead_letters
        assert reader.decode(raw([js(card=card, channel=1, shop={"id": 7})])).ids[0] == "x"
    reader.report_unknown_fields()
    assert seen.counts == {("x.events", "channel"): 6, ("x.events", "shop"): 1}
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "messages of x.events have a field that Strict does not declare, and it is ignored: "
        "channel (such as channel: 'web')",
        "messages of x.events have a field that Strict does not declare, and it is ignored: "
        "shop (such as shop: {'id': 7})",
    ]


def test_unknown_fields_of_labels_are_ignored_too(caplog: pytest.LogCaptureFixture) -> None:
    class Verdict(Label):
        id: str
        ts: int
        fraud: bool

    seen = Seen()
    declared = pipeline(Strict, label=Verdict.target("fraud"))
    reader = BatchDecoder(declared, now=lambda: NOW / 1000, on_unknown_fields=seen)
    label = b'{"id":"x","ts":1,"fraud":true,"by":"me"}'
    with caplog.at_level(logging.INFO, logger="anabranch"):
        batch = reader.decode(raw([js()], [label, label]))
    assert batch.labels.values == [True, True]
    assert seen.counts == {("x.labels", "by"): 2}
    assert "x.labels" in caplog.text


def test_a_strict_type_refuses_unknown_fields() -> None:
    class Closed(Strict, forbid_unknown_fields=True):
        pass

    reader = BatchDecoder(pipeline(Closed), now=lambda: NOW / 1000)
    batch = reader.decode(raw([js(), js(channel="web"), js()]))
    assert len(batch) == 2
    assert "unknown field `channel`" in batch.dead_letters[0].detail


def test_a_field_that_is_missing_and_one_that_resembles_it() -> None:
    value = js(amuont=2.5)
    value = json.dumps({k: v for k, v in json.loads(value).items() if k != "amount"}).encode()
    (letter,) = decode([value], pipeline(Strict)).dead_letters
    assert letter.detail == (
        "Object missing required field `amount`; it has `amuont`, which Strict does not declare: "
        "is that the field?"
    )


def test_a_default_for_which_a_similar_field_comes(caplog: pytest.LogCaptureFixture) -> None:
    class Misspelt(Strict):
        chanel: str = ""

    with caplog.at_level(logging.INFO, logger="anabranch"):
        decode([js(channel="web")], pipeline(Misspelt))
    assert "is channel what Misspelt declares as chanel?" in caplog.text


def test_a_type_with_its_own_checks_has_unknown_fields_too() -> None:
    class Checked(Strict):
        def __post_init__(self) -> None:
            if self.amount < 0:
                raise ValueError("negative")

    batch = decode([js(channel=1), js(amount=-1, channel=1)], pipeline(Checked))
    assert len(batch) == 1
    assert "negative" in batch.dead_letters[0].detail


class Inner(msgspec.Struct):
    a: int


class Outer(Strict):
    inner: Inner
    tags: tuple[str, ...] = ()


def test_a_struct_may_be_a_field() -> None:
    batch = decode([js(inner={"a": 1}), js(inner={"a": "x"})], pipeline(Outer))
    assert len(batch) == 1
    assert "`$.inner.a`" in batch.dead_letters[0].detail
