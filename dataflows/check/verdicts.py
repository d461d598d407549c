"""What `run` would make of the messages of a sample: its own decoder and filter say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.batch.batch import NO_ROWS, Batch, RawBatch, RawRows
from anabranch.dataflows.batch.candidates import Candidates
from anabranch.dataflows.check.sample import Sample
from anabranch.dataflows.declaration.formats import JSON
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.dead_letter_reasons import DeadLetterReason
from anabranch.dataflows.messages.time_unit_check import LOG
from anabranch.dataflows.source.decoder import BatchDecoder
from anabranch.dataflows.source.late_and_duplicate import LateAndDuplicateFilter
from anabranch.producers.batch import Kind

I64 = NDArray[np.int64]

UNFIT = (
    DeadLetterReason.MALFORMED,
    DeadLetterReason.NOT_JSON,
    DeadLetterReason.TYPE_MISMATCH,
    DeadLetterReason.INVALID_TIME,
)
"""Reasons that tell of another message type, not of a message's own time, id or numbers."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A message that would be a dead letter, by its row in the sample."""

    row: int
    reason: str
    detail: str


@dataclass(slots=True)
class Verdicts:
    """What would become of each message of a sample.

    Attributes:
        refused: those that would be dead letters, in order.
        rows: the rows of the others, ``(n,) int64``.
        ids, times: of the others: texts, and ``(n,) int64`` epoch ms.
        values: the label's value, of labels.
        time_unit: the unit in which the times would be of today, if they are not as read.
    """

    refused: list[Refused]
    rows: I64
    ids: Sequence[str]
    times: I64
    values: Sequence[Any] = field(default_factory=list)
    time_unit: str | None = None

    @property
    def none_fits(self) -> bool:
        """Whether all messages, of which there are some, are of another type."""
        unfit = {reason.value for reason in UNFIT}
        return (
            not len(self.rows)
            and bool(self.refused)
            and all(each.reason in unfit for each in self.refused)
        )


def verdicts(pipeline: Pipeline, kind: Kind, sample: Sample) -> Verdicts:
    """Decode a sample, and filter its events, as a run of the pipeline does."""
    units: list[str] = []
    decoder = BatchDecoder(
        pipeline,
        on_time_unit=lambda _topic, unit: units.append(unit),
        of_files=pipeline.inputs if sample.is_file else (),
    )
    topics = pipeline.topics
    own = topics.events if kind == "events" else topics.labels
    rows = RawRows(
        sample.topics[0] if len(sample.topics) > 1 else own,
        sample.values,
        sample.partitions,
        sample.offsets,
        sample.times,
        keys=sample.keys,
        headers=sample.headers,
        topics=sample.topics if len(sample.topics) > 1 else (),
        topic_numbers=sample.topic_numbers if len(sample.topics) > 1 else None,
    )
    read_at = float(sample.times.max()) / 1000 if len(sample) else 0.0
    order = np.arange(len(sample))
    # Messages of a topic that has both are read as both.
    both = pipeline.shares_topics and not sample.is_file
    events, labels = (rows, NO_ROWS) if kind == "events" or both else (NO_ROWS, rows)
    with _unlogged():  # what it notices is in the result
        batch = decoder.decode(RawBatch("check", 0, events, labels, order, read_at))
    row_of = {at: row for row, at in enumerate(_places(rows))}
    if kind == "events":
        batch = _filtered(pipeline, batch)
    refused = [
        Refused(row_of[letter.topic, letter.partition, letter.offset], letter.reason, letter.detail)
        for letter in batch.dead_letters
    ]
    refused.sort(key=lambda each: each.row)
    kept = batch.rows if kind == "events" else batch.labels.read
    indices = np.array([row_of[at] for at in _places(kept)], np.int64)
    unit = units[0] if units else None
    if kind == "events":
        return Verdicts(refused, indices, list(batch.ids), batch.times, time_unit=unit)
    label_rows = batch.labels
    return Verdicts(
        refused, indices, list(label_rows.ids), label_rows.times, label_rows.values, unit
    )


def _places(rows: RawRows) -> Iterator[tuple[str, int, int]]:
    """Topic, partition and offset of each message."""
    partitions, offsets = rows.partitions.tolist(), rows.offsets.tolist()
    return zip(rows.topics_of_rows(), partitions, offsets)  # noqa: B905  # the first may not end


def as_json(pipeline: Pipeline) -> Pipeline:
    """The pipeline with messages in JSON, which the rows of files are."""
    if pipeline.format == JSON and pipeline.label_format in (None, JSON):
        return pipeline
    copied = copy(pipeline)
    copied.format, copied.label_format = JSON, None
    return copied


@contextmanager
def _unlogged() -> Iterator[None]:
    LOG.disabled = True
    try:
        yield
    finally:
        LOG.disabled = False


def _filtered(pipeline: Pipeline, batch: Batch) -> Batch:
    """The batch as the source hands it on, before candidates become rows."""
    if pipeline.candidates is not None:
        batch = Candidates(pipeline).check(batch)
    return LateAndDuplicateFilter(pipeline.allowed_lateness, pipeline.dedup_window).apply(batch)
