"""Encodes results as messages for the output topics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.batch.batch import Batch, Bootstrap, RawBatch, RawRows
from anabranch.dataflows.batch.columns import take_rows
from anabranch.dataflows.batch.output_records import (
    OutputRecords,
    Provenance,
    SourceKey,
    SourceKeys,
)
from anabranch.dataflows.batch.results import Results
from anabranch.dataflows.batch.row_ids import event_id
from anabranch.dataflows.bus.headers import SOURCE, Headers, SourceHeaders, source_text
from anabranch.dataflows.codec import codec_of
from anabranch.dataflows.codec.protocol import PredictionEncoder
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.outputs import (
    Cause,
    DeadLetter,
    DriftSignal,
    Ranked,
    Ranking,
    RolloutMessage,
)
from anabranch.dataflows.sink.bus_sink import part_name
from anabranch.dataflows.sink.size_limits import encode_within, output_too_large
from anabranch.dataflows.telemetry.latency import LatencyMetrics
from anabranch.dataflows.telemetry.stream_log import StreamLog
from anabranch.models.learners.learner import NO_LABEL, Predictions, Task
from anabranch.models.metrics.ranking import EVENT
from anabranch.state.keys.text_column import Texts

_COMMON = [
    ("id", str),
    ("ts", int),
    ("topic", str),
    ("partition", int),
    ("offset", int),
    ("model", str),
    ("version", int),
]
_EXTRA: dict[Task, list[tuple[str, Any]]] = {
    Task.BINARY: [("prediction", bool | None), ("score", float | None)],
    Task.MULTICLASS: [("prediction", Any), ("probabilities", dict)],
    Task.REGRESSION: [("prediction", float | None)],
    Task.ANOMALY: [("prediction", float | None), ("score", float | None)],
}


_HEADER_BYTES = 60  # of the header with the coordinates, beside the topic's name
_Keyed = tuple[str, Results | Bootstrap]
_Encoded = tuple[str, OutputRecords]


class Encoder:
    """Makes `OutputRecords` of `Results`: predictions, drift signals, dead letters, decisions.

    A message goes to the partition number that its cause was read from.

    Args:
        pipeline: the pipeline whose outputs are written.
        partitions: how many partitions the outputs have.
        latency: measures how long encoding takes.
        log: logs dead letters, drift signals and decisions.
        max_bytes: output topic → the largest message that it takes; where it is not given, any.
        on_dead_letters: called with the dead letters that are made here.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        partitions: int = 1,
        latency: LatencyMetrics | None = None,
        log: StreamLog | None = None,
        max_bytes: Mapping[str, int] | None = None,
        on_dead_letters: Callable[[list[DeadLetter]], None] | None = None,
    ) -> None:
        # A broker counts the header as well.
        header = max(map(len, pipeline.inputs)) + _HEADER_BYTES
        self._max_bytes = {topic: most - header for topic, most in (max_bytes or {}).items()}
        self._on_dead_letters = on_dead_letters
        self._latency = latency
        self._log = log or StreamLog(pipeline.topics.dead_letters)
        topics = pipeline.topics
        self._partitions = partitions
        self._predictions_topic = topics.predictions
        self._has_one_topic = len(topics.all_events) == 1
        self._dead_letters, self._drift = topics.dead_letters, topics.drift
        self._rollouts = topics.rollouts
        self._provenance = Provenance.of(pipeline)
        self._task = pipeline.task
        self._model = pipeline.model_name
        self._candidates = pipeline.candidates or ""
        self._names = pipeline.columns if pipeline.with_features else None
        fields = _COMMON + _EXTRA[pipeline.task]
        if self._names:
            fields = [*fields, ("features", dict)]
        codec = codec_of(pipeline, topics.predictions)
        self._encode_all = codec.encode_all
        self._fast: dict[str, PredictionEncoder] = {}  # by the topic of the events
        if not self._names and not self._candidates:
            for each in topics.all_events:
                fast = codec.prediction_encoder(self._task, each, self._model)
                if fast is not None:
                    self._fast[each] = fast
        self._encoders = {
            topic: codec_of(pipeline, topic).encode for topic in self._provenance.discriminators
        }
        # A prediction without features is its id, names, and numbers of 25 characters each.
        self._overhead = 400 + max(map(len, topics.all_events)) + len(self._model)
        self._row = msgspec.defstruct("Prediction", fields, gc=False)
        fields = [*fields, ("instead_of", str | None, None)]
        self._row_instead = msgspec.defstruct("Prediction", fields, gc=False, omit_defaults=True)

    def __call__(self, results: list[_Keyed]) -> list[_Encoded]:
        """Encode what the model step emitted, for `BusSink`."""
        latency = self._latency
        if latency is None or not latency.timed:
            return self._encode_results(results)
        began = time.perf_counter()
        encoded = self._encode_results(results)
        latency.spent("encode", began)
        return encoded

    def _encode_results(self, results: list[_Keyed]) -> list[_Encoded]:
        if len(results) == 1:
            return self._encode(results[0][1])
        return [item for _, result in results for item in self._encode(result)]

    def _bootstrap(self) -> list[_Encoded]:
        """An item without messages for every partition."""
        return [
            (part_name(number), OutputRecords(number, {})) for number in range(self._partitions)
        ]

    def _encode(self, result: Results | Bootstrap) -> list[_Encoded]:
        if isinstance(result, Bootstrap):
            return self._bootstrap()
        batch = result.batch
        partition = batch.rows.partition
        outgoing: dict[int, OutputRecords] = {}
        oversized: list[DeadLetter] = []
        if not batch.rows.values:
            pass
        elif partition is None:
            self._divide(result, outgoing, oversized)
        else:
            rows = self._encode_predictions(result, partition)
            item = self._item(partition, rows, result, slice(None), oversized)
            if not (
                batch.dead_letters
                or result.dead_letters
                or result.signals
                or result.decisions
                or oversized
            ):
                return [(part_name(partition), item)]
            outgoing[partition] = item
        if result.signals:
            self._log.signals(result.signals)
            self._add(outgoing, self._drift, result.signals, batch, oversized)
        if result.decisions:
            self._log.decisions(result.decisions)
            self._add(outgoing, self._rollouts, result.decisions, batch, oversized)
        if batch.dead_letters or result.dead_letters or oversized:
            letters = batch.raw.sorted(batch.dead_letters + result.dead_letters)
            letters += oversized
            self._log.dead_letters(letters)
            self._add(outgoing, self._dead_letters, letters, batch, oversized)
            if oversized and self._on_dead_letters is not None:
                self._on_dead_letters(oversized)
        return [(part_name(partition), item) for partition, item in outgoing.items()]

    def _item(
        self,
        partition: int,
        rows: list[bytes],
        result: Results,
        own: NDArray[np.int64] | slice,
        oversized: list[DeadLetter],
    ) -> OutputRecords:
        """The predictions for one partition, ``own`` of the batch; oversized ones are left out."""
        topic, raw = self._predictions_topic, result.batch.raw
        sources, event_times = _sources(result)
        most, message_keys = self._max_bytes.get(topic), _keys_of(sources, own)
        longest = max(map(len, filter(None, message_keys)), default=0) if message_keys else 0
        if (
            most is not None
            and self._may_exceed(most - longest, result)
            and max(map(len, rows), default=0) + longest > most
        ):
            sizes = np.fromiter(map(len, rows), np.int64, len(rows))
            if message_keys is not None:
                sizes += np.array([len(key or b"") for key in message_keys])
            indices = np.arange(len(sources))[own]
            for row in np.flatnonzero(sizes > most).tolist():
                index = int(indices[row])
                cause = Cause(sources.topic_of(index), partition, int(sources.offsets[index]))
                oversized.append(
                    output_too_large(cause, topic, int(sizes[row]), most, sources.values[index])
                )
            kept = np.flatnonzero(sizes <= most)
            rows, own = [rows[row] for row in kept.tolist()], indices[kept]
            message_keys = _keys_of(sources, own)
        messages = {topic: rows} if rows else {}
        offsets = sources.offsets[own]
        source_keys: SourceKeys = offsets
        headers: Headers = SourceHeaders(sources.topic, partition, offsets)
        if not self._has_one_topic:
            rows_of = np.arange(len(sources))[own].tolist()
            places = [(sources.topic_of(n), int(sources.offsets[n])) for n in rows_of]
            source_keys = [(of, offset, ()) for of, offset in places]
            headers = [[(SOURCE, source_text(of, partition, offset))] for of, offset in places]
        return OutputRecords(
            partition, messages, sources.times[own], raw.read_at, {topic: source_keys}, raw,
            event_times[own],
            {} if message_keys is None else {topic: message_keys},
            {topic: headers},
        )  # fmt: skip

    def _may_exceed(self, most: int, result: Results) -> bool:
        """Whether a prediction may be larger than ``most``; cheaper than to measure each."""
        ids = result.batch.ids
        if not self._fast or result.models is not None or type(ids) is not Texts:
            return True
        return len(ids.blob) + self._overhead > most

    def _divide(
        self, result: Results, outgoing: dict[int, OutputRecords], oversized: list[DeadLetter]
    ) -> None:
        """Add the predictions for a batch whose events are from several partitions."""
        partitions = _sources(result)[0].partitions
        rows = self._predictions(result, result.batch.partitions.tolist())
        for partition in np.unique(partitions).tolist():
            own = np.flatnonzero(partitions == partition)
            own_rows = [rows[row] for row in own.tolist()]
            outgoing[partition] = self._item(partition, own_rows, result, own, oversized)

    def _add(
        self,
        outgoing: dict[int, OutputRecords],
        topic: str,
        messages: Sequence[DeadLetter | DriftSignal | RolloutMessage],
        batch: Batch,
        oversized: list[DeadLetter],
    ) -> None:
        encode, most = self._encoders[topic], self._max_bytes.get(topic)
        keys: dict[int, list[SourceKey]] = {}
        for message in messages:
            partition = message.cause.partition
            key = _key_of(batch.raw, message)
            room = most if most is None or key is None else most - len(key)
            if isinstance(message, DeadLetter):
                if room is not None and most is not None and room < most // 2:
                    key, room = None, most  # of the letter more is left without it
                payload = encode_within(message, encode, room)
            else:
                payload = encode(message)
                if room is not None and most is not None and len(payload) > room:
                    oversized.append(output_too_large(message.cause, topic, len(payload), most))
                    continue
            item = outgoing.get(partition)
            if item is None:
                item = outgoing[partition] = OutputRecords(partition, {}, sources=batch.raw)
            item.messages.setdefault(topic, []).append(payload)
            headers = item.headers.setdefault(topic, [])
            message_keys = item.keys.setdefault(topic, [])
            assert isinstance(headers, list)
            assert isinstance(message_keys, list)
            place = source_text(message.topic, message.partition, message.offset)
            headers.append([(SOURCE, place)])
            message_keys.append(key)
            keys.setdefault(partition, []).append(self._provenance.source_key(topic, message))
        for partition, own in keys.items():
            outgoing[partition].source_keys[topic] = own

    def _encode_predictions(self, result: Results, partition: int) -> list[bytes]:
        """The predictions for events of one partition."""
        batch, ids = result.batch, result.batch.ids
        rows = batch.rows
        of_one = result.models is None and rows.topic_numbers is None
        fast = self._fast.get(rows.topic) if of_one else None
        if fast is None or type(ids) is not Texts or not ids.plain:
            return self._predictions(result, repeat(partition))
        offsets, versions = batch.rows.offsets, result.versions
        return fast.encode(ids, batch.times, offsets, partition, versions, result.predictions)

    def _predictions(self, result: Results, partitions: Iterable[int]) -> list[bytes]:
        if result.ranks is not None:
            return self._rankings(result)
        batch = result.batch
        columns: list[Iterable[Any]] = [
            batch.ids,
            batch.times.tolist(),
            batch.rows.topics_of_rows(),
            partitions,
            batch.rows.offsets.tolist(),
            repeat(self._model) if result.models is None else result.models,
            result.versions,
            *_prediction_columns(self._task, result.predictions),
        ]
        if self._names:
            columns.append(
                [dict(zip(self._names, r, strict=True)) for r in batch.features.tolist()]
            )
        row = self._row
        if result.instead_of is not None:
            row = self._row_instead
            columns.append(result.instead_of)
        return self._encode_all(list(map(row, *columns)))

    def _rankings(self, result: Results) -> list[bytes]:
        """A message per event, with its candidates in the order of their ranks."""
        batch, ranks = result.batch, result.ranks
        assert ranks is not None
        first = first_rows(batch)
        order = np.lexsort((ranks, batch.columns[EVENT])).tolist()
        items = batch.columns[self._candidates]
        scores = _prediction_columns(self._task, result.predictions)[-1]
        models, names = result.models, self._names
        features = batch.features.tolist() if names else []
        entries = [
            Ranked(
                items[row],
                scores[row],
                self._model if models is None else models[row],
                dict(zip(names, features[row], strict=True)) if names else None,
            )
            for row in order
        ]
        ends = [*first[1:].tolist(), len(batch)]
        versions = result.versions
        rankings = [
            Ranking(
                event_id(batch.ids[start]), int(batch.times[start]), batch.rows.topic_of(start),
                int(batch.partitions[start]), int(batch.offsets[start]),
                "+".join(dict.fromkeys(each.ranker for each in entries[start:end])),
                versions[start], entries[start:end],
            )
            for start, end in zip(first.tolist(), ends, strict=True)
        ]  # fmt: skip
        return self._encode_all(rankings)


