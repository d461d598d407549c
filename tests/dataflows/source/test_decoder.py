"""Decoding a batch: each message is a row or one dead letter, and none affects its neighbours.

The reference decodes every message in a batch of its own.
"""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta, timezone
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import linear_model

from anabranch import Event, Label, Pipeline, field, inline, one_hot, window
from anabranch.dataflows.batch.batch import Batch, RawBatch, RawRows
from anabranch.dataflows.messages.outputs import DeadLetter
from anabranch.dataflows.source.decoder import BatchDecoder

T0 = 1_700_000_000_000
NOW_S = T0 / 1000 + 86_400
HUGE = "9" * 400


class Reading(Event, forbid_unknown_fields=True):
    id: str
    ts: int
    place: str
    value: float
    count: int = 0
    note: str | None = None


class Loose(Event):
    id: str
    ts: int
    place: str
    value: float
    count: int = 0
    note: str | None = None
    extra: dict[str, Any] | None = None


class Truth(Label, forbid_unknown_fields=True):
    id: str
    ts: int
    y: float


@cache
def decoder(event: type[Event] = Reading, time_unit: str = "ms") -> BatchDecoder:
    pipeline = Pipeline(
        name="readings",
        event=event,
        label=Truth.target("y"),
        features=[
            field("value"),
            field("count"),
            one_hot("note", ("x",)),
            window("place", "value", over="1h"),
        ],
        model=linear_model.LinearRegression(),
        time_unit=time_unit,
    )
    return BatchDecoder(pipeline, now=lambda: NOW_S)


def raw(
    events: list[bytes],
    labels: list[bytes] | None = None,
    *,
    published: list[int] | None = None,
    order: list[int] | None = None,
    first: int = 0,
) -> RawBatch:
    labels = labels or []
    count = len(events) + len(labels)
    return RawBatch(
        worker_id="0",
        sequence=3,
        events=rows("readings.events", events, published, first),
        labels=rows("readings.labels", labels, None, first),
        order=np.array(range(count) if order is None else order, np.int64),
        read_at=NOW_S,
    )


def rows(topic: str, values: list[bytes], published: list[int] | None, first: int) -> RawRows:
    """Offsets with gaps, alternating between two partitions."""
    n = len(values)
    return RawRows(
        topic,
        list(values),
        (first + np.arange(n)) % 2,
        100 + 3 * (first + np.arange(n)),
        np.array([T0] * n if published is None else published, np.int64),
    )


def row(batch: Batch, at: int) -> tuple[Any, ...]:
    """Everything that a batch holds of one event, comparable bit for bit."""
    return (
        batch.ids[at],
        int(batch.times[at]),
        int(batch.partitions[at]),
        int(batch.offsets[at]),
        int(batch.rows.times[at]),
        batch.payloads[at],
        batch.features[at].tobytes(),
        *sorted((name, repr(values[at])) for name, values in batch.columns.items()),
    )


def place(letter: DeadLetter) -> tuple[str, int, int]:
    return letter.topic, letter.partition, letter.offset


def payload(letter: DeadLetter) -> bytes:
    assert (letter.payload is None) != (letter.payload_base64 is None)
    if letter.payload is not None:
        return letter.payload.encode()
    return base64.b64decode(str(letter.payload_base64), validate=True)


def valid(id: object = "a", ts: object = T0, **fields: object) -> bytes:
    message = {"id": id, "ts": ts, "place": "p", "value": 1.5} | fields
    return json.dumps(message).encode()


