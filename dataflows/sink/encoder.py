"""Columns to bytes: what the model step made, as messages for the output topics."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.batch.batch import Batch, RawRows, Wake
from anabranch.dataflows.batch.outgoing import Mark, Marking, Outgoing
from anabranch.dataflows.batch.row_ids import event_id
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.outputs import (
    DeadLetter,
    DriftSignal,
    Ranked,
    Ranking,
    RolloutMessage,
)
from anabranch.dataflows.sink.bus_sink import part_name
from anabranch.dataflows.sink.json_encoder import LineWriter
from anabranch.dataflows.telemetry.latency import LatencyMetrics
from anabranch.dataflows.telemetry.stream_log import StreamLog
from anabranch.models.learners.learner import NO_LABEL, Predictions, Task
from anabranch.models.metrics.ranking import EVENT
from anabranch.models.prequential.outcome import CorrectedLabels, LearnedLabels
from anabranch.state.keys.text_column import Texts


class Results(msgspec.Struct):
    """What the model step made of a batch.

    ``predictions`` and ``versions`` have one entry per event. ``learned`` and ``corrected`` are the
    labels of a topic of their own that were used; their tags say which event they are of, counted
    from the start of the process. ``models`` has who served each event, None where all were served
    by the pipeline's own model; ``instead_of`` whom it stood in for, None where nobody failed.
    ``ranks`` has where each candidate of a ranking stands, from 1.
    """

    batch: Batch
    predictions: Predictions
    versions: Sequence[int]
    dead: list[DeadLetter] = msgspec.field(default_factory=list)
    signals: list[DriftSignal] = msgspec.field(default_factory=list)
    learned: LearnedLabels | None = None
    corrected: CorrectedLabels | None = None
    decisions: list[RolloutMessage] = msgspec.field(default_factory=list)
    models: Sequence[str] | None = None
    instead_of: Sequence[str | None] | None = None
    ranks: NDArray[np.int64] | None = None


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


class Encoder:
    """Makes `Outgoing` items of `Results`: predictions, drift signals, dead letters, decisions.

    A message goes to the partition number that its cause was read from; there are ``partitions``.
    ``latency`` is told how long it took, ``log`` of what is set aside, signalled and decided.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        partitions: int = 1,
        latency: LatencyMetrics | None = None,
        log: StreamLog | None = None,
    ) -> None:
        self._latency = latency
        self._log = log or StreamLog(pipeline.topics.dead_letters)
        topics = pipeline.topics
        self._partitions = partitions
        self._events, self._predicted = topics.events, topics.predictions
        self._dead_letters, self._drift = topics.dead_letters, topics.drift
        self._rollouts = topics.rollouts
        self._marking = Marking.of(pipeline)
        self._task = pipeline.task
        self._model = pipeline.model_name
        self._candidates = pipeline.candidates or ""
        self._names = pipeline.columns if pipeline.with_features else None
        fields = _COMMON + _EXTRA[pipeline.task]
        if self._names:
            fields = [*fields, ("features", dict)]
        self._lines: LineWriter | None = None
        if self._task is not Task.MULTICLASS and not self._names and not self._candidates:
            self._lines = LineWriter(self._task, self._events, self._model)
        self._row = msgspec.defstruct("Prediction", fields, gc=False)
        fields = [*fields, ("instead_of", str | None, None)]
        self._row_instead = msgspec.defstruct("Prediction", fields, gc=False, omit_defaults=True)
        self._encoder = msgspec.json.Encoder()

    def __call__(self, results: list[tuple[str, Results | Wake]]) -> list[tuple[str, Outgoing]]:
        """Encode what the model step handed over, for `BusSink`."""
        latency = self._latency
        if latency is None or not latency.timed:
            return self._encode_all(results)
        began = time.perf_counter()
        made = self._encode_all(results)
        latency.spent("encode", began)
        return made

    def _encode_all(self, results: list[tuple[str, Results | Wake]]) -> list[tuple[str, Outgoing]]:
        if len(results) == 1:
            return self._encode(results[0][1])
        return [item for _, result in results for item in self._encode(result)]

    def _wake(self) -> list[tuple[str, Outgoing]]:
        """Nothing for every partition."""
        return [(part_name(number), Outgoing(number, {})) for number in range(self._partitions)]

    def _encode(self, result: Results | Wake) -> list[tuple[str, Outgoing]]:
        if isinstance(result, Wake):
            return self._wake()
        batch = result.batch
        partition = batch.rows.partition
        outgoing: dict[int, Outgoing] = {}
        if not batch.rows.values:
            pass
        elif partition is None:
            self._divide(result, outgoing)
        else:
            topic, rows = self._predicted, self._lines_of(result, partition)
            (sources, event_times), read_at = _sources(result), batch.raw.read_at
            times, offsets = sources.times, sources.offsets
            item = Outgoing(
                partition, {topic: rows}, times, read_at, {topic: offsets}, batch.raw, event_times
            )
            if not (batch.dead or result.dead or result.signals or result.decisions):
                return [(part_name(partition), item)]
            outgoing[partition] = item
        if batch.dead or result.dead:
            letters = batch.raw.sorted(batch.dead + result.dead)
            self._log.dead_letters(letters)
            self._add(outgoing, self._dead_letters, letters, batch)
        if result.signals:
            self._log.signals(result.signals)
            self._add(outgoing, self._drift, result.signals, batch)
        if result.decisions:
            self._log.decisions(result.decisions)
            self._add(outgoing, self._rollouts, result.decisions, batch)
        return [(part_name(partition), item) for partition, item in outgoing.items()]

    def _divide(self, result: Results, outgoing: dict[int, Outgoing]) -> None:
        """The predictions of a batch whose events are from several partitions."""
        batch, topic = result.batch, self._predicted
        sources, event_times = _sources(result)
        partitions = sources.partitions
        rows = self._predictions(result, batch.partitions.tolist())
        for partition in np.unique(partitions).tolist():
            places = np.flatnonzero(partitions == partition)
            outgoing[partition] = Outgoing(
                partition,
                {topic: [rows[place] for place in places.tolist()]},
                sources.times[places],
                batch.raw.read_at,
                {topic: sources.offsets[places]},
                batch.raw,
                event_times[places],
            )

    def _add(
        self,
        outgoing: dict[int, Outgoing],
        topic: str,
        messages: Sequence[DeadLetter | DriftSignal | RolloutMessage],
        batch: Batch,
    ) -> None:
        marks: dict[int, list[Mark]] = {}
        for message in messages:
            partition = message.cause.partition
            item = outgoing.get(partition)
            if item is None:
                item = outgoing[partition] = Outgoing(partition, {}, sources=batch.raw)
            item.messages.setdefault(topic, []).append(self._encoder.encode(message))
            marks.setdefault(partition, []).append(self._marking.mark(topic, message))
        for partition, own in marks.items():
            outgoing[partition].marks[topic] = own

    def _lines_of(self, result: Results, partition: int) -> list[bytes]:
        """The predictions on events of one partition."""
        batch, ids = result.batch, result.batch.ids
        lines = self._lines if result.models is None else None
        if lines is None or type(ids) is not Texts or not ids.plain:
            return self._predictions(result, repeat(partition))
        offsets, versions = batch.rows.offsets, result.versions
        return lines.write(ids, batch.times, offsets, partition, versions, result.predictions)

    def _predictions(self, result: Results, partitions: Iterable[int]) -> list[bytes]:
        if result.ranks is not None:
            return self._rankings(result)
        batch = result.batch
        columns: list[Iterable[Any]] = [
            batch.ids,
            batch.times.tolist(),
            repeat(self._events),
            partitions,
            batch.rows.offsets.tolist(),
            repeat(self._model) if result.models is None else result.models,
            result.versions,
            *_answers(self._task, result.predictions),
        ]
        if self._names:
            columns.append(
                [dict(zip(self._names, r, strict=True)) for r in batch.features.tolist()]
            )
        row = self._row
        if result.instead_of is not None:
            row = self._row_instead
            columns.append(result.instead_of)
        lines = self._encoder.encode_lines(list(map(row, *columns))).split(b"\n")
        lines.pop()  # what stands behind the last line's end
        return lines

    def _rankings(self, result: Results) -> list[bytes]:
        """A line per event, with its candidates in the order of their ranks."""
        batch, ranks = result.batch, result.ranks
        assert ranks is not None
        first = first_rows(batch)
        order = np.lexsort((ranks, batch.columns[EVENT])).tolist()
        items = batch.columns[self._candidates]
        scores = _answers(self._task, result.predictions)[-1]
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
                event_id(batch.ids[start]), int(batch.times[start]), self._events,
                int(batch.partitions[start]), int(batch.offsets[start]),
                "+".join(dict.fromkeys(each.ranker for each in entries[start:end])),
                versions[start], entries[start:end],
            )
            for start, end in zip(first.tolist(), ends, strict=True)
        ]  # fmt: skip
        lines = self._encoder.encode_lines(rankings).split(b"\n")
        lines.pop()
        return lines