def _keys_of(rows: RawRows, own: NDArray[np.int64] | slice) -> Sequence[bytes | None] | None:
    """The keys of ``own`` of the messages; None if none has one."""
    keys = rows.keys
    if keys is None or (type(keys) is list and keys.count(None) == len(keys)):
        return None
    return keys[own] if isinstance(own, slice) else take_rows(keys, own)


def _key_of(raw: RawBatch, message: DeadLetter | DriftSignal | RolloutMessage) -> bytes | None:
    """The key of the message that ``message`` is about, if it is in this batch."""
    for rows in (raw.events, raw.labels):
        if rows.keys is None or message.topic not in (rows.topics or (rows.topic,)):
            continue
        at = (rows.offsets == message.offset) & (rows.partitions == message.partition)
        for row in np.flatnonzero(at).tolist():
            if rows.topic_of(row) == message.topic:
                return rows.keys[row]
    return None


def _sources(result: Results) -> tuple[RawRows, NDArray[np.int64]]:
    """The row that each message was made of, and the time of its event."""
    batch = result.batch
    if result.ranks is None:
        return batch.rows, batch.times
    first = first_rows(batch)
    return batch.rows.take(first), batch.times[first]


def first_rows(batch: Batch) -> NDArray[np.int64]:
    """The first row of each event of a ranking, `(events,) int64`."""
    events = batch.columns[EVENT]
    return np.flatnonzero(np.r_[True, events[1:] != events[:-1]][: len(events)])


def _prediction_columns(task: Task, predictions: Predictions) -> list[list[Any]]:
    values = predictions.values
    if task is Task.MULTICLASS:
        return [list(predictions.labels), [{str(k): p for k, p in each.items()} for each in values]]
    scores: list[Any] = values.tolist()
    total = sum(scores)
    complete = total == total
    if not complete:  # NaN: a row without a prediction
        scores = [None if score != score else score for score in scores]
    if task is not Task.BINARY:
        return [scores, scores] if task is Task.ANOMALY else [scores]
    if predictions.labels is not None:
        return [[_BINARY_VALUE[label] for label in predictions.labels.tolist()], scores]
    if complete:
        return [[score > 0.5 for score in scores], scores]
    return [[None if score is None else score > 0.5 for score in scores], scores]


_BINARY_VALUE = {0: False, 1: True, NO_LABEL: None}
