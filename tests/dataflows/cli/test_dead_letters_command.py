"""``anabranch dead-letters``: what is listed, and that each is published again once."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from river import linear_model

from anabranch.dataflows.bus import AdminBus, TopicPartition, open_bus
from anabranch.dataflows.bus.headers import MessageHeaders, header_of
from anabranch.dataflows.bus.read_to_end import ends_now, read_to_end
from anabranch.dataflows.dead_letters import republish as module
from anabranch.dataflows.dead_letters.marks import HEADER, Marks
from anabranch.dataflows.dead_letters.republish import republish
from anabranch.dataflows.dead_letters.stored import list_letters
from anabranch.dataflows.declaration.features import field
from anabranch.dataflows.declaration.formats import MessagePack
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.declaration.shape import Cast
from anabranch.dataflows.declaration.topics import Topics, pattern
from anabranch.dataflows.messages.inputs import Event, Label
from anabranch.dataflows.messages.outputs import DeadLetter
from anabranch.state.errors import BusError, InputError
from tests.support.commands import Call, caller

T = 1_736_121_600_000
EVENT = {"id": "e", "ts": T, "amount": "12.5"}
MISMATCH = "does not fit the type"


class Strict(Event):
    id: str
    ts: int
    amount: float


class Tolerant(Event):
    id: str
    ts: int
    amount: Cast[float]


class Verdict(Label):
    id: str
    ts: int
    fraud: Cast[bool]


def pipeline(name: str, **changed: Any) -> Pipeline:
    given = {
        "event": Tolerant,
        "label": Verdict.target("fraud"),
        "features": [field("amount")],
        "model": linear_model.LogisticRegression(),
    }
    return Pipeline(name=name, **(given | changed))


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:{tmp_path}/data/bus"
    return str(request.getfixturevalue("kafka_broker").url)


@pytest.fixture
def bus(url: str) -> Iterator[AdminBus]:
    opened = open_bus(url)
    yield opened
    opened.close()


@pytest.fixture
def declared(bus: AdminBus) -> Pipeline:
    """A pipeline whose topics exist, with two partitions."""
    made = pipeline(f"p{uuid.uuid4().hex}")
    bus.create_topics(dict.fromkeys([*made.inputs, made.topics.dead_letters], 2))
    return made


def publish(
    bus: AdminBus,
    topic: str,
    values: list[bytes],
    partition: int = 0,
    key: bytes | None = b"k",
    time_ms: int = T + 5,
    headers: MessageHeaders = None,
) -> None:
    publisher = bus.publisher()
    publisher.append(
        topic,
        values,
        keys=[key] * len(values),
        partitions=partition,
        times=[time_ms] * len(values),
        headers=None if headers is None else [headers] * len(values),
    )
    publisher.close()


def refuse(
    bus: AdminBus,
    declared: Pipeline,
    topic: str,
    partition: int,
    offset: int,
    payload: str | None,
    reason: str = MISMATCH,
    **more: Any,
) -> None:
    """Publish a dead letter as a run does."""
    letter = DeadLetter(
        topic=topic,
        partition=partition,
        offset=offset,
        reason=reason,
        detail="Expected `float`, got `str` - at `$.amount`",
        payload=payload,
        **more,
    )
    publish(bus, declared.topics.dead_letters, [msgspec.json.encode(letter)], time_ms=T + 9)


def messages(
    bus: AdminBus, topic: str
) -> list[tuple[int, bytes, bytes | None, int, MessageHeaders]]:
    """Partition, payload, key, time and headers of all messages of a topic."""
    starts = {TopicPartition(topic, n): s for n, s in enumerate(bus.start_offsets(topic))}
    reader = bus.reader(starts, headers=True)
    found = []
    for piece in read_to_end(reader, ends_now(bus, list(starts))):
        headers = piece.headers or [None] * len(piece.values)
        columns = zip(piece.values, piece.keys, piece.times.tolist(), headers, strict=True)
        found += [(piece.partition, *each) for each in columns]
    reader.close()
    return found


def copies(bus: AdminBus, topic: str) -> list[tuple[int, bytes, bytes | None, int, MessageHeaders]]:
    return [each for each in messages(bus, topic) if header_of(each[4], HEADER) is not None]


def refused(bus: AdminBus, declared: Pipeline, count: int = 1, **changed: Any) -> list[bytes]:
    """Events on partition 1 that were refused; their payloads."""
    rows = [EVENT | {"id": f"e{n}"} | changed for n in range(count)]
    values = [msgspec.json.encode(row) for row in rows]
    topic = declared.topics.events
    publish(bus, topic, values, 1, headers=[("trace", b"7")])
    for n, value in enumerate(values):
        refuse(bus, declared, topic, 1, n, value.decode())
    return values


def test_a_dead_letter_is_published_again_as_its_message_was(
    bus: AdminBus, declared: Pipeline
) -> None:
    values = refused(bus, declared, 2)
    report = republish(bus, declared)
    topic = declared.topics.events
    assert (report.published, report.considered, report.held_back) == ({topic: 2}, 2, [])
    found = copies(bus, topic)
    assert [each[:4] for each in found] == [(1, value, b"k", T + 5) for value in values]
    assert all(header_of(each[4], "trace") == b"7" for each in found)
    mark = header_of(found[0][4], HEADER)
    assert mark is not None
    assert mark.decode().startswith(f"{topic}/1/0/")


def test_each_is_published_once_by_any_number_of_calls(bus: AdminBus, declared: Pipeline) -> None:
    refused(bus, declared, 3)
    first = republish(bus, declared, limit=1)
    second = republish(bus, declared)
    third = republish(bus, declared)
    assert (first.count, second.count, third.count) == (1, 2, 0)
    assert (second.already, third.already) == (1, 3)
    assert len(copies(bus, declared.topics.events)) == 3


def test_a_message_with_two_dead_letters_is_published_once(
    bus: AdminBus, declared: Pipeline
) -> None:
    (value,) = refused(bus, declared)
    refuse(bus, declared, declared.topics.events, 1, 0, value.decode(), "number too large")
    report = republish(bus, declared)
    assert (report.count, report.repeated) == (1, 1)


@pytest.mark.parametrize("step", ["before", "after"])
def test_a_call_that_dies_between_its_steps_is_completed_by_the_next(
    bus: AdminBus, declared: Pipeline, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """It dies once the copies are stored, or before any is; both before they are done."""
    refused(bus, declared, 3)

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if step == "after":
            patched.setattr(Marks, "finish", die)
        else:
            patched.setattr(module, "with_mark", die)
        with pytest.raises(KeyboardInterrupt):
            republish(bus, declared)
    assert len(copies(bus, declared.topics.events)) == (3 if step == "after" else 0)
    report = republish(bus, declared)
    assert (report.count, report.already) == ((0, 3) if step == "after" else (3, 0))
    assert len(copies(bus, declared.topics.events)) == 3
    assert republish(bus, declared).already == 3


def test_a_call_that_dies_amid_its_copies_is_completed_by_the_next(
    bus: AdminBus, declared: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = declared.topics.events
    value = msgspec.json.encode(EVENT)
    for partition in (0, 1):
        publish(bus, topic, [value], partition)
        refuse(bus, declared, topic, partition, 0, value.decode())
    publisher_type = type(bus.publisher())
    append = publisher_type.append
    seen: list[str] = []

    def die_at_the_second(self: Any, to: str, *given: Any, **named: Any) -> None:
        seen.append(to)
        if seen.count(topic) == 2:
            self.flush()
            raise KeyboardInterrupt
        append(self, to, *given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(publisher_type, "append", die_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            republish(bus, declared)
    assert [each[0] for each in copies(bus, topic)] == [0]
    report = republish(bus, declared)
    assert (report.count, report.already) == (1, 1)
    assert sorted(each[0] for each in copies(bus, topic)) == [0, 1]


def test_a_copy_that_is_refused_in_turn_can_be_published_again(
    bus: AdminBus, declared: Pipeline
) -> None:
    (value,) = refused(bus, declared)
    republish(bus, declared)
    refuse(bus, declared, declared.topics.events, 1, 1, value.decode())
    report = republish(bus, declared)
    assert (report.count, report.already) == (1, 1)
    marks = [header_of(each[4], HEADER) for each in copies(bus, declared.topics.events)]
    assert len(set(marks)) == 2


def test_what_still_does_not_fit_stays(bus: AdminBus, declared: Pipeline) -> None:
    refused(bus, declared, amount="a lot")
    report = republish(bus, declared)
    assert report.count == 0
    (held,) = report.held_back
    assert (held.reason, held.count) == (MISMATCH, 1)
    assert "$.amount" in held.detail
    assert "a lot" in held.payload
    strict = pipeline(declared.name, event=Strict)
    assert republish(bus, strict).held_back[0].reason == MISMATCH


def test_a_dry_run_publishes_nothing(bus: AdminBus, declared: Pipeline) -> None:
    refused(bus, declared, 2)
    before = sorted(bus.topics())
    report = republish(bus, declared, dry_run=True)
    assert (report.count, report.dry_run) == (2, True)
    assert copies(bus, declared.topics.events) == []
    assert sorted(bus.topics()) == before
    assert republish(bus, declared).count == 2
    assert republish(bus, declared, dry_run=True).already == 2


def test_labels_go_to_their_topic(bus: AdminBus, declared: Pipeline) -> None:
    topic = declared.topics.labels
    value = msgspec.json.encode({"id": "e", "ts": T, "fraud": 1})
    publish(bus, topic, [value], 1)
    refuse(bus, declared, topic, 1, 0, value.decode())
    assert republish(bus, declared).published == {topic: 1}
    assert [each[1] for each in copies(bus, topic)] == [value]


@pytest.mark.parametrize("reason", ["late", "duplicate id", "label without event"])
def test_other_reasons_have_to_be_named(bus: AdminBus, declared: Pipeline, reason: str) -> None:
    value = msgspec.json.encode(EVENT)
    publish(bus, declared.topics.events, [value])
    refuse(bus, declared, declared.topics.events, 0, 0, value.decode(), reason)
    assert republish(bus, declared).considered == 0
    assert republish(bus, declared, [reason]).count == 1


def test_an_event_that_would_be_late_is_not_published(bus: AdminBus, declared: Pipeline) -> None:
    refused(bus, declared)
    newer = msgspec.json.encode(EVENT | {"ts": T + 3_600_000})
    publish(bus, declared.topics.events, [newer], 0, time_ms=T + 3_600_000)
    report = republish(bus, declared)
    assert report.count == 0
    assert report.held_back[0].reason == "late"
    assert "1h behind the newest" in report.held_back[0].detail
    patient = pipeline(declared.name, allowed_lateness="2h")
    assert republish(bus, patient).count == 1


def test_a_payload_that_was_cut_is_read_from_its_topic(bus: AdminBus, declared: Pipeline) -> None:
    value = msgspec.json.encode(EVENT | {"note": "x" * 1000})
    topic = declared.topics.events
    publish(bus, topic, [value])
    refuse(bus, declared, topic, 0, 0, value[:50].decode(), truncated_from=len(value))
    refuse(bus, declared, topic, 0, 9, value[:50].decode(), truncated_from=len(value))
    report = republish(bus, declared)
    assert [each[1] for each in copies(bus, topic)] == [value]
    (held,) = report.held_back
    assert (held.reason, held.place) == ("cut", f"{topic}, partition 0, offset 9")


def test_bytes_that_are_no_text_are_published_as_they_were(
    bus: AdminBus, declared: Pipeline
) -> None:
    """As an Avro message is, which only a format reads."""
    value = msgspec.msgpack.encode(EVENT | {"amount": 1.5, "blob": b"\xff"})
    publish(bus, declared.topics.events, [value])
    coded = base64.b64encode(value).decode()
    refuse(bus, declared, declared.topics.events, 0, 0, None, "not JSON", payload_base64=coded)
    assert republish(bus, declared).held_back[0].reason == "not JSON"
    packed = pipeline(declared.name, format=MessagePack())
    assert republish(bus, packed).count == 1
    assert [each[1] for each in copies(bus, declared.topics.events)] == [value]


def test_a_message_that_is_gone_is_published_from_its_dead_letter(
    bus: AdminBus, declared: Pipeline
) -> None:
    """Also where its topic was deleted, and another message has its place now."""
    (value,) = refused(bus, declared)
    topic = declared.topics.events
    bus.delete_topics([topic])
    bus.create_topics({topic: 2})
    other = msgspec.json.encode(EVENT | {"id": "other", "amount": 3.5})
    publish(bus, topic, [other], 1)
    report = republish(bus, declared)
    assert (report.count, report.without_original) == (1, 1)
    assert [each[1:4] for each in copies(bus, topic)] == [(value, None, T + 9)]


def test_each_goes_to_its_own_of_several_topics(bus: AdminBus) -> None:
    name = f"p{uuid.uuid4().hex}"
    topics = [f"{name}.eu", f"{name}.us"]
    several = pipeline(name, topics=Topics(events=pattern(rf"{name}\.(eu|us)")))
    bus.create_topics(dict.fromkeys([*topics, several.topics.dead_letters], 1))
    for topic in topics:
        publish(bus, topic, [msgspec.json.encode(EVENT | {"id": topic})])
        refuse(bus, several, topic, 0, 0, msgspec.json.encode(EVENT | {"id": topic}).decode())
    assert republish(bus, several).published == dict.fromkeys(topics, 1)
    for topic in topics:
        assert [msgspec.json.decode(each[1])["id"] for each in copies(bus, topic)] == [topic]


def test_of_one_topic_for_events_and_labels_both_are_published(bus: AdminBus) -> None:
    name = f"p{uuid.uuid4().hex}"
    both = pipeline(
        name,
        topics=Topics(events=f"{name}.all", labels=f"{name}.all"),
        where={"kind": "order"},
        label_where={"kind": "outcome"},
    )
    bus.create_topics(dict.fromkeys([f"{name}.all", both.topics.dead_letters], 1))
    rows = [EVENT | {"kind": "order"}, {"id": "e", "ts": T, "fraud": 1, "kind": "outcome"}]
    rows.append(EVENT | {"kind": "other"})
    for n, row in enumerate(rows):
        publish(bus, f"{name}.all", [msgspec.json.encode(row)])
        refuse(bus, both, f"{name}.all", 0, n, msgspec.json.encode(row).decode())
    report = republish(bus, both)
    assert report.count == 2
    assert [each.reason for each in report.held_back] == ["skipped"]


def test_dead_letters_of_a_topic_that_is_no_input_stay(bus: AdminBus, declared: Pipeline) -> None:
    value = msgspec.json.encode(EVENT)
    refuse(bus, declared, "former.events", 0, 0, value.decode())
    assert republish(bus, declared).held_back[0].reason == "of another topic"


def test_a_second_call_at_the_same_time_is_refused(bus: AdminBus, declared: Pipeline) -> None:
    refused(bus, declared)
    with (
        module._alone(bus, declared, [declared.topics.events], print),
        pytest.raises(BusError, match="can't be published again now: another run"),
    ):
        republish(bus, declared)
    assert republish(bus, declared).count == 1


def test_the_list_counts_by_reason(bus: AdminBus, declared: Pipeline) -> None:
    publish(bus, declared.topics.dead_letters, [b"[]"])
    refused(bus, declared, 3)
    refuse(bus, declared, declared.topics.labels, 0, 4, "{}", "not a time")
    listing = list_letters(bus, declared)
    assert [(each.reason, each.count) for each in listing.reasons] == [
        (MISMATCH, 3),
        ("not a time", 1),
    ]
    assert listing.reasons[0].topics == {declared.topics.events: 3}
    assert (listing.reasons[0].first, listing.reasons[0].last) == (T + 9, T + 9)
    assert (listing.read, listing.unreadable) == (4, 1)
    assert list_letters(bus, declared, ["not a time"]).read == 1
    assert list_letters(bus, declared, newest=2).read == 2


def test_reasons_that_do_not_exist_or_can_not_be_published_are_named(
    bus: AdminBus, declared: Pipeline
) -> None:
    with pytest.raises(InputError, match="did you mean 'not a time'"):
        list_letters(bus, declared, ["not a tiem"])
    with pytest.raises(InputError, match="'output too large' are not published again"):
        republish(bus, declared, ["output too large"])


DECLARED = """
from river import linear_model
from anabranch import Event, Pipeline, field, inline