IDS = st.sampled_from(["a", "b", "ü\u0000", ""])
VALID = st.one_of(
    st.builds(
        valid,
        id=IDS,
        ts=st.one_of(
            st.integers(T0 - 10**9, T0),
            st.floats(T0 - 1e9, T0),
            st.sampled_from(["2023-11-01T00:00:00Z", "2023-11-01 10:00:00.5+02:00", "2023-11-01"]),
        ),
        value=st.one_of(st.floats(-1e300, 1e300), st.integers(-(10**20), 10**20)),
        count=st.integers(-(2**70), 2**70),
        note=st.sampled_from([None, "x", "}\n,{", "},{", "]", "\\", '"']),
    ),
    st.sampled_from(
        [
            json.dumps(json.loads(valid("pretty")), indent=2).encode(),
            b"  " + valid("spaced") + b"\n\t ",
            b'{"id":"a","id":"twice","ts":1,"place":"p","value":1}',
            b'{"id":"fine","ts":1,"place":"p","value":-0.0,"note":"\\u007d\\u000a,\\u007b"}',
        ]
    ),
)
WHOLE = valid("w").decode()
BAD = st.sampled_from(
    [
        b"",
        b" ",
        b"{",
        b"}",
        b"{}",
        b"[]",
        b"null",
        b"not json",
        b"\xff\xfe\x00",
        b"\xef\xbb\xbf" + valid("bom"),
        valid("latin1").replace(b'"p"', b'"\xe9"'),
        valid("nul") + b"\x00",
        b"\x00" + valid("nul"),
        valid("raw newline").replace(b"raw newline", b"raw\nnewline"),
        valid("raw boundary").replace(b"raw boundary", b"raw}\n,{boundary"),
        valid("lone surrogate").replace(b"lone surrogate", b"\\ud800"),
        # Two documents in one message, with anything that could separate them.
        *(f"{WHOLE}{between}{WHOLE}".encode() for between in ("", ",", "\n", "\n,", "],[", " ")),
        # Parts of documents that would form complete ones with their neighbours.
        b'{"id":"a","ts":1',
        b'"place":"p","value":2}',
        b'{"id":"a","ts":1,"place":"p","value":1},{"id":"b}',
        b'{","ts":1,"place":"p","value":1}',
        b'{"id":"a","ts":1,"place":"p","value":1},{"id":"b"}',
        b'{"id":"a","ts":1,"place":"p","value":1}]',
        b'[{"id":"a","ts":1,"place":"p","value":1}',
        b'{"id":"a","ts":1,"place":"p","value":1},',
        b',{"id":"a","ts":1,"place":"p","value":1}',
        # Complete, but not of the type.
        b'{"ts":1,"place":"p","value":1}',
        valid("unknown", other=1),
        valid("wrong type", value="1.5"),
        valid("wrong type", count=1.5),
        valid("null", value=None),
        valid(7),
        valid(None),
        valid("list", place=["p"]),
        # Numbers that no float can hold, or that JSON does not have.
        valid("inf", value=0).replace(b'"value": 0', b'"value": 1e999'),
        valid("-inf", value=0).replace(b'"value": 0', b'"value": -1e999'),
        valid("nan", value=0).replace(b'"value": 0', b'"value": NaN'),
        valid("infinity", value=0).replace(b'"value": 0', b'"value": Infinity'),
        valid("huge", count=0).replace(b'"count": 0', b'"count": ' + HUGE.encode()),
        valid("huge", value=0).replace(b'"value": 0', b'"value": ' + HUGE.encode()),
        # Invalid times.
        valid("t", ts="yesterday"),
        valid("t", ts=""),
        valid("t", ts=None),
        valid("t", ts=True),
        valid("t", ts=[1]),
        valid("t", ts="2023-13-01T00:00:00Z"),
        valid("t", ts=10**18),
        valid("t", ts=-(10**18)),
        valid("t", ts=1e300),
        valid("t", ts=0).replace(b'"ts": 0', b'"ts": 1e999'),
        valid("t", ts=0).replace(b'"ts": 0', b'"ts": ' + HUGE.encode()),
        # Ahead of publishing by more than 5 minutes.
        valid("ahead", ts=T0 + 300_001),
        valid("ahead", ts="2999-01-01T00:00:00Z"),
        # So deep that a parser may give up.
        b"[" * 100_000,
        b'{"id":' * 100_000,
        valid("deep", note=0).replace(b'"note": 0', b'"note": ' + b"[" * 100_000),
    ]
)
MESSAGES = st.lists(st.one_of(VALID, VALID, BAD), max_size=12)


