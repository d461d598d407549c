"""What may enter: no event twice, none later than the pipeline's lateness."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.batch.batch import Batch
from anabranch.dataflows.batch.dead_letters import payload_fields
from anabranch.dataflows.batch.taking import take_rows
from anabranch.dataflows.messages.event_time import FIRST_MS
from anabranch.dataflows.messages.outputs import DeadLetter
from anabranch.state.durations import format_duration_ms, parse_duration_ms
from anabranch.state.labels.recent_ids import RecentIds
from anabranch.state.store.delta import Delta

I64 = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Admission:
    """Turns away late events and duplicate ids; what is turned away is in the batch's ``dead``.

    Lateness is judged against the greatest event time that this reader has admitted, duplicates
    within the partition (an event that is published twice goes to the same one).
    """

    def __init__(self, topic: str, lateness: str, duplicates: str) -> None:
        self._topic = topic
        self._lateness_ms = parse_duration_ms(lateness)
        self._horizon_ms = parse_duration_ms(duplicates)
        self._watermark = FIRST_MS
        self._recent: dict[int | None, RecentIds] = {}

    @property
    def watermark_ms(self) -> int:
        """The greatest event time admitted so far (epoch ms)."""
        return int(self._watermark)

    def restore(self, partition: int, image: Delta, watermark: int) -> None:
        """Go on, for one partition, from what `changes` gave and the watermark of that moment.

        Partitions of workers that were apart may come together here: the watermark is then that of
        the slowest, so that nobody's rows are late for another's sake.
        """
        self._watermark = min(self._watermark, watermark) if self._recent else watermark
        self._recent[partition] = RecentIds(self._horizon_ms)
        self._recent[partition].restore(image)

    def changes(self, partition: int) -> Delta:
        """The ids that came on a partition since the last call."""
        recent = self._recent.get(partition)
        return Delta() if recent is None else recent.changes()

    def admit(self, batch: Batch) -> Batch:
        """The batch without the rows that may not enter."""
        if not batch.rows.values:
            return batch
        before = self._watermark
        earliest, latest = batch.span
        newest = self._watermark = max(latest, before)
        may_be_late = earliest < newest - self._lateness_ms
        recent = self._recent.get(batch.partition)
        # Where no row can be late and no table changes, one number stands for all watermarks.
        if recent is not None and not may_be_late and not recent.turns_before(newest):
            fresh = recent.is_new(batch.ids, newest)
            return batch if fresh is None else self._turn_away(batch, newest, None, fresh)
        partitions = self._partitions(batch, before)
        watermarks = np.maximum.accumulate(np.maximum(batch.times, before))
        on_time = batch.times >= watermarks - self._lateness_ms if may_be_late else None
        fresh = self._fresh(batch, partitions, watermarks)
        if fresh is None and (on_time is None or on_time.all()):
            return batch
        return self._turn_away(batch, watermarks, on_time, fresh)

    def _turn_away(
        self, batch: Batch, watermarks: I64 | int, on_time: Mask | None, fresh: Mask | None
    ) -> Batch:
        everyone = np.ones(len(batch), np.bool_)
        on_time = everyone if on_time is None else on_time
        fresh = everyone if fresh is None else fresh
        newest = np.broadcast_to(np.asarray(watermarks), len(batch))
        keep = on_time & fresh
        for row in np.flatnonzero(~keep).tolist():
            batch.dead.append(self._refuse(batch, row, bool(on_time[row]), int(newest[row])))
        return batch.keep(keep)

    def _partitions(self, batch: Batch, before: int) -> list[int]:
        """The partitions in a batch; the ids of a new one are kept from its first row on."""
        only = batch.partition
        found: list[int] = np.unique(batch.partitions).tolist() if only is None else [only]
        for partition in found:
            if partition not in self._recent:
                row = int(np.argmax(batch.partitions == partition))
                watermark = max(before, int(batch.times[: row + 1].max()))
                self._recent[partition] = RecentIds(self._horizon_ms, watermark)
        return found

    def _fresh(self, batch: Batch, partitions: list[int], watermarks: I64) -> Mask | None:
        """False where the id was seen before; None when all are new."""
        if len(partitions) == 1:
            return self._recent[partitions[0]].is_new(batch.ids, watermarks)
        fresh = np.ones(len(batch), np.bool_)
        for partition in partitions:
            rows = np.flatnonzero(batch.partitions == partition)
            ids = take_rows(batch.ids, rows)
            found = self._recent[partition].is_new(ids, watermarks[rows])
            if found is not None:
                fresh[rows] = found
        return None if fresh.all() else fresh

    def _refuse(self, batch: Batch, row: int, on_time: bool, watermark: int) -> DeadLetter:
        if on_time:
            reason, detail = "duplicate id", f"an event with id {batch.ids[row]!r} was here before"
        else:
            behind = format_duration_ms(watermark - int(batch.times[row]))
            allowed = format_duration_ms(self._lateness_ms)
            reason = "late"
            detail = f"event time is {behind} behind the newest; allowed_lateness is {allowed}"
        return DeadLetter(
            topic=self._topic,
            partition=int(batch.partitions[row]),
            offset=int(batch.offsets[row]),
            reason=reason,
            detail=detail,
            **payload_fields(batch.payloads[row]),
        )
