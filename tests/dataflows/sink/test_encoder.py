"""Output messages decode as their public types, and keep their source keys in a replay."""

from __future__ import annotations

import pickle
from functools import partial

import msgspec
import pytest
from river import linear_model, naive_bayes, preprocessing

from anabranch import Event, Label, Pipeline, Prediction, field, inline, monitor
from anabranch.dataflows.batch.output_records import OutputRecords, Provenance
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.codec import codec_of
from anabranch.dataflows.messages.outputs import DeadLetter, DriftSignal
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.sink.bus_sink import BusSink, SinkRecovery, part_name
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics


class Reading(Event):
    id: str
    ts: int
    size: float
    hot: bool
    kind: str
    heat: float


class Verdict(Label):
    id: str
    ts: int
    hot: bool


MODELS = {
    "hot": preprocessing.StandardScaler() | linear_model.LogisticRegression(),
    "kind": naive_bayes.GaussianNB(),
    "heat": preprocessing.StandardScaler() | linear_model.LinearRegression(),
}


@pytest.mark.parametrize("target", MODELS)
def test_every_output_decodes_as_its_type_without_extra_fields(target):
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
    run_worker(pipeline, bus, SourceOptions(until_end=True))
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


def output_of(pipeline: Pipeline, bus: MemoryBus, limit: int) -> list[OutputRecords]:
    """What the flow hands to the sink, in batches of at most ``limit`` rows."""
    items: list[OutputRecords] = []

    class Recorder(WorkerMetrics):
        def on_written(self, outgoing: OutputRecords, now: float) -> None:
            items.append(outgoing)

    options = SourceOptions(until_end=True, limit=limit)
    run_worker(pipeline, bus, options, metrics=Recorder(pipeline.name))
    return items


@pytest.mark.parametrize("delayed", [False, True])
@pytest.mark.parametrize("partitions", [1, 3])
def test_every_output_is_recognised_by_its_source_key_however_the_stream_is_cut(
    delayed, partitions
):
    label = Verdict.target("hot", timeout="1h") if delayed else inline("hot")
    pipeline = Pipeline(
        name="readings",
        event=Reading,
        label=label,
        features=[field("size")],
        model=MODELS["hot"],
        monitors=[
            monitor("size", cooldown="0s"),
            monitor("loss", "PageHinkley", cooldown="0s", min_instances=3, threshold=0.1),
        ],
    )
    runs = []
    for limit in (1000, 7):
        bus = MemoryBus()
        publish_readings(pipeline, bus, partitions)
        runs.append((bus, output_of(pipeline, bus, limit)))
    (bus, _), (_, again) = runs
    provenance = Provenance.of(pipeline)
    topics = provenance.discriminators.keys()
    assert topics == set(pipeline.topics.outputs)
    before = {topic: bus.end_offsets(topic) for topic in topics}
    assert all(sum(ends) > 0 for ends in before.values())
    recovery = SinkRecovery({}, provenance, partial(codec_of, pipeline))
    sink = BusSink(bus, partitions, recovery=recovery)
    for number in range(partitions):
        part = sink.build_part("sink", part_name(number), None)
        part.write_batch([pickle.loads(pickle.dumps(i)) for i in again if i.partition == number])
        assert part.snapshot() == {topic: ends[number] for topic, ends in before.items()}
    assert {topic: bus.end_offsets(topic) for topic in topics} == before


def publish_readings(pipeline: Pipeline, bus: MemoryBus, partitions: int) -> None:
    """Publish events, labels and malformed messages."""
    bus.create_topics(dict.fromkeys(pipeline.inputs, partitions))
    publisher = bus.publisher()
    for i in range(900):
        partition, ts = i % partitions, 1_700_000_000_000 + i * 1000
        reading = Reading(
            id=str(i),
            ts=ts,
            size=float(i % 5 + (50 if i > 500 else 0)),
            hot=i % 2 == 0,
            kind="",
            heat=0,
        )
        sent = {pipeline.topics.events: [msgspec.json.encode(reading)]}
        if i % 50 == 9:
            sent[pipeline.topics.events] += [b"oops", msgspec.json.encode(reading)]
        if len(pipeline.inputs) > 1:
            verdict = Verdict(id=str(i - 5 if i % 40 else 10**6), ts=ts, hot=(i - 5) % 2 == 0)
            sent[pipeline.topics.labels] = [msgspec.json.encode(verdict)]
        for topic, values in sent.items():
            publisher.append(topic, values, partitions=partition, times=[ts] * len(values))