def check_against_one_by_one(event: type[Event], messages: list[bytes]) -> None:
    batch = decoder(event).decode(raw(messages))
    alone = [decoder(event).decode(raw([m], first=i)) for i, m in enumerate(messages)]
    assert all(len(one) + len(one.dead_letters) == 1 for one in alone)
    assert [row(batch, i) for i in range(len(batch))] == [row(one, 0) for one in alone if len(one)]
    dead = sorted(batch.dead_letters, key=place)
    assert dead == sorted((letter for one in alone for letter in one.dead_letters), key=place)
    for letter in dead:
        assert payload(letter) == messages[(letter.offset - 100) // 3]
        assert letter.topic == "readings.events"
        assert letter.partition == (letter.offset - 100) // 3 % 2
        assert letter.reason
        assert letter.detail
    assert batch.order.tolist() == list(range(len(batch)))
    assert np.isfinite(batch.features).all()


@given(MESSAGES)
@settings(max_examples=300, deadline=None)
def test_a_batch_decodes_as_its_messages_do_one_by_one(messages):
    check_against_one_by_one(Reading, messages)


@given(MESSAGES)
@settings(max_examples=100, deadline=None)
def test_a_batch_of_a_type_with_unknown_fields_decodes_as_its_messages_do_one_by_one(messages):
    check_against_one_by_one(Loose, messages)


@given(BAD)
@settings(max_examples=200, deadline=None)
def test_a_bad_message_is_one_dead_letter(message):
    check_against_one_by_one(Reading, [valid("before"), message, valid("after")])
    batch = decoder().decode(raw([valid("before"), message, valid("after")]))
    assert batch.ids == ["before", "after"]
    assert [place(letter) for letter in batch.dead_letters] == [("readings.events", 1, 103)]


HALVES = (b'{"id":"a","ts":1', b'"place":"p","value":2}')
BOTH = f"{WHOLE},{WHOLE}".encode()
COMPLEMENTARY = [
    # Joined with commas, each of these is a valid array of as many documents as messages.
    [*HALVES, BOTH],
    [BOTH, *HALVES],
    [HALVES[0], HALVES[1] + b"," + WHOLE.encode()],
    [WHOLE.encode() + b"," + HALVES[0], HALVES[1]],
    [HALVES[0] + b',"note":"}', b'{","place":"p","value":1}', BOTH],
    [b'{"id":"a","ts":1,"note":"}', b'{","place":"p","value":1},' + WHOLE.encode()],
    [BOTH, b""],
    [b"", BOTH],
]


@pytest.mark.parametrize("event", [Reading, Loose])
@pytest.mark.parametrize("messages", COMPLEMENTARY)
def test_bad_messages_that_would_be_valid_when_joined(event, messages):
    around = [valid("before"), *messages, valid("after")]
    check_against_one_by_one(event, around)
    batch = decoder(event).decode(raw(around))
    assert batch.ids == ["before", "after"]
    assert len(batch.dead_letters) == len(messages)


@pytest.mark.parametrize(
    "deep", [b'"extra": {"a":' + b'{"a":' * 100_000, b'"zz": ' + b"[" * 100_000]
)
def test_a_message_too_deep_to_parse_is_a_dead_letter(deep):
    message = valid("deep")[:-1] + b", " + deep
    batch = decoder(Loose).decode(raw([valid("before"), message, valid("after")]))
    assert batch.ids == ["before", "after"]
    assert [place(letter) for letter in batch.dead_letters] == [("readings.events", 1, 103)]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"oops", "not JSON"),
        (b"\xff", "not JSON"),
        (valid(value="1"), "does not fit the type"),
        (valid(other=1), "does not fit the type"),
        (valid(ts=T0 + 300_001), "event time ahead"),
        (valid(count=0).replace(b'"count": 0', b'"count": ' + HUGE.encode()), "number too large"),
    ],
)
def test_reasons_are_short_and_stable(message, reason):
    (letter,) = decoder().decode(raw([message])).dead_letters
    assert letter.reason == reason


def test_the_detail_names_the_field():
    details = {
        decoder().decode(raw([message])).dead_letters[0].detail
        for message in (valid(value="1"), valid(other=1), valid(ts="noon"))
    }
    assert any("$.value" in detail for detail in details)
    assert any("`other`" in detail for detail in details)
    assert any("noon" in detail for detail in details)


@given(st.permutations(range(9)), st.sets(st.integers(0, 8)))
@settings(max_examples=150, deadline=None)
def test_valid_rows_keep_the_order_of_events_and_labels(order, bad):
    """Six events and three labels in any sequence, any of them bad."""
    events = [valid(f"e{i}") for i in range(6)]
    labels = [json.dumps({"id": f"l{i}", "ts": T0, "y": 1}).encode() for i in range(3)]
    messages = [b"bad" if i in bad else m for i, m in enumerate(events + labels)]
    batch = decoder().decode(raw(messages[:6], messages[6:], order=list(order)))
    left = batch.ids + batch.labels.ids
    names = [f"e{i}" for i in range(6)] + [f"l{i}" for i in range(3)]
    assert [left[i] for i in batch.order] == [names[i] for i in order if i not in bad]
    assert len(batch.dead_letters) == len(bad)


LABEL_TIMES = [T0, float(T0), "2023-11-14T22:13:20Z"]


@pytest.mark.parametrize("ts", LABEL_TIMES)
def test_labels_take_the_same_times_as_events(ts):
    label = json.dumps({"id": "a", "ts": ts, "y": 2}).encode()
    batch = decoder().decode(raw([], [label]))
    assert batch.labels.times.tolist() == [T0]
    assert batch.labels.values == [2.0]


@pytest.mark.parametrize(
    "label",
    [
        b"",
        b'{"id":"a","ts":1',
        b'{"id":"a","ts":1,"y":1e999}',
        b'{"id":"a","ts":1,"y":' + HUGE.encode() + b"}",
        b'{"id":"a","ts":1,"y":null}',
        b'{"id":"a","ts":"soon","y":1}',
        b'{"id":"a","ts":1,"y":1,"x":1}',
        b'{"id":"a","ts":9999999999999,"y":1}',
        b"\xff",
    ],
)
def test_a_bad_label_is_a_dead_letter_and_its_neighbours_are_not(label):
    others = [json.dumps({"id": f"l{i}", "ts": T0, "y": i}).encode() for i in range(2)]
    batch = decoder().decode(raw([valid()], [others[0], label, others[1]]))
    assert batch.ids == ["a"]
    assert batch.labels.ids == ["l0", "l1"]
    assert batch.order.tolist() == [0, 1, 2]
    (letter,) = batch.dead_letters
    assert place(letter) == ("readings.labels", 1, 103)
    assert payload(letter) == label


