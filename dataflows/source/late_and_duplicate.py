"""Filters late events and duplicate ids out of a batch; they become dead letters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.batch.batch import Batch
from anabranch.dataflows.batch.dead_letters import dead_letter
from anabranch.dataflows.messages.dead_letter_reasons import DeadLetterReason
from anabranch.dataflows.messages.event_time import FIRST_MS
from anabranch.dataflows.messages.outputs import DeadLetter
from anabranch.state.durations import format_duration_ms, parse_duration_ms
from anabranch.state.labels.recent_ids import RecentIds
from anabranch.state.store.delta import Delta

I64 = NDArray[np.int64]
Mask = NDArray[np.bool_]


class LateAndDuplicateFilter:
    """Removes late events and duplicate ids; the rows removed are in the batch's ``dead_letters``.

    An event is late by the greatest event time that passed this filter. A duplicate is one whose id
    came before on any partition of this worker; nothing that is refused advances the watermark.

    Args:
        allowed_lateness: how far an event may be behind, a duration such as ``"10m"``.
        dedup_window: for how long an id is remembered, a duration.
    """

    def __init__(self, allowed_lateness: str, dedup_window: str) -> None:
        self._lateness_ms = parse_duration_ms(allowed_lateness)
        self._watermark = FIRST_MS
        self._recent = RecentIds(parse_duration_ms(dedup_window))
        self._restored = False

    @property
    def watermark_ms(self) -> int:
        """The greatest event time that passed so far (epoch ms)."""
        return int(self._watermark)

    def restore(self, partition: int, image: Delta, watermark: int) -> None:
        """Resume one partition from what `changes` returned and the watermark at that time.

        Partitions of different workers may come together here: the watermark is then that of the
        slowest, so that no row is late because of another worker's progress.
        """
        self._watermark = min(self._watermark, watermark) if self._restored else watermark
        self._restored = True
        self._recent.restore(image, partition)

    def changes(self, partition: int) -> Delta:
        """The ids that came on a partition since the last call."""
        return self._recent.changes(partition)

    def apply(self, batch: Batch) -> Batch:
        """The batch without late and duplicate rows."""
        if not batch.rows.values:
            return batch
        before, recent = self._watermark, self._recent
        earliest, latest = batch.span
        newest = max(latest, before)
        may_be_late = earliest < newest - self._lateness_ms
        only = batch.partition
        partitions = batch.partitions if only is None else only
        # Where no row can be late and no table changes, one number stands for all watermarks.
        if not may_be_late and not recent.rotates_before(newest):
            is_new = recent.is_new(batch.ids, newest, partitions)
            if is_new is None:
                self._watermark = newest
                return batch
            watermarks = _watermarks(batch, before, is_new)
        else:
            watermarks = _watermarks(batch, before, None)
            is_new = recent.is_new(batch.ids, watermarks, partitions)
            if is_new is not None:
                watermarks = _watermarks(batch, before, is_new)
        self._watermark = int(watermarks[-1])
        on_time = batch.times >= watermarks - self._lateness_ms if may_be_late else None
        if is_new is None and (on_time is None or on_time.all()):
            return batch
        return self._remove(batch, watermarks, on_time, is_new)

    def _remove(
        self, batch: Batch, watermarks: I64, on_time: Mask | None, is_new: Mask | None
    ) -> Batch:
        everything = np.ones(len(batch), np.bool_)
        on_time = everything if on_time is None else on_time
        is_new = everything if is_new is None else is_new
        keep = on_time & is_new
        for row in np.flatnonzero(~keep).tolist():
            late = not on_time[row]
            letter = (
                self._late(batch, row, int(watermarks[row])) if late else _duplicate(batch, row)
            )
            batch.dead_letters.append(letter)
        return batch.keep(keep)

    def _late(self, batch: Batch, row: int, watermark: int) -> DeadLetter:
        behind = format_duration_ms(watermark - int(batch.times[row]))
        allowed = format_duration_ms(self._lateness_ms)
        detail = f"event time is {behind} behind the newest; allowed_lateness is {allowed}"
        return dead_letter(batch.rows, row, DeadLetterReason.LATE, detail)


def _watermarks(batch: Batch, before: int, is_new: Mask | None) -> I64:
    """The greatest event time with each row, ``(n,) int64``, those of duplicates left out."""
    times = batch.times if is_new is None else np.where(is_new, batch.times, before)
    watermarks: I64 = np.maximum.accumulate(np.maximum(times, before))
    return watermarks


def _duplicate(batch: Batch, row: int) -> DeadLetter:
    detail = f"an event with id {batch.ids[row]!r} came before"
    return dead_letter(batch.rows, row, DeadLetterReason.DUPLICATE_ID, detail)
