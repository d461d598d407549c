"""Filters late events and duplicate ids out of a batch; they become dead letters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.batch.batch import Batch
from anabranch.dataflows.batch.columns import take_rows
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

    An event is late by the greatest event time that passed this filter. Duplicates are found within
    a partition (an event that is published twice goes to the same one).

    Args:
        allowed_lateness: how far an event may be behind, a duration such as ``"10m"``.
        dedup_window: for how long an id is remembered, a duration.
    """

    def __init__(self, allowed_lateness: str, dedup_window: str) -> None:
        self._lateness_ms = parse_duration_ms(allowed_lateness)
        self._dedup_ms = parse_duration_ms(dedup_window)
        self._watermark = FIRST_MS
        self._recent: dict[int | None, RecentIds] = {}

    @property
    def watermark_ms(self) -> int:
        """The greatest event time that passed so far (epoch ms)."""
        return int(self._watermark)

    def restore(self, partition: int, image: Delta, watermark: int) -> None:
        """Resume one partition from what `changes` returned and the watermark at that time.

        Partitions of different workers may come together here: the watermark is then that of the
        slowest, so that no row is late because of another worker's progress.
        """
        self._watermark = min(self._watermark, watermark) if self._recent else watermark
        self._recent[partition] = RecentIds(self._dedup_ms)
        self._recent[partition].restore(image)

    def changes(self, partition: int) -> Delta:
        """The ids that came on a partition since the last call."""
        recent = self._recent.get(partition)
        return Delta() if recent is None else recent.changes()

    def apply(self, batch: Batch) -> Batch:
        """The batch without late and duplicate rows."""
        if not batch.rows.values:
            return batch
        before = self._watermark
        earliest, latest = batch.span
        newest = self._watermark = max(latest, before)
        may_be_late = earliest < newest - self._lateness_ms
        recent = self._recent.get(batch.partition)
        # Where no row can be late and no table changes, one number stands for all watermarks.
        if recent is not None and not may_be_late and not recent.rotates_before(newest):
            is_new = recent.is_new(batch.ids, newest)
            return batch if is_new is None else self._remove(batch, newest, None, is_new)
        partitions = self._partitions(batch, before)
        watermarks = np.maximum.accumulate(np.maximum(batch.times, before))
        on_time = batch.times >= watermarks - self._lateness_ms if may_be_late else None
        is_new = self._is_new(batch, partitions, watermarks)
        if is_new is None and (on_time is None or on_time.all()):
            return batch
        return self._remove(batch, watermarks, on_time, is_new)

    def _remove(
        self, batch: Batch, watermarks: I64 | int, on_time: Mask | None, is_new: Mask | None
    ) -> Batch:
        everything = np.ones(len(batch), np.bool_)
        on_time = everything if on_time is None else on_time
        is_new = everything if is_new is None else is_new
        newest = np.broadcast_to(np.asarray(watermarks), len(batch))
        keep = on_time & is_new
        for row in np.flatnonzero(~keep).tolist():
            late = not on_time[row]
            letter = self._late(batch, row, int(newest[row])) if late else _duplicate(batch, row)
            batch.dead_letters.append(letter)
        return batch.keep(keep)

    def _partitions(self, batch: Batch, before: int) -> list[int]:
        """The partitions in a batch; the ids of a new one are kept from its first row on."""
        only = batch.partition
        numbers: list[int] = np.unique(batch.partitions).tolist() if only is None else [only]
        for partition in numbers:
            if partition not in self._recent:
                row = int(np.argmax(batch.partitions == partition))
                watermark = max(before, int(batch.times[: row + 1].max()))
                self._recent[partition] = RecentIds(self._dedup_ms, watermark)
        return numbers

    def _is_new(self, batch: Batch, partitions: list[int], watermarks: I64) -> Mask | None:
        """False where the id was seen before; None when all are new."""
        if len(partitions) == 1:
            return self._recent[partitions[0]].is_new(batch.ids, watermarks)
        is_new = np.ones(len(batch), np.bool_)
        for partition in partitions:
            rows = np.flatnonzero(batch.partitions == partition)
            ids = take_rows(batch.ids, rows)
            of_partition = self._recent[partition].is_new(ids, watermarks[rows])
            if of_partition is not None:
                is_new[rows] = of_partition
        return None if is_new.all() else is_new

    def _late(self, batch: Batch, row: int, watermark: int) -> DeadLetter:
        behind = format_duration_ms(watermark - int(batch.times[row]))
        allowed = format_duration_ms(self._lateness_ms)
        detail = f"event time is {behind} behind the newest; allowed_lateness is {allowed}"
        return dead_letter(batch.rows, row, DeadLetterReason.LATE, detail)


def _duplicate(batch: Batch, row: int) -> DeadLetter:
    detail = f"an event with id {batch.ids[row]!r} came before"
    return dead_letter(batch.rows, row, DeadLetterReason.DUPLICATE_ID, detail)
