"""A sink that passes results to a function instead of publishing them."""

from __future__ import annotations

from collections.abc import Callable

from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition

from anabranch.dataflows.batch.batch import Bootstrap
from anabranch.dataflows.batch.results import Results
from anabranch.dataflows.error_guard import ErrorGuard

ResultsCallback = Callable[[Results], None]
"""Called with the results of each batch, in order."""

_PART = "callback"


class CallbackSink(FixedPartitionedSink[Results | Bootstrap, int]):
    """Calls ``callback`` with all results.

    It keeps no state: a flow that is killed calls again from the start. ``guard`` watches for
    errors that the user should see alone.
    """

    def __init__(self, callback: ResultsCallback, guard: ErrorGuard | None = None) -> None:
        self._callback = callback
        self._guard = guard

    def list_parts(self) -> list[str]:
        return [_PART]

    def part_fn(self, item_key: str) -> int:
        return 0

    def build_part(
        self, step_id: str, for_part: str, resume_state: int | None
    ) -> StatefulSinkPartition[Results | Bootstrap, int]:
        return _CallbackPartition(self._callback, self._guard)


class _CallbackPartition(StatefulSinkPartition[Results | Bootstrap, int]):
    def __init__(self, callback: ResultsCallback, guard: ErrorGuard | None) -> None:
        self._callback = callback
        self._guard = guard

    def write_batch(self, items: list[Results | Bootstrap]) -> None:
        for item in items:
            if isinstance(item, Bootstrap):
                continue
            if self._guard is None:
                self._callback(item)
            else:
                self._guard.call(self._callback, item)

    def snapshot(self) -> int:
        return 0