def _sources(result: Results) -> tuple[RawRows, NDArray[np.int64]]:
    """What each message was read from, and the time of its event."""
    batch = result.batch
    if result.ranks is None:
        return batch.rows, batch.times
    first = first_rows(batch)
    return batch.rows.take(first), batch.times[first]


def first_rows(batch: Batch) -> NDArray[np.int64]:
    """`(events,) int64`: of a ranking, the first row of each event that has one."""
    events = batch.columns[EVENT]
    return np.flatnonzero(np.r_[True, events[1:] != events[:-1]][: len(events)])


def _answers(task: Task, predictions: Predictions) -> list[list[Any]]:
    values = predictions.values
    if task is Task.MULTICLASS:
        return [list(predictions.labels), [{str(k): p for k, p in each.items()} for each in values]]
    scores: list[Any] = values.tolist()
    total = sum(scores)
    whole = total == total
    if not whole:  # NaN: a row without an answer
        scores = [None if score != score else score for score in scores]
    if task is not Task.BINARY:
        return [scores, scores] if task is Task.ANOMALY else [scores]
    if predictions.labels is not None:
        return [[_BINARY_ANSWER[label] for label in predictions.labels.tolist()], scores]
    if whole:
        return [[score > 0.5 for score in scores], scores]
    return [[None if score is None else score > 0.5 for score in scores], scores]


_BINARY_ANSWER = {0: False, 1: True, NO_LABEL: None}
