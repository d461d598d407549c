"""Columns to bytes: what the model step made, as messages for the output topics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from dataflows.batch import Batch, Wake
from dataflows.messages import DeadLetter, DriftSignal
from dataflows.pipeline import Pipeline
from dataflows.sink.bus_sink import part_name
from dataflows.sink.outgoing import Mark, Marking, Outgoing
from models.learner import NO_LABEL, Predictions, Task


@dataclass(slots=True)
class Results:
    """What the model step made of a batch.

    ``predictions`` has one entry per event, ``versions`` is ``(n,) int64``.
    """

    batch: Batch
    predictions: Predictions
    versions: NDArray[np.int64]
    dead: list[DeadLetter] = field(default_factory=list)
    signals: list[DriftSignal] = field(default_factory=list)


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
    """Makes `Outgoing` items of `Results`: predictions, drift signals and dead letters.

    A message goes to the partition number that its cause was read from; there are ``partitions``.
    """

    def __init__(self, pipeline: Pipeline, partitions: int = 1) -> None:
        topics = pipeline.topics
        self._partitions = partitions
        self._events, self._predicted = topics.events, topics.predictions
        self._dead_letters, self._drift = topics.dead_letters, topics.drift
        self._marking = Marking.of(pipeline)
        self._task = pipeline.task
        self._model = pipeline.model_name
        self._names = pipeline.columns if pipeline.with_features else None
        fields = _COMMON + _EXTRA[pipeline.task]
        if self._names:
            fields = [*fields, ("features", dict)]
        self._row = msgspec.defstruct("Prediction", fields, gc=False)
        self._encoder = msgspec.json.Encoder()

    def __call__(self, results: list[tuple[str, Results | Wake]]) -> list[tuple[str, Outgoing]]:
        """Encode what the model step handed over, for `BusSink`."""
        return [item for _, result in results for item in self._encode(result)]

    def _wake(self) -> list[tuple[str, Outgoing]]:
        """Nothing for every partition."""
        return [(part_name(number), Outgoing(number, {})) for number in range(self._partitions)]

    def _encode(self, result: Results | Wake) -> list[tuple[str, Outgoing]]:
        if isinstance(result, Wake):
            return self._wake()
        batch = result.batch
        outgoing: dict[int, Outgoing] = {}
        rows = self._predictions(result) if batch.ids else []
        if rows:
            for partition, places in _by_partition(batch):
                own, published, offsets = rows, batch.published, batch.offsets
                if places is not None:
                    own = [rows[place] for place in places.tolist()]
                    published, offsets = published[places], offsets[places]
                outgoing[partition] = Outgoing(
                    partition,
                    {self._predicted: own},
                    published,
                    batch.read_at,
                    {self._predicted: offsets},
                    batch.sources,
                )
        if batch.dead or result.dead:
            letters = batch.sources.sorted(batch.dead + result.dead)
            self._add(outgoing, self._dead_letters, letters, batch)
        if result.signals:
            self._add(outgoing, self._drift, result.signals, batch)
        return [(part_name(partition), item) for partition, item in outgoing.items()]

    def _add(
        self,
        outgoing: dict[int, Outgoing],
        topic: str,
        messages: Sequence[DeadLetter | DriftSignal],
        batch: Batch,
    ) -> None:
        marks: dict[int, list[Mark]] = {}
        for message in messages:
            partition = message.cause.partition
            item = outgoing.get(partition)
            if item is None:
                item = outgoing[partition] = Outgoing(partition, {}, sources=batch.sources)
            item.messages.setdefault(topic, []).append(self._encoder.encode(message))
            marks.setdefault(partition, []).append(self._marking.mark(topic, message))
        for partition, own in marks.items():
            outgoing[partition].marks[topic] = own

    def _predictions(self, result: Results) -> list[bytes]:
        batch = result.batch
        partition = batch.partition
        columns: list[Iterable[Any]] = [
            batch.ids,
            batch.times.tolist(),
            repeat(self._events),
            batch.partitions.tolist() if partition is None else repeat(partition),
            batch.offsets.tolist(),
            repeat(self._model),
            result.versions.tolist(),
            *_answers(self._task, result.predictions),
        ]
        if self._names:
            columns.append(
                [dict(zip(self._names, r, strict=True)) for r in batch.features.tolist()]
            )
        return self._encoder.encode_lines(list(map(self._row, *columns)))[:-1].split(b"\n")


def _answers(task: Task, predictions: Predictions) -> list[list[Any]]:
    values = predictions.values
    if task is Task.MULTICLASS:
        return [list(predictions.labels), [{str(k): p for k, p in each.items()} for each in values]]
    scores: list[float | None] = values.tolist()
    if task is not Task.BINARY:
        scores = [None if score != score else score for score in scores]
        return [scores, scores] if task is Task.ANOMALY else [scores]
    if predictions.labels is None:
        answers = [None if p != p else p > 0.5 for p in scores]  # type: ignore[operator]
    else:
        answers = [_BINARY_ANSWER[label] for label in predictions.labels.tolist()]
    if None in answers:
        scores = [None if score != score else score for score in scores]
    return [answers, scores]


_BINARY_ANSWER = {0: False, 1: True, NO_LABEL: None}


def _by_partition(batch: Batch) -> list[tuple[int, NDArray[np.int64] | None]]:
    """The partitions of a batch's events, and their rows; None: all."""
    if batch.partition is not None:
        return [(batch.partition, None)]
    partitions = batch.partitions
    return [(p, np.flatnonzero(partitions == p)) for p in np.unique(partitions).tolist()]
