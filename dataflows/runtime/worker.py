"""Runs the dataflow of a pipeline in this process, to its end or until it is told to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

from bytewax.recovery import InconsistentPartitionsError, MissingPartitionsError
from bytewax.run import cli_main

from anabranch.dataflows.bus import Bus
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.error_guard import Guard, WatchedBus
from anabranch.dataflows.recovery.state_directory import StateDirectory
from anabranch.dataflows.runtime.member import ALONE, Member
from anabranch.dataflows.runtime.supervised_worker import STOP_SIGNALS
from anabranch.dataflows.sink.callback_sink import ResultsCallback
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.dataflows.steps.graph import build_graph
from anabranch.dataflows.telemetry.stream_log import StreamLog
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics
from anabranch.state.errors import AnabranchError, StateError

# What stands in the engine's report: the thread that reads from another worker has failed, or left
# its queue in the middle, whichever is noticed first.
_LOST = ("thread panic", "MergeQueue poisoned")


class LostWorkerError(AnabranchError):
    """Another worker of the cluster is gone, and this one can't go on without it."""


def run_worker(
    pipeline: Pipeline,
    bus: Bus,
    options: SourceOptions,
    *,
    member: Member = ALONE,
    metrics: WorkerMetrics | None = None,
    epoch_s: float = 5.0,
    shards: int = 8,
    state: StateDirectory | None = None,
    outlet: ResultsCallback | None = None,
) -> None:
    """Run until the input ends (``options.until_end``), `stop_on_signals`, or a failure.

    With ``state`` it goes on from where the last run was, and an epoch is committed every
    ``epoch_s`` seconds. With ``outlet`` it gets the results, and nothing is published.

    Raises:
        AnabranchError: what made the flow impossible, in one sentence.
    """
    options.worker_id = str(member.process)
    if member.workers > shards:
        raise AnabranchError(
            f"{member.workers} workers can't share {shards} shards: start at most {shards} workers"
        )
    metrics = metrics or WorkerMetrics(pipeline.name)
    guard, log = Guard(), StreamLog(pipeline.topics.dead_letters)
    metrics.ask(log.flush)
    if state is not None:
        state.guard, state.on_commit = guard, metrics.state.on_commit
    flow = build_graph(
        pipeline,
        WatchedBus(bus, guard),
        options,
        workers=member.workers,
        shards=shards,
        metrics=metrics,
        guard=guard,
        state=state,
        outlet=outlet,
        log=log,
    )
    try:
        with guard.watching():
            cli_main(  # type: ignore[no-untyped-call]
                flow,
                process_id=member.process if member.addresses else None,
                addresses=list(member.addresses) or None,
                epoch_interval=timedelta(seconds=epoch_s),
                recovery_config=None if state is None else state.recovery_config(),
            )
    except BaseException as error:
        cause = options.failure or guard.failure or find_cause(error)
        if cause is None and member.workers > 1 and tells_of_a_lost_worker(error):
            cause = LostWorkerError(f"worker {member.process} lost its connection to another one")
        if cause is None and state is not None:
            cause = _of_the_state(error, state)
        if cause is None:
            raise
        raise cause from None
    finally:
        metrics.flush()
        log.finish()
    failure = options.failure or guard.failure
    if failure is not None:
        raise failure


def find_cause(error: BaseException) -> AnabranchError | None:
    """The first of our own errors in the chain that the engine has wrapped around it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, AnabranchError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def tells_of_a_lost_worker(error: BaseException) -> bool:
    """Whether the engine failed because its connection to another worker did."""
    seen: BaseException | None = error
    while seen is not None:
        if any(sign in str(seen) for sign in _LOST):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _of_the_state(error: BaseException, state: StateDirectory) -> StateError | None:
    """What the engine says of a full disk, and of recovery partitions that don't fit together."""
    seen: BaseException | None = error
    while seen is not None:
        if "DiskFull" in str(seen):
            return StateError(
                f"the state at {state.path} can't be written, the disk is full; make room there"
            )
        if isinstance(seen, (InconsistentPartitionsError, MissingPartitionsError)):
            return StateError(
                f"the recovery partitions of this cluster don't fit together, of which {state.path}"
                f" holds one ({seen}): start with the state directory of every host, all from one "
                "moment"
            )
        seen = seen.__cause__ or seen.__context__
    return None


@contextmanager
def stop_on_signals(options: SourceOptions) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the flow after the rows that were read."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        options.stop.set()

    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
