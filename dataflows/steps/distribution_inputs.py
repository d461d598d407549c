"""What the monitors of distributions look at in a batch: values by column, of some of its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.batch.batch import Batch
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
from anabranch.state.keys.hashing import hash64
from anabranch.state.store.delta import Delta

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

CauseOf = Callable[[int], Cause]


@dataclass(slots=True)
class Watched:
    """Rows to look at.

    Attributes:
        values: `(rows, columns) float64`, C-contiguous.
        times: `(rows,) int64` ms.
        cause: where a row was read.
        places: `(rows,) int64`: which events, or labels, they are; None: all.
    """

    values: F64
    times: I64
    cause: CauseOf
    places: I64 | None = None


@dataclass(frozen=True, slots=True)
class Subjects:
    """Columns whose rows come together: of the ``kind``, and made by ``source``.

    ``memories_ms`` are how far back each looks; None: no further than its event.
    """

    kind: str
    source: str
    names: Sequence[str] = field(default_factory=list)
    memories_ms: Sequence[int] | None = None


BEFORE = ("feature", "keys", "missing", "invalid")
"""Sources that are known before a batch is worked through."""


class WatchedValues:
    """Reads them.

    * feature: every column of the features, but hours and days;
    * keys: of each entity, by tenths of the places of their hashes; that a shop or a whole feed is
      gone shows there, though nothing else has changed;
    * missing: whether a field is null that may be;
    * invalid: whether an event became a dead letter instead of a row;
    * prediction: what was served, as one number;
    * label: what was learned, where that is a number, and how long it took to come;
    * calibration: the label less the prediction, where one model serves alone;
    * feedback: the scores of what labels come for, where one model serves alone; of rankings, how
      popular the candidate is that is put first, and the one that is chosen.

    ``feedback`` has lists to which values are appended that are counted as a metric.
    """

    def __init__(
        self, pipeline: Pipeline, ignore: Sequence[str], feedback: dict[str, list[F64]]
    ) -> None:
        self._pipeline = pipeline
        self._counted = feedback
        clocks = {
            name
            for feature in pipeline.features
            if isinstance(feature, HourOfDay | DayOfWeek)
            for name in feature.columns()
        }
        ignored = clocks | set(ignore)
        self._kept = [at for at, name in enumerate(pipeline.columns) if name not in ignored]
        self._entities = list(pipeline.entities)
        fields = pipeline.schema.fields
        self._nullable = [name for name in pipeline.used_fields if fields[name].optional]
        self._judged = pipeline.task in (Task.BINARY, Task.REGRESSION)
        self._apart = isinstance(pipeline.label, Delayed)
        self._items = {"first": Popularity(), "chosen": Popularity()}
        self._ranks = pipeline.candidates
        self.subjects = [each for each in self._all_subjects() if each.names]

    def _all_subjects(self) -> list[Subjects]:
        pipeline, judged = self._pipeline, self._judged
        alone = judged and pipeline.rollout is None
        ranks = self._ranks is not None
        memories = [
            ms
            for feature in pipeline.features
            for ms in (
                feature.spec.memories_ms()
                if isinstance(feature, KeyedFeature)
                else [0] * len(feature.columns())
            )
        ]
        label = (["label"] if judged else []) + (["label delay"] if self._apart else [])
        return [
            Subjects(
                "feature", "feature", [pipeline.columns[at] for at in self._kept],
                [memories[at] for at in self._kept],
            ),
            Subjects("keys", "keys", [f"{entity} keys" for entity in self._entities]),
            Subjects("missing", "missing", [f"missing {name}" for name in self._nullable]),
            Subjects("invalid", "invalid", ["invalid events"]),
            Subjects("prediction", "prediction", ["prediction"]),
            Subjects("label", "label", label),
            Subjects("calibration", "calibration", ["residual"] if alone else []),
            Subjects(
                "feedback", "scores",
                ["labelled scores"] if alone and self._apart and not ranks else [],
            ),
            Subjects("feedback", "first", ["popularity of the first"] if ranks else []),
            Subjects("feedback", "chosen", ["popularity of the chosen"] if ranks else []),
        ]  # fmt: skip

    def of_events(self, source: str, batch: Batch) -> Watched | None:
        """Of a batch that is yet to be worked through; None: nothing."""
        if source == "invalid":
            return self._invalid(batch)
        if not batch.rows.values:
            return None
        if source == "feature":
            values = batch.features
            if len(self._kept) < values.shape[1]:
                values = values[:, self._kept]
        elif source == "keys":
            hashes = [hash64(batch.columns[entity]) for entity in self._entities]
            values = np.array(hashes, np.float64).T * 2.0**-64
        else:
            columns = [[v is None for v in batch.columns[name]] for name in self._nullable]
            values = np.array(columns, np.float64).T
        return Watched(np.ascontiguousarray(values), batch.times, self._cause(batch))

    def of_predictions(
        self, source: str, batch: Batch, predictions: Predictions, ranks: I64 | None
    ) -> Watched | None:
        """Of what was served."""
        if not batch.rows.values:
            return None
        if source == "prediction":
            scores = as_scores(self._pipeline.task, predictions)
            if self._pipeline.task is Task.BINARY:
                self._count("predictions", scores)
            values = np.ascontiguousarray(scores[:, None])
            return Watched(values, batch.times, self._cause(batch))
        assert ranks is not None
        assert self._ranks is not None
        rows, items = np.flatnonzero(ranks == 1), batch.columns[self._ranks]
        first = self._items["first"].of(hash64([items[row] for row in rows.tolist()]))
        self._count("first", first)
        return Watched(first[:, None], batch.times[rows], self._cause(batch), rows)

    def of_labels(self, source: str, batch: Batch, learned: LearnedLabels) -> Watched | None:
        """Of what was learned."""
        if not len(learned.times):
            return None
        places: I64 | None = None
        if source == "chosen":
            said = np.asarray(learned.target) == 1.0
            places = np.flatnonzero(said & (learned.label >= 0))
            ids = [batch.labels.ids[at] for at in learned.label[places].tolist()]
            columns = [self._items["chosen"].of(hash64(list(map(candidate, ids))))]
            self._count("chosen", columns[0])
        elif source == "label":
            self._count_labels(learned)
            columns = [np.asarray(learned.target, np.float64)] if self._judged else []
            if self._apart:
                columns.append(learned.delays / 1000.0)
        else:
            said = learned.predictions[self._pipeline.model_name]
            columns = [as_scores(self._pipeline.task, said)]
            if source == "scores":
                columns = [np.where(learned.label != ASSUMED_LABEL, columns[0], np.nan)]
            else:
                columns = [np.asarray(learned.target, np.float64) - columns[0]]
        items = learned.label if learned.items is None else learned.items
        cause = cause_of_row
        return Watched(
            np.ascontiguousarray(np.array(columns).T),
            learned.times if places is None else learned.times[places],
            lambda row: cause(self._pipeline, batch, int(items[row])),
            places,
        )

    def _count(self, what: str, values: F64) -> None:
        self._counted.setdefault(what, []).append(values)

    def _count_labels(self, learned: LearnedLabels) -> None:
        """By the score of the model that the pipeline declares, of labels that came."""
        said = learned.predictions.get(self._pipeline.model_name)
        if said is None or self._pipeline.task is not Task.BINARY:
            return
        came = learned.label != ASSUMED_LABEL
        scores = as_scores(Task.BINARY, said)[came]
        self._count("labels", scores)
        self._count("true labels", scores[np.asarray(learned.target)[came] == 1.0])

    def changes(self) -> Delta:
        """What changed since the last call, of what is remembered from batch to batch."""
        delta = Delta()
        for name, each in self._items.items():
            delta.put(name, each.changes())
        return delta

    def restore(self, image: Delta) -> None:
        """Take up what `changes` gave."""
        for name, each in self._items.items():
            each.restore(image.part(name))

    def _cause(self, batch: Batch) -> CauseOf:
        return lambda row: cause_of_row(self._pipeline, batch, row)

    def _invalid(self, batch: Batch) -> Watched | None:
        raw = batch.raw.events
        if not len(raw):
            return None
        here, kept = raw.partitions << 48 | raw.offsets, batch.partitions << 48 | batch.offsets
        invalid = ~np.isin(here, kept) if len(here) != len(kept) else np.zeros(len(here), np.bool_)
        topic = self._pipeline.topics.events
        return Watched(
            invalid.astype(np.float64)[:, None],
            raw.times,
            lambda row: Cause(topic, int(raw.partitions[row]), int(raw.offsets[row])),
        )