UNITS = {"ms": 1, "s": 1e-3, "us": 1_000, "ns": 1_000_000}
MOMENTS = st.one_of(st.integers(T0 - 10**6, T0), st.integers(0, T0))


def time_of(ts: object, unit: str = "ms") -> int:
    batch = decoder(Reading, unit).decode(raw([valid(ts=ts)]))
    assert not batch.dead_letters, batch.dead_letters
    return int(batch.times[0])


@given(MOMENTS)
def test_epoch_integers_of_every_unit(ms):
    assert time_of(ms) == ms
    assert time_of(ms // 1000, "s") == ms // 1000 * 1000
    assert time_of(ms * 1_000, "us") == ms
    assert time_of(ms * 1_000_000, "ns") == ms


@given(MOMENTS)
def test_epoch_floats_of_every_unit(ms):
    assert time_of(float(ms)) == ms
    assert time_of(ms / 1000, "s") == ms
    assert time_of(ms * 1e3, "us") == ms
    assert time_of(ms * 1e6, "ns") == ms


@given(MOMENTS, st.sampled_from(sorted(UNITS)), st.integers(-14 * 60, 14 * 60))
def test_iso_text_in_any_pipeline_with_and_without_offset(ms, unit, minutes):
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
    there = moment.astimezone(timezone(timedelta(minutes=minutes)))
    naive = moment.replace(tzinfo=None)
    assert time_of(there.isoformat(), unit) == ms
    assert time_of(naive.isoformat(), unit) == ms
    assert time_of(naive.isoformat(sep=" ", timespec="milliseconds"), unit) == ms
    assert time_of(naive.isoformat() + "Z", unit) == ms


@given(st.lists(MOMENTS, min_size=1, max_size=8), st.data())
def test_times_of_one_batch_may_be_written_differently(moments, data):
    def spell(ms: int) -> object:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
        return data.draw(st.sampled_from([ms, float(ms), moment.isoformat()]))

    batch = decoder().decode(raw([valid(ts=spell(ms)) for ms in moments]))
    assert batch.times.tolist() == moments


@pytest.mark.parametrize("ts", ["0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00"])
def test_text_outside_the_valid_years_is_rejected_as_numbers_are(ts):
    batch = decoder().decode(raw([valid("before"), valid(ts=ts)]))
    assert batch.ids == ["before"]
    assert len(batch.dead_letters) == 1


@pytest.mark.parametrize("ahead", [300_000, 300_001])
def test_a_time_is_ahead_of_its_publishing_by_five_minutes_at_most(ahead):
    later = T0 + 60_000
    batch = decoder().decode(raw([valid(ts=later + ahead), valid("b")], published=[later, T0]))
    assert batch.ids == (["a", "b"] if ahead == 300_000 else ["b"])
    assert [letter.reason for letter in batch.dead_letters] == ["event time ahead"] * (
        ahead - 300_000
    )


def test_a_publisher_cannot_claim_to_be_in_the_future():
    """The wall clock bounds the publishing times of messages."""
    far = int(NOW_S * 1000) + 10**9
    batch = decoder().decode(raw([valid(ts=far), valid("b")], published=[far, T0]))
    assert batch.ids == ["b"]
    assert [letter.reason for letter in batch.dead_letters] == ["event time ahead"]


def test_an_inline_label_that_is_not_a_finite_number_is_a_dead_letter():
    class Trip(Event):
        id: str
        ts: int
        km: float
        minutes: int

    pipeline = Pipeline(
        name="trips",
        event=Trip,
        label=inline("minutes"),
        features=[field("km")],
        model=linear_model.LinearRegression(),
    )
    messages = [
        b'{"id":"a","ts":1,"km":1,"minutes":3}',
        b'{"id":"b","ts":1,"km":1,"minutes":' + HUGE.encode() + b"}",
        b'{"id":"c","ts":1,"km":1,"minutes":4}',
    ]
    batch = BatchDecoder(pipeline).decode(raw(messages))
    assert batch.ids == ["a", "c"]
    assert batch.targets == [3, 4]
    assert len(batch.dead_letters) == 1


def test_an_empty_batch_decodes_to_an_empty_batch():
    batch = decoder().decode(raw([]))
    assert len(batch) == 0
    assert batch.features.shape == (0, 5)
    assert not batch.dead_letters
