"""What the model step made of batches, as the columns of training rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dataflows.encode import Results
from dataflows.messages import Delayed
from dataflows.pipeline import Pipeline
from dataflows.schema import Schema
from models.learner import NO_LABEL, Predictions, Task

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
    one gets an underscore at its end.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.features = pipeline.columns
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
            values = list(map(bool, values))  # a target of 0 and 1
        return [
            pl.Series(self.name("label"), values, dtype=self.answer),
            pl.Series(self.name("label_ts"), times, dtype=pl.Int64),
            pl.Series(self.name("label_delay_ms"), delays, dtype=pl.Int64),
            pl.Series(self.name("label_origin"), origins, dtype=pl.String),
        ]

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


@dataclass(frozen=True, slots=True)
class _Part:
    """The events of one batch, without what rows do not need."""

    ids: list[str]
    times: NDArray[np.int64]
    partitions: NDArray[np.int64]
    offsets: NDArray[np.int64]
    features: NDArray[np.float64]
    targets: list[Any] | None
    versions: NDArray[np.int64]
    predictions: Predictions


class RowBuilder:
    """Collects the events of batches, and makes frames of them.

    Frames have all columns but those of labels that come on a topic of their own.
    """

    def __init__(self, pipeline: Pipeline, columns: RowColumns) -> None:
        self._columns = columns
        self._topic = pipeline.topics.events
        self._model = pipeline.model_name
        self._parts: list[_Part] = []
        self.count = 0

    def add(self, results: Results) -> None:
        """Take the events of a batch."""
        batch = results.batch
        if not batch.ids:
            return
        part = _Part(
            list(batch.ids),
            batch.times,
            batch.partitions,
            batch.offsets,
            batch.features,
            None if batch.targets is None else list(batch.targets),
            np.asarray(results.versions, np.int64),
            results.predictions,
        )
        self._parts.append(part)
        self.count += len(batch)

    def take(self) -> pl.DataFrame:
        """All rows since the last call, at least one, in order."""
        parts, name = self._parts, self._columns.name

        def array(of: str) -> Any:
            return np.concatenate([getattr(part, of) for part in parts])

        features = array("features")
        columns = [
            pl.Series(name("id"), [id for part in parts for id in part.ids], dtype=pl.String),
            pl.Series(name("ts"), array("times")),
            pl.repeat(self._topic, self.count, eager=True).alias(name("topic")),
            pl.Series(name("partition"), array("partitions")),
            pl.Series(name("offset"), array("offsets")),
            *(
                pl.Series(feature, np.ascontiguousarray(features[:, place]))
                for place, feature in enumerate(self._columns.features)
            ),
            pl.repeat(self._model, self.count, eager=True).alias(name("model")),
            pl.Series(name("version"), array("versions")),
            *self._columns.answers([part.predictions for part in parts]),
        ]
        self._parts, self.count = [], 0
        if parts[0].targets is not None:
            labels, times = [t for part in parts for t in part.targets or ()], columns[1]
            origins = [LABEL_ORIGINS[0] if label is not None else None for label in labels]
            columns += self._columns.labels(labels, times, times - times, origins)  # came together
        return pl.DataFrame(columns)
