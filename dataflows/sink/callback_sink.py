"""The other way out of the flow: results go to a function as they are, and nothing is published."""

from __future__ import annotations

from collections.abc import Callable

from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition

from anabranch.dataflows.batch.batch import Wake
from anabranch.dataflows.batch.results import Results
from anabranch.dataflows.error_guard import Guard

Outlet = Callable[[Results], None]
"""Takes what the model step made of each batch, in order."""

_PART = "outlet"


class OutletSink(FixedPartitionedSink[Results | Wake, int]):
    """Hands every result to ``outlet``, which alone says what becomes of it.

    It keeps nothing: a flow that is killed begins its output anew. ``guard`` watches for errors
    that the user should see alone.
    """

    def __init__(self, outlet: Outlet, guard: Guard | None = None) -> None:
        self._outlet = outlet
        self._guard = guard

    def list_parts(self) -> list[str]:
        return [_PART]

    def part_fn(self, item_key: str) -> int:
        return 0

    def build_part(
        self, step_id: str, for_part: str, resume_state: int | None
    ) -> StatefulSinkPartition[Results | Wake, int]:
        return _OutletPart(self._outlet, self._guard)


class _OutletPart(StatefulSinkPartition[Results | Wake, int]):
    def __init__(self, outlet: Outlet, guard: Guard | None) -> None:
        self._outlet = outlet
        self._guard = guard

    def write_batch(self, items: list[Results | Wake]) -> None:
        for item in items:
            if isinstance(item, Wake):
                continue
            if self._guard is None:
                self._outlet(item)
            else:
                self._guard.call(self._outlet, item)

    def snapshot(self) -> int:
        return 0
