"""The stage for rows on which the model raises.

An event that no model could predict is a dead letter, or is served by the declared fallback. A
label that the model could not learn is a dead letter. A model that fails on row after row ends the
run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.batch.batch import Batch
from anabranch.dataflows.batch.candidates import first_of_each_event, whole_events
from anabranch.dataflows.batch.dead_letters import dead_letter
from anabranch.dataflows.batch.results import Results
from anabranch.dataflows.batch.row_ids import event_id, readable_row_id
from anabranch.dataflows.messages.dead_letter_reasons import DeadLetterReason
from anabranch.dataflows.messages.inputs import Delayed
from anabranch.dataflows.messages.outputs import DeadLetter
from anabranch.dataflows.steps.label_dead_letters import label_dead_letter
from anabranch.dataflows.steps.stage import BatchWork, Stage, StageContext
from anabranch.models.learners.learner import ModelError
from anabranch.models.prequential.outcome import MODEL_FAILED_ON_EVENT
from anabranch.models.rollout.served import FALLBACK, choose
from anabranch.state.store.delta import Delta

_log = logging.getLogger("anabranch.models")

_STREAKS = "model-failures"
_WARN_EVERY_S = 60.0
_NO_STREAK = (0, "")


class _Streaks(msgspec.Struct):
    """How many rows in a row the model has failed on, and what happened at the first of them."""

    predicting: tuple[int, str] = _NO_STREAK
    learning: tuple[int, str] = _NO_STREAK


class ModelFailures(Stage):
    """Reports the rows on which the model raised; see the module."""

    def __init__(self, context: StageContext) -> None:
        self._pipeline, self._metrics = context.pipeline, context.metrics.rollouts
        self._delayed = isinstance(context.pipeline.label, Delayed)
        self._streaks = _Streaks()
        self._stored = b""
        self._warn_at, self._unreported = 0.0, 0

    def process(self, work: BatchWork) -> None:
        outcome, streaks = work.outcome, self._streaks
        if outcome.failed_steps:
            self._report(work)
        elif not (streaks.predicting[0] or streaks.learning[0]):
            return
        self._continue_streaks(work)
        if outcome.failed_events:
            self._serve_fallback(work)

    def add_changes(self, delta: Delta) -> None:
        blob = msgspec.json.encode(self._streaks) if self._streaks != _Streaks() else b""
        if blob != self._stored:
            delta.blobs[_STREAKS] = self._stored = blob

    def restore(self, image: Delta) -> None:
        self._stored = image.blobs.get(_STREAKS, b"")
        if self._stored:
            self._streaks = msgspec.json.decode(self._stored, type=_Streaks)

    def _report(self, work: BatchWork) -> None:
        """Dead letters for events that nothing serves, and for labels that were not learned."""
        batch, outcome, dead_letters = work.batch, work.outcome, work.dead_letters
        if self._pipeline.rollout is None:  # which counts them otherwise
            self._metrics.on_failures(outcome.failed_steps)
        if self._pipeline.fallback is None:
            for row in first_of_each_event(batch, sorted(outcome.failed_events)):
                dead_letters.append(self._event_letter(batch, row, outcome.failed_events[row]))
        for row, detail in outcome.failed_labels:
            if self._delayed:
                dead_letters.append(
                    label_dead_letter(self._pipeline.topics, batch.labels, row, detail)
                )
            else:
                dead_letters.append(self._event_letter(batch, row, detail))
        for detail in outcome.failed_defaults:
            _log.warning("a label assumed at its timeout was not learned: %s", detail)

    def _event_letter(self, batch: Batch, row: int, detail: str) -> DeadLetter:
        return dead_letter(
            batch.rows, row, DeadLetterReason.MODEL_FAILED, f"id {self._id(batch, row)!r}: {detail}"
        )

    def _id(self, batch: Batch, row: int) -> str:
        own = batch.ids[row]
        return own if self._pipeline.candidates is None else event_id(own)

    def _serve_fallback(self, work: BatchWork) -> None:
        """Without rollouts: let the fallback serve; without one, nothing is published."""
        batch, results, failed = work.batch, work.results, work.outcome.failed_events
        rows = np.zeros(len(batch), np.bool_)
        rows[list(failed)] = True
        rows = whole_events(batch, rows)
        fallback = self._pipeline.fallback
        if fallback is None:
            work.unserved = rows
            return
        self._warn(batch, failed)
        if results.models is not None:
            return  # rollouts have served it
        name, where = self._pipeline.model_name, rows.tolist()
        served_by = rows.astype(np.uint8)
        results.predictions = choose(
            self._pipeline.task, {0: results.predictions}, served_by, fallback
        )
        results.models = [FALLBACK if failed else name for failed in where]
        results.instead_of = [name if failed else None for failed in where]
        versions = zip(results.versions, where, strict=True)
        results.versions = [0 if failed else version for version, failed in versions]

    def _warn(self, batch: Batch, failed: Mapping[int, str]) -> None:
        """Say what the fallback serves, once a minute at most: such an event is no dead letter."""
        self._unreported += len(failed)
        if time.monotonic() < self._warn_at:
            return
        row = max(failed)
        _log.warning(
            "the fallback serves %d events that the model failed on, the last one %s: %s",
            self._unreported, self._place(batch, row), failed[row],
        )  # fmt: skip
        self._warn_at, self._unreported = time.monotonic() + _WARN_EVERY_S, 0

    def _place(self, batch: Batch, row: int) -> str:
        rows = batch.rows
        return (
            f"id {self._id(batch, row)!r} ({rows.topic_of(row)} partition {rows.partitions[row]} "
            f"offset {rows.offsets[row]})"
        )

    def _continue_streaks(self, work: BatchWork) -> None:
        """Count failures in a row, and end the run if there are too many.

        Raises:
            ModelError: there are.
        """
        batch, outcome, streaks = work.batch, work.outcome, self._streaks
        if self._pipeline.fallback is None:
            order = batch.order[batch.order < len(batch)].tolist()
            predicted = ((outcome.failed_events.get(row), row) for row in order)
            streaks.predicting = self._streak(
                streaks.predicting, predicted, lambda row: self._place(batch, row), "events"
            )
        failed = dict(outcome.failed_labels)
        labels = outcome.learned.label[outcome.learned.label >= 0].tolist()
        not_given = set() if self._delayed else outcome.failed_events.keys()
        learned = (
            (failed.get(row), row)
            for row in labels
            if failed.get(row) != MODEL_FAILED_ON_EVENT and row not in not_given
        )
        place = self._label_place if self._delayed else self._place
        streaks.learning = self._streak(
            streaks.learning, learned, lambda row: place(batch, row), "labels"
        )

    def _label_place(self, batch: Batch, row: int) -> str:
        labels = batch.labels
        return (
            f"id {readable_row_id(labels.ids[row])!r} ({labels.topic_of(row)} partition "
            f"{labels.partitions[row]} offset {labels.offsets[row]})"
        )

    def _streak(
        self,
        streak: tuple[int, str],
        rows: Iterable[tuple[str | None, int]],
        place: Callable[[int], str],
        what: str,
    ) -> tuple[int, str]:
        """The streak behind more rows, each with what failed on it; None: nothing."""
        count, first = streak
        for detail, row in rows:
            if detail is None:
                count, first = _NO_STREAK
                continue
            count, first = count + 1, first or f"{place(row)}: {detail}"
            if count > self._pipeline.max_model_failures:
                raise ModelError(
                    f"the model of pipeline {self._pipeline.name!r} failed on {count:,} {what} in "
                    f"a row, first on {first}; correct it, or raise max_model_failures="
                )
        return count, first


def without(results: Results, unserved: NDArray[np.bool_]) -> Results:
    """Results without the events that nothing serves."""
    rows = np.flatnonzero(~unserved)
    kept = rows.tolist()
    results.unserved = np.flatnonzero(unserved)
    results.batch = results.batch.keep(~unserved)
    results.predictions = results.predictions.take(rows)
    results.versions = [results.versions[row] for row in kept]
    if results.models is not None:
        results.models = [results.models[row] for row in kept]
    if results.instead_of is not None:
        results.instead_of = [results.instead_of[row] for row in kept]
    if results.ranks is not None:
        results.ranks = results.ranks[rows]
    return results
