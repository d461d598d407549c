"""Makes Parquet columns of training rows out of the results of the model step."""

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
"""Names of the columns that are not features; see `RowColumns` for clashes with features."""

LABEL_ORIGINS = ("label", "assumed", "corrected")
"""Where a row's label comes from: a label, the default after a timeout, or an updated label."""

_PROBABILITIES = pl.List(pl.Struct({"class": pl.String, "probability": pl.Float64}))


class RowColumns:
    """Names and types of the columns of a pipeline's training rows.

    Feature columns are named as the features are served. A fixed column whose name is taken by a
    feature gets a trailing underscore.

    Attributes:
        features: names of the features, in order.
        predicted: whether there are columns for predictions and models.
        task: the task of the pipeline; ``multiclass`` if that is it.
        target_type: the Polars type of the columns ``prediction`` and ``label``.
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
        self.multiclass = self.task is Task.MULTICLASS
        self.target_type = _target_type(pipeline)

    def name(self, fixed: str) -> str:
        """The actual name of the column ``fixed``, one of `FIXED`."""
        return self._names[fixed]

    def labels(self, values: Any, times: Any, delays: Any, origins: Any) -> list[pl.Series]:
        """The label columns: targets, times (epoch ms), delays (ms) and `LABEL_ORIGINS`.

        Each argument has a value per row, null where the row has no label.
        """
        if self.target_type is pl.Boolean and isinstance(values, list):
            # The targets are 0 and 1.
            values = [None if value is None else bool(value) for value in values]
        return [
            pl.Series(self.name("label"), values, dtype=self.target_type),
            pl.Series(self.name("label_ts"), times, dtype=pl.Int64),
            pl.Series(self.name("label_delay_ms"), delays, dtype=pl.Int64),
            pl.Series(self.name("label_origin"), origins, dtype=pl.String),
        ]

    def inline_labels(self, values: Any, times: pl.Series) -> list[pl.Series]:
        """The label columns of labels that are fields of their events, at ``times`` (epoch ms)."""
        if isinstance(values, np.ndarray):
            origins: Any = pl.repeat(LABEL_ORIGINS[0], len(values), eager=True)
            if values.dtype == np.float64 and (null := np.isnan(values)).any():
                values = pl.Series(values, nan_to_null=True)
                origins = origins.zip_with(pl.Series(~null), pl.Series([None], dtype=pl.String))
            elif self.target_type is pl.Boolean:
                values = values != 0
        else:
            values = list(values)
            origins = [None if value is None else LABEL_ORIGINS[0] for value in values]
        return self.labels(values, times, times - times, origins)

    def predictions(self, predictions: list[Predictions]) -> list[pl.Series]:
        """The prediction columns of consecutive batches."""
        prediction = self.name("prediction")
        if self.multiclass:
            labels = [label for each in predictions for label in each.labels]
            probabilities = [
                [{"class": str(label), "probability": p} for label, p in row.items()]
                for each in predictions
                for row in each.values
            ]
            return [
                pl.Series(prediction, labels, dtype=self.target_type, strict=False),
                pl.Series(self.name("probabilities"), probabilities, dtype=_PROBABILITIES),
            ]
        values = np.concatenate([each.values for each in predictions])
        scores = pl.Series(self.name("score"), values, nan_to_null=True)
        if self.task is not Task.BINARY:
            values_only = scores.alias(prediction)
            return [values_only, scores] if self.task is Task.ANOMALY else [values_only]
        binary = np.concatenate([each.binary_labels() for each in predictions])
        predicted = pl.Series(prediction, binary == 1)
        if (binary == NO_LABEL).any():
            predicted = predicted.zip_with(pl.Series(binary != NO_LABEL), pl.Series([None]))
        return [predicted, scores]


def _target_type(pipeline: Pipeline) -> Any:
    """The Polars type of the columns ``prediction`` and ``label``."""
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
class _EventColumns:
    """Columns of (part of) one batch: everything of its rows but the features."""

    ids: Sequence[str]
    times: NDArray[np.int64]
    partitions: NDArray[np.int64]
    offsets: NDArray[np.int64]
    targets: Any
    versions: NDArray[np.int64]
    predictions: Predictions
    models: Sequence[str] | None
    topic: str | list[str]

    def __len__(self) -> int:
        return len(self.times)

    def cut(self, start: int, stop: int) -> _EventColumns:
        """The rows from ``start`` up to, not including, ``stop``."""
        rows = slice(start, stop)
        return _EventColumns(
            self.ids[rows],
            self.times[rows],
            self.partitions[rows],
            self.offsets[rows],
            None if self.targets is None else self.targets[rows],
            self.versions[rows],
            self.predictions.take(np.arange(start, stop)),
            None if self.models is None else self.models[rows],
            self.topic if isinstance(self.topic, str) else self.topic[rows],
        )


class Rows:
    """A buffer of consecutive rows; ``features`` is ``(columns, capacity) float64``."""

    def __init__(self, columns: int, capacity: int) -> None:
        self.features = np.empty((columns, capacity))
        self.pieces: list[_EventColumns] = []
        self.count = 0

    def add(self, piece: _EventColumns, features: NDArray[np.float64]) -> None:
        """Append the rows of ``piece``, whose features are ``(rows, columns) float64``."""
        # Transposed now, while they are in the cache; and the batch's own memory can be freed.
        self.features[:, self.count : self.count + len(piece)] = features.T
        self.pieces.append(piece)
        self.count += len(piece)


class RowBuilder:
    """Collects the events of batches, ``capacity`` at a time, and makes frames of them.

    Frames have all columns except those of labels that come from a topic of their own.
    """

    def __init__(self, pipeline: Pipeline, columns: RowColumns, capacity: int) -> None:
        self._columns = columns
        self._model = pipeline.model_name
        self._capacity = capacity
        self._rows: Rows | None = None

    def add(self, results: Results) -> Iterator[Rows]:
        """Take the events of a batch; yields the buffer whenever it is full."""
        batch, rows_read = results.batch, results.batch.rows
        columns = _EventColumns(
            batch.ids,
            batch.times,
            batch.partitions,
            batch.offsets,
            batch.targets,
            _integers(results.versions),
            results.predictions,
            results.models,
            rows_read.topic
            if rows_read.topic_numbers is None
            else list(rows_read.topics_of_rows()),
        )
        start, end = 0, len(batch)
        while start < end:
            rows = self._rows or Rows(len(self._columns.features), self._capacity)
            stop = min(start + self._capacity - rows.count, end)
            piece = columns if stop - start == end else columns.cut(start, stop)
            rows.add(piece, batch.features[start:stop])
            start = stop
            full = rows.count == self._capacity
            self._rows = None if full else rows
            if full:
                yield rows

    def rest(self) -> Rows | None:
        """The last buffer, if it has any rows."""
        return self._rows

    def frame(self, rows: Rows) -> pl.DataFrame:
        """The columns of at least one row. Can be called from any thread."""
        name, pieces = self._columns.name, rows.pieces

        def array(of: str) -> Any:
            return np.concatenate([getattr(piece, of) for piece in pieces])

        times = pl.Series(name("ts"), array("times"))
        features = rows.features[:, : rows.count]
        columns = [
            _texts(concat_rows([piece.ids for piece in pieces])).alias(name("id")),
            times,
            _topics(pieces, len(times)).alias(name("topic")),
            pl.Series(name("partition"), array("partitions")),
            pl.Series(name("offset"), array("offsets")),
            *map(pl.Series, self._columns.features, features),
        ]
        if self._columns.predicted:
            columns += [
                self._models(pieces, len(times)).alias(name("model")),
                pl.Series(name("version"), array("versions")),
                *self._columns.predictions([piece.predictions for piece in pieces]),
            ]
        if pieces[0].targets is not None:
            labels = concat_rows([piece.targets for piece in pieces])
            columns += self._columns.inline_labels(labels, times)
        return pl.DataFrame(columns)

    def _models(self, pieces: list[_EventColumns], rows: int) -> pl.Series:
        """The name of the model that served each event."""
        if all(piece.models is None for piece in pieces):
            return pl.repeat(self._model, rows, eager=True)
        models = [piece.models or repeat(self._model, len(piece)) for piece in pieces]
        return pl.Series(list(chain.from_iterable(models)), dtype=pl.String)


def _topics(pieces: Sequence[_EventColumns], rows: int) -> pl.Series:
    """The topic of each event."""
    first = pieces[0].topic
    if isinstance(first, str) and all(piece.topic == first for piece in pieces):
        return pl.repeat(first, rows, eager=True)
    lists = [
        repeat(piece.topic, len(piece)) if isinstance(piece.topic, str) else piece.topic
        for piece in pieces
    ]
    return pl.Series(list(chain.from_iterable(lists)), dtype=pl.String)


def _texts(values: Sequence[str]) -> pl.Series:
    return values.series if isinstance(values, FrameTexts) else pl.Series(values, dtype=pl.String)


def _integers(values: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    if isinstance(values, range):
        return np.arange(values.start, values.stop, values.step)
    return np.asarray(values, np.int64)
