"""Claims the outputs of a pipeline for a run, before it reads or writes any of them."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from anabranch.dataflows.bus import AdminBus
from anabranch.dataflows.runtime.supervised_worker import WorkerId

if TYPE_CHECKING:
    from anabranch.dataflows.declaration.pipeline import Pipeline


def run_id(state: Path | None, member: WorkerId) -> str:
    """Identifies a run, or cluster, and those that continue from its state."""
    if member.addresses:
        return f"cluster {','.join(member.addresses)}"
    if state is None:
        return f"run {uuid.uuid4()}"
    return f"state {socket.gethostname()}:{state.absolute()}"


@contextmanager
def claimed_outputs(
    pipeline: Pipeline, bus: AdminBus, run: str, say: Callable[[str], None]
) -> Iterator[None]:
    """Hold the claims of all outputs; those that are missing are created.

    Raises:
        BusError: another pipeline, or another run of this one, writes one of them, or has begun to
            while this run did; or the bus does not respond.
    """
    from anabranch.dataflows.declaration.input_topics import create_missing, partition_count

    existing, outputs = bus.topics(), pipeline.topics.outputs
    present = [topic for topic in outputs if topic in existing]
    missing = [topic for topic in outputs if topic not in existing]
    with ExitStack() as stack:
        # What exists first: a pipeline that is refused leaves no topics behind.
        for topics in (present, missing):
            if topics:
                create_missing(bus, topics, partition_count(pipeline, bus))
                stack.enter_context(bus.claim_outputs(topics, pipeline.name, run, say))
        yield
