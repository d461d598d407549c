"""Determines what a kill interrupted, from what is on disk; nothing may run meanwhile."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from anabranch.dataflows.bus import open_bus
from anabranch.dataflows.recovery.inspection import inspect
from anabranch.dataflows.recovery.resume_point import (
    read_resume_point,
    recovery_files,
    resume_epoch,
)
from anabranch.dataflows.recovery.tokens import decode_sink
from anabranch.state.errors import StateError


def hits(state: Path, url: str, began: int) -> Counter[str]:
    """What the kill interrupted; ``began`` is the epoch at which the killed run had started.

    Usually several things: state partitions that are ahead of the engine, and will be rolled back;
    output messages that are not confirmed, and will be suppressed.
    """
    found: Counter[str] = Counter()
    try:
        report = inspect(state)
        now = resume_epoch(recovery_files(state / "recovery"))
    except StateError:
        return Counter({"making the state": 1})
    assert not report.problems, report.problems
    found["before the first epoch of a start"] += now == began
    ahead = [
        place for place in report.state_partitions if place.generation > (place.resumes_at or 0)
    ]
    found["with places to roll back"] += bool(ahead)
    found["places to roll back"] += len(ahead)
    published = _unconfirmed(state, report.manifest.output_ends, url)
    found["with messages to suppress"] += published > 0
    found["messages to suppress"] += published
    found["between epochs, nothing to mend"] += not ahead and not published
    return found


def _unconfirmed(state: Path, since: dict[str, list[int]], url: str) -> int:
    """Messages on the outputs after what the sink had confirmed."""
    ends = read_resume_point(state / "recovery").of_step("sink")
    bus = open_bus(url)
    try:
        count = 0
        for topic, beginnings in since.items():
            for partition, end in enumerate(bus.end_offsets(topic)):
                confirmed = decode_sink(ends.get(f"{partition:06d}")).ends
                count += end - confirmed.get(topic, beginnings[partition])
        return count
    finally:
        bus.close()
