"""What the model step made of batches, as the columns of training rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anabranch.dataflows.batch.columns import concat_rows
from anabranch.dataflows.batch.results import Results
from anabranch.dataflows.batch.typed_rows import FrameTexts
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.declaration.schema import Schema
from anabranch.dataflows.messages.inputs import Delayed
from anabranch.dataflows.replay.features_only import FeaturesOnly
from anabranch.models.learners.learner import NO_LABEL, Predictions, Task

FIXED = (
    *("id", "ts", "topic", "partition", "offset", "model", "version", "prediction"),
    *("score", "probabilities", "label", "label_ts", "label_delay_ms", "label_origin"),
)
"""The columns that are not features, by the names that they have if no feature is called so."""

LABEL_ORIGINS = ("label", "assumed", "corrected")
"""Where a row's label is from: a label, the end of its wait, or a label that corrected another."""

_PROBABILITIES = pl.List(pl.Struct({"class": pl.String, "probability": pl.Float64}))


class RowColumns:
    """Names and types of the columns of a pipeline's training rows.

    A feature has its own name, as it is served; where that is the name of another column, the other
    one gets an underscore at its end. Where nothing was ``predicted`` there is no word of a model.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.features = pipeline.columns
        self.predicted = not isinstance(pipeline, FeaturesOnly)
        taken = set(self.features)
        self._names = {}
        for name in FIXED:
            free = name
            while free in taken:
                free += "_"
            self._names[name] = free
        self.task = pipeline.task
        self.several = self.task is Task.MULTICLASS
        self.answer = _answer_type(pipeline)

    def name(self, fixed: str) -> str:
        """What one of `FIXED` is called here."""
        return self._names[fixed]

    def labels(self, values: Any, times: Any, delays: Any, origins: Any) -> list[pl.Series]:
        """The columns of labels; ``times`` and ``delays`` are in ms. All null where there is none.

        ``origins`` are of `LABEL_ORIGINS`.
        """
        if self.answer is pl.Boolean and isinstance(values, list):
            # A target of 0 and 1.
            values = [None if value is None else bool(value) for value in values]
        return [
            pl.Series(self.name("label"), values, dtype=self.answer),
            pl.Series(self.name("label_ts"), times, dtype=pl.Int64),
            pl.Series(self.name("label_delay_ms"), delays, dtype=pl.Int64),
            pl.Series(self.name("label_origin"), origins, dtype=pl.String),
        ]

    def inline_labels(self, values: Any, times: pl.Series) -> list[pl.Series]:
        """The columns of labels that came with their events, at these times (epoch ms)."""
        if isinstance(values, np.ndarray):
            origins: Any = pl.repeat(LABEL_ORIGINS[0], len(values), eager=True)
            if values.dtype == np.float64 and (null := np.isnan(values)).any():
                values = pl.Series(values, nan_to_null=True)
                origins = origins.zip_with(pl.Series(~null), pl.Series([None], dtype=pl.String))
            elif self.answer is pl.Boolean:
                values = values != 0
        else:
            values = list(values)
            origins = [None if value is None else LABEL_ORIGINS[0] for value in values]
        return self.labels(values, times, times - times, origins)

    def answers(self, predictions: list[Predictions]) -> list[pl.Series]:
        """The columns of predictions, of some batches one after the other."""
        prediction = self.name("prediction")
        if self.several:
            labels = [label for each in predictions for label in each.labels]
            chances = [
                [{"class": str(label), "probability": p} for label, p in row.items()]
                for each in predictions
                for row in each.values
            ]
            return [
                pl.Series(prediction, labels, dtype=self.answer, strict=False),
                pl.Series(self.name("probabilities"), chances, dtype=_PROBABILITIES),
            ]
        values = np.concatenate([each.values for each in predictions])
        scores = pl.Series(self.name("score"), values, nan_to_null=True)
        if self.task is not Task.BINARY:
            own = scores.alias(prediction)
            return [own, scores] if self.task is Task.ANOMALY else [own]
        binary = np.concatenate([each.binary_labels() for each in predictions])
        answers = pl.Series(prediction, binary == 1)
        if (binary == NO_LABEL).any():
            answers = answers.zip_with(pl.Series(binary != NO_LABEL), pl.Series([None]))
        return [answers, scores]


def _answer_type(pipeline: Pipeline) -> Any:
    """The type of the columns ``prediction`` and ``label``."""
    if pipeline.task is not Task.MULTICLASS:
        return pl.Boolean if pipeline.task is Task.BINARY else pl.Float64
    label = pipeline.label
    fields = Schema.of(label.type).fields if isinstance(label, Delayed) else pipeline.schema.fields
    field = fields[label.field] if label is not None else None
    if field is None or field.kind in ("text", "other"):
        return pl.String
    if field.kind == "boolean":
        return pl.Boolean
    return pl.Int64 if field.integer else pl.Float64


@dataclass(slots=True)
class _Piece:
    """The events of one batch, or some of them: what is of a row beside its features."""

    ids: Sequence[str]
    times: NDArray[np.int64]
    partitions: NDArray[np.int64]
    offsets: NDArray[np.int64]
    targets: Any
    versions: NDArray[np.int64]
    predictions: Predictions
    models: Sequence[str] | None

    def __len__(self) -> int:
        return len(self.times)

    def cut(self, start: int, stop: int) -> _Piece:
        """Only the rows from ``start`` up to ``stop``."""
        rows = slice(start, stop)
        return _Piece(
            self.ids[rows],
            self.times[rows],
            self.partitions[rows],
            self.offsets[rows],
            None if self.targets is None else self.targets[rows],
            self.versions[rows],
            self.predictions.take(np.arange(start, stop)),
            None if self.models is None else self.models[rows],
        )


class Rows:
    """Rows that were made, in order: ``features`` is ``(columns, room) float64``."""

    def __init__(self, columns: int, room: int) -> None:
        self.features = np.empty((columns, room))
        self.pieces: list[_Piece] = []
        self.count = 0

    def add(self, piece: _Piece, features: NDArray[np.float64]) -> None:
        """Take as many rows as there are in ``piece``, whose features are given, row by row."""
        # Turned now, while they are in the cache, and a batch's own memory is free again.
        self.features[:, self.count : self.count + len(piece)] = features.T
        self.pieces.append(piece)
        self.count += len(piece)


class RowBuilder:
    """Collects the events of batches, ``most`` at a time, and makes frames of them.

    Frames have all columns but those of labels that come on a topic of their own.
    """

    def __init__(self, pipeline: Pipeline, columns: RowColumns, most: int) -> None:
        self._columns = columns
        self._topic = pipeline.topics.events
        self._model = pipeline.model_name
        self._most = most
        self._rows: Rows | None = None

    def add(self, results: Results) -> Iterator[Rows]:
        """Take the events of a batch; gives rows whenever there are enough."""
        batch = results.batch
        whole = _Piece(
            batch.ids,
            batch.times,
            batch.partitions,
            batch.offsets,
            batch.targets,
            _integers(results.versions),
            results.predictions,
            results.models,
        )
        start, end = 0, len(batch)
        while start < end:
            rows = self._rows or Rows(len(self._columns.features), self._most)
            stop = min(start + self._most - rows.count, end)
            piece = whole if stop - start == end else whole.cut(start, stop)
            rows.add(piece, batch.features[start:stop])
            start = stop
            full = rows.count == self._most
            self._rows = None if full else rows
            if full:
                yield rows

    def rest(self) -> Rows | None:
        """What is left, if there is anything."""
        return self._rows

    def frame(self, rows: Rows) -> pl.DataFrame:
        """The columns of rows, at least one. From any thread."""
        name, pieces = self._columns.name, rows.pieces

        def array(of: str) -> Any:
            return np.concatenate([getattr(piece, of) for piece in pieces])

        times = pl.Series(name("ts"), array("times"))
        features = rows.features[:, : rows.count]
        columns = [
            _texts(concat_rows([piece.ids for piece in pieces])).alias(name("id")),
            times,
            pl.repeat(self._topic, len(times), eager=True).alias(name("topic")),
            pl.Series(name("partition"), array("partitions")),
            pl.Series(name("offset"), array("offsets")),
            *map(pl.Series, self._columns.features, features),
        ]
        if self._columns.predicted:
            columns += [
                self._models(pieces, len(times)).alias(name("model")),
                pl.Series(name("version"), array("versions")),
                *self._columns.answers([piece.predictions for piece in pieces]),
            ]
        if pieces[0].targets is not None:
            labels = concat_rows([piece.targets for piece in pieces])
            columns += self._columns.inline_labels(labels, times)
        return pl.DataFrame(columns)

    def _models(self, pieces: list[_Piece], rows: int) -> pl.Series:
        """Who served each event."""
        if all(piece.models is None for piece in pieces):
            return pl.repeat(self._model, rows, eager=True)
        models = [piece.models or repeat(self._model, len(piece)) for piece in pieces]
        return pl.Series(list(chain.from_iterable(models)), dtype=pl.String)


def _texts(values: Sequence[str]) -> pl.Series:
    return values.series if isinstance(values, FrameTexts) else pl.Series(values, dtype=pl.String)


def _integers(values: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    if isinstance(values, range):
        return np.arange(values.start, values.stop, values.step)
    return np.asarray(values, np.int64)
