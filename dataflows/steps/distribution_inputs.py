"""The values in a batch that the monitors of distributions observe, column by column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.batch.batch import Batch, RawRows
from anabranch.dataflows.batch.row_ids import candidate
from anabranch.dataflows.declaration.features import DayOfWeek, HourOfDay, KeyedFeature
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.inputs import Delayed
from anabranch.dataflows.messages.outputs import Cause
from anabranch.dataflows.rollout.messages import cause_of_row
from anabranch.models.learners.learner import Predictions, Task
from anabranch.models.metrics.popularity import Popularity
from anabranch.models.prequential.outcome import ASSUMED_LABEL, LearnedLabels
from anabranch.models.rollout.served import as_scores
from anabranch.state.keys.hashing import hash64, keys_of
from anabranch.state.store.delta import Delta

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

CauseOf = Callable[[int], Cause]


@dataclass(slots=True)
class Observed:
    """Values of some rows of a batch.

    Attributes:
        values: `(rows, columns) float64`, C-contiguous.
        times: `(rows,) int64` ms.
        cause: where a row was read.
        indices: `(rows,) int64` of the events, or labels, that they are; None: all of them.
    """

    values: F64
    times: I64
    cause: CauseOf
    indices: I64 | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """Columns that are observed together.

    Attributes:
        kind: what signals call them.
        source: what their values are made from.
        names: by column; a signal's subject.
        memories_ms: by column, how far back a value looks; None: no further than its event.
    """

    kind: str
    source: str
    names: Sequence[str] = field(default_factory=list)
    memories_ms: Sequence[int] | None = None


KNOWN_BEFORE_LEARNING = ("feature", "keys", "missing", "invalid")
"""Sources whose values are known before a batch is learned."""


class DistributionInputs:
    """Reads the values of each source from a batch.

    * feature: every feature column, except hours and days;
    * keys: of each entity, the hash of its key in [0, 1), whose tenths are compared: that a shop
      or a whole feed is gone shows there, though nothing else has changed;
    * missing: whether an optional field is null;
    * invalid: whether an event became a dead letter instead of a row;
    * prediction: what was served, as one number;
    * label: what was learned, where that is a number, and how long it took to come;
    * calibration: the label less the prediction, where one model serves alone;
    * scores: the scores of events whose labels came, where one model serves alone;
    * first, chosen: of rankings, the popularity of the candidate ranked first, and of the chosen.

    Args:
        pipeline: what is monitored.
        ignore: feature columns to leave out.
        feedback: lists to which values are appended that are counted as a metric.

    Attributes:
        families: those with columns.
    """

    def __init__(
        self, pipeline: Pipeline, ignore: Sequence[str], feedback: dict[str, list[F64]]
    ) -> None:
        self._pipeline = pipeline
        self._feedback = feedback
        clocks = {
            name
            for feature in pipeline.features
            if isinstance(feature, HourOfDay | DayOfWeek)
            for name in feature.columns()
        }
        ignored = clocks | set(ignore)
        self._columns = [i for i, name in enumerate(pipeline.columns) if name not in ignored]
        self._entities = list(pipeline.entities)
        fields = pipeline.schema.fields
        self._optional = [name for name in pipeline.used_fields if fields[name].optional]
        self._numeric_labels = pipeline.task in (Task.BINARY, Task.REGRESSION)
        self._delayed = isinstance(pipeline.label, Delayed)
        self._popularity = {"first": Popularity(), "chosen": Popularity()}
        self._candidates = pipeline.candidates
        self.families = [each for each in self._all_families() if each.names]

    def _all_families(self) -> list[Family]:
        pipeline, numeric = self._pipeline, self._numeric_labels
        alone = numeric and pipeline.rollout is None
        ranks = self._candidates is not None
        memories = [
            ms
            for feature in pipeline.features
            for ms in (
                feature.spec.memories_ms()
                if isinstance(feature, KeyedFeature)
                else [0] * len(feature.columns())
            )
        ]
        label = (["label"] if numeric else []) + (["label delay"] if self._delayed else [])
        return [
            Family(
                "feature", "feature", [pipeline.columns[i] for i in self._columns],
                [memories[i] for i in self._columns],
            ),
            Family("keys", "keys", [f"{entity} keys" for entity in self._entities]),
            Family("missing", "missing", [f"missing {name}" for name in self._optional]),
            Family("invalid", "invalid", ["invalid events"]),
            Family("prediction", "prediction", ["prediction"]),
            Family("label", "label", label),
            Family("calibration", "calibration", ["residual"] if alone else []),
            Family(
                "feedback", "scores",
                ["labelled scores"] if alone and self._delayed and not ranks else [],
            ),
            Family("feedback", "first", ["popularity of the first"] if ranks else []),
            Family("feedback", "chosen", ["popularity of the chosen"] if ranks else []),
        ]  # fmt: skip

    def of_events(self, source: str, batch: Batch) -> Observed | None:
        """Of a batch that is not yet learned; None: nothing."""
        if source == "invalid":
            return self._invalid(batch)
        if not batch.rows.values:
            return None
        if source == "feature":
            values = batch.features
            if len(self._columns) < values.shape[1]:
                values = values[:, self._columns]
        elif source == "keys":
            hashes = [hash64(keys_of(batch.columns[entity])) for entity in self._entities]
            values = np.array(hashes, np.float64).T * 2.0**-64
        else:
            columns = [[v is None for v in batch.columns[name]] for name in self._optional]
            values = np.array(columns, np.float64).T
        return Observed(np.ascontiguousarray(values), batch.times, self._cause(batch))

    def of_predictions(
        self, source: str, batch: Batch, predictions: Predictions, ranks: I64 | None
    ) -> Observed | None:
        """Of what was served; None: nothing."""
        if not batch.rows.values:
            return None
        if source == "prediction":
            scores = as_scores(self._pipeline.task, predictions)
            if self._pipeline.task is Task.BINARY:
                self._count("predictions", scores)
            values = np.ascontiguousarray(scores[:, None])
            return Observed(values, batch.times, self._cause(batch))
        assert ranks is not None
        assert self._candidates is not None
        rows, items = np.flatnonzero(ranks == 1), batch.columns[self._candidates]
        first = self._popularity["first"].of(hash64([items[row] for row in rows.tolist()]))
        self._count("first", first)
        return Observed(first[:, None], batch.times[rows], self._cause(batch), rows)

    def of_labels(self, source: str, batch: Batch, learned: LearnedLabels) -> Observed | None:
        """Of what was learned; None: nothing."""
        if not len(learned.times):
            return None
        indices: I64 | None = None
        if source == "chosen":
            indices = np.flatnonzero((np.asarray(learned.target) == 1.0) & (learned.label >= 0))
            columns = [self._chosen(batch, learned, indices)]
        elif source == "label":
            columns = self._labels(learned)
        else:
            columns = [self._scores_or_residuals(source, learned)]
        items = learned.label if learned.items is None else learned.items
        cause = cause_of_row
        return Observed(
            np.ascontiguousarray(np.array(columns).T),
            learned.times if indices is None else learned.times[indices],
            lambda row: cause(self._pipeline, batch, int(items[row])),
            indices,
        )

    def changes(self) -> Delta:
        """What changed since the last call of what is kept from batch to batch."""
        delta = Delta()
        for name, each in self._popularity.items():
            delta.put(name, each.changes())
        return delta

    def restore(self, image: Delta) -> None:
        """Load what `changes` gave."""
        for name, each in self._popularity.items():
            each.restore(image.part(name))

    def _chosen(self, batch: Batch, learned: LearnedLabels, indices: I64) -> F64:
        """The popularity of the candidates that were chosen."""
        ids = [batch.labels.ids[i] for i in learned.label[indices].tolist()]
        popularity = self._popularity["chosen"].of(hash64(list(map(candidate, ids))))
        self._count("chosen", popularity)
        return popularity

    def _labels(self, learned: LearnedLabels) -> list[F64]:
        """Label values, where they are numbers, and delays in seconds, where there are any."""
        self._count_labels(learned)
        columns = [np.asarray(learned.target, np.float64)] if self._numeric_labels else []
        if self._delayed:
            columns.append(learned.delays / 1000.0)
        return columns

    def _scores_or_residuals(self, source: str, learned: LearnedLabels) -> F64:
        scores = as_scores(self._pipeline.task, learned.predictions[self._pipeline.model_name])
        if source == "scores":
            return np.where(learned.label != ASSUMED_LABEL, scores, np.nan)
        residuals: F64 = np.asarray(learned.target, np.float64) - scores
        return residuals

    def _count(self, what: str, values: F64) -> None:
        self._feedback.setdefault(what, []).append(values)

    def _count_labels(self, learned: LearnedLabels) -> None:
        """Labels that came, by the score of the pipeline's own model."""
        predictions = learned.predictions.get(self._pipeline.model_name)
        if predictions is None or self._pipeline.task is not Task.BINARY:
            return
        came = learned.label != ASSUMED_LABEL
        scores = as_scores(Task.BINARY, predictions)[came]
        self._count("labels", scores)
        self._count("true labels", scores[np.asarray(learned.target)[came] == 1.0])

    def _cause(self, batch: Batch) -> CauseOf:
        return lambda row: cause_of_row(self._pipeline, batch, row)

    def _invalid(self, batch: Batch) -> Observed | None:
        raw = batch.raw.events
        if not len(raw):
            return None
        read, kept = _numbered(raw), _numbered(batch.rows)
        invalid = ~np.isin(read, kept) if len(read) != len(kept) else np.zeros(len(read), np.bool_)
        return Observed(
            invalid.astype(np.float64)[:, None],
            raw.times,
            lambda row: Cause(raw.topic_of(row), int(raw.partitions[row]), int(raw.offsets[row])),
        )


def _numbered(rows: RawRows) -> NDArray[np.int64]:
    """One number for each message: its partition, topic and offset."""
    partitions = rows.partitions
    if rows.topic_numbers is not None:
        partitions = partitions * len(rows.topics) + rows.topic_numbers
    numbered: NDArray[np.int64] = partitions << 48 | rows.offsets
    return numbered