class Payment(Event):
    id: str
    ts: int
    amount: float
    fraud: bool

pipeline = Pipeline(
    name="pay", event=Payment, label=inline("fraud"), features=[field("amount")],
    model=linear_model.LogisticRegression(),
)
"""


@pytest.fixture
def call(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    (tmp_path / "pay.py").write_text(DECLARED)
    return caller(tmp_path, capfd)


def test_from_a_run_to_the_next_with_a_new_declaration(tmp_path: Path, call: Call) -> None:
    """Refused, listed, published again after the declaration was mended, and predicted once."""
    rows = [
        {"id": str(n), "ts": T + n, "amount": str(n) if n % 3 else n, "fraud": n % 2 == 0}
        for n in range(9)
    ]
    bus = open_bus(f"sqlite:{tmp_path}/data/bus")
    bus.create_topics({"pay.events": 1})
    publish(bus, "pay.events", [msgspec.json.encode(row) for row in rows])
    assert call("run", "pay.py", "--until-end").code == 0
    listed = call("dead-letters", "list", "pay.py")
    assert "6 dead letters on pay.dead-letters" in listed.out
    assert "Expected `float`, got `str`" in " ".join(listed.out.split())
    still = call("dead-letters", "republish", "pay.py", "--dry-run")
    assert "0 of 6 dead letters would be published again" in still.out
    mended = DECLARED.replace("amount: float", "amount: Cast[float]").replace(
        "Event,", "Cast, Event,"
    )
    (tmp_path / "pay.py").write_text(mended)
    assert (
        "6 of 6 dead letters would be"
        in call("dead-letters", "republish", "pay.py", "--dry-run").out
    )
    done = json.loads(call("dead-letters", "republish", "pay.py", "--json").out)
    assert done["published"] == {"pay.events": 6}
    assert call("run", "pay.py", "--until-end").code == 0
    predicted = [msgspec.json.decode(each[1])["id"] for each in messages(bus, "pay.predictions")]
    assert sorted(predicted) == [str(n) for n in range(9)]
    again = call("dead-letters", "republish", "pay.py")
    assert "6 had been published again before" in again.out
    bus.close()


def test_a_pipeline_that_has_not_run_is_told(call: Call) -> None:
    told = call("dead-letters", "list", "pay.py")
    assert (told.code, told.out) == (1, "")
    assert "has no dead letters" in " ".join(told.err.split())
