"""A codec is one class: a pipeline whose topics are in another format runs like one in JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import msgspec
import pytest
from river import linear_model, preprocessing

from anabranch import Event, Label, Pipeline, Prediction, field, window
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.codec import CODECS, Codec, codec_of, make_codec
from anabranch.dataflows.codec.protocol import Message
from anabranch.dataflows.declaration.formats import MessagePack
from anabranch.dataflows.messages.control import Control
from anabranch.dataflows.messages.outputs import DeadLetter, RolloutMessage
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.skew.progress import ignore_progress
from anabranch.dataflows.skew.served_features import served_from_topic
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.models.rollout.policies import Shadow

T0 = 1_700_000_000_000


class OwnCodec(Codec):
    """The smallest codec of a user's own: no fast paths."""

    name: ClassVar[str] = "own"
    errors: ClassVar[tuple[type[Exception], ...]] = (msgspec.DecodeError, UnicodeDecodeError)

    def decoder(self, message: type[Message]) -> Callable[[bytes], Message]:
        return msgspec.msgpack.Decoder(message).decode

    def encode(self, message: msgspec.Struct) -> bytes:
        return msgspec.msgpack.encode(message)


class Reading(Event):
    id: str
    ts: int
    place: str
    size: float


class Verdict(Label):
    id: str
    ts: int
    hot: bool


def readings(codec: Codec | None = None) -> Pipeline:
    formats: dict[str, Any] = {} if codec is None else {"format": codec, "output_format": codec}
    return Pipeline(
        name="readings",
        **formats,
        event=Reading,
        label=Verdict.target("hot"),
        features=[field("size"), window("place", "size", over="1h")],
        model=preprocessing.StandardScaler() | linear_model.LogisticRegression(),
        challengers={"other": linear_model.LogisticRegression()},
        rollout=Shadow(),
        with_features=True,
    )


def run(codec: Codec, malformed: bytes) -> dict[str, list[dict[str, Any]]]:
    """The outputs of a run whose topics are in the format of ``codec``, decoded."""
    pipeline, bus = readings(codec), MemoryBus()
    topics = pipeline.topics
    bus.create_topics(dict.fromkeys(pipeline.inputs, 1))
    publisher = bus.publisher()
    for i in range(200):
        ts = T0 + 1000 * i
        event = Reading(id=str(i), ts=ts, place="ab"[i % 2], size=i % 7)
        publisher.append(topics.events, [codec.encode(event)], times=[ts])
        verdict = Verdict(id=str(i), ts=ts, hot=i % 7 > 3)
        publisher.append(topics.labels, [codec.encode(verdict)], times=[ts])
    strange = Verdict(id="x", ts=T0, hot=True)
    publisher.append(topics.events, [malformed, codec.encode(strange)], times=[T0, T0])
    pause = Control(kind="pause", id="c1", challenger="other")
    publisher.append(topics.control, [msgspec.json.encode(pause)], times=[T0 + 300_000])
    run_worker(pipeline, bus, SourceOptions(until_end=True, limit=64))
    served = served_from_topic(
        pipeline.name, pipeline.columns, bus, topics.predictions, ignore_progress, codec
    )
    assert len(served) == 200
    for topic, kind in (
        (topics.predictions, Prediction),
        (topics.dead_letters, DeadLetter),
        (topics.rollouts, RolloutMessage),
    ):
        assert list(map(codec_of(pipeline, topic).decoder(kind), bus.values(topic)))
    return {
        topic: list(map(codec_of(pipeline, topic).decoder(dict), bus.values(topic)))
        for topic in topics.outputs
    }


@pytest.mark.parametrize("codec", [OwnCodec(), make_codec(MessagePack())])
def test_a_pipeline_in_another_format_gives_the_same_outputs(
    codec: Codec,
) -> None:
    in_message_pack = run(codec, malformed=b"\xc1")
    in_json = run(CODECS["json"], malformed=b"{")
    rejected = {
        name: outputs.pop("readings.dead-letters")
        for name, outputs in (("msgpack", in_message_pack), ("json", in_json))
    }
    assert in_message_pack == in_json
    assert len(in_json["readings.predictions"]) == 200
    assert [letter["reason"] for letter in rejected["json"]] == [
        "not JSON",
        "does not fit the type",
    ]
    assert [letter["reason"] for letter in rejected["msgpack"]] == [
        "malformed message",
        "does not fit the type",
    ]
    assert rejected["msgpack"][0]["payload_base64"] == "wQ=="


def test_every_codec_is_registered_under_its_name() -> None:
    assert all(codec.name == name for name, codec in CODECS.items())
    assert codec_of(readings(), "readings.events") is CODECS["json"]
