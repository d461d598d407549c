"""Runs the dataflow of a pipeline in this process, to its end or until it is told to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType

from bytewax.recovery import InconsistentPartitionsError, MissingPartitionsError
from bytewax.run import cli_main

from dataflows.bus import Bus
from dataflows.failure import Guard, WatchedBus
from dataflows.graph import build_graph
from dataflows.intake import IntakeOptions
from dataflows.metrics import WorkerMetrics
from dataflows.pipeline import Pipeline
from dataflows.recovery import StateDirectory
from state.errors import AnabranchError, StateError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class LostWorkerError(AnabranchError):
    """Another worker of the cluster is gone, and this one can't go on without it."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """This process's place among the workers; one worker a process.

    ``addresses`` are ``host:port`` of all processes, in the same order everywhere; empty for a
    single process.
    """

    process: int = 0
    addresses: Sequence[str] = ()

    @property
    def workers(self) -> int:
        """How many workers the cluster has."""
        return max(len(self.addresses), 1)


def run_worker(
    pipeline: Pipeline,
    bus: Bus,
    options: IntakeOptions,
    *,
    cluster: Cluster = Cluster(),
    metrics: WorkerMetrics | None = None,
    epoch_s: float = 5.0,
    shards: int = 8,
    state: StateDirectory | None = None,
) -> None:
    """Run until the input ends (``options.until_end``), `stop_on_signals`, or a failure.

    With ``state`` it goes on from where the last run was, and an epoch is committed every
    ``epoch_s`` seconds.

    Raises:
        AnabranchError: what made the flow impossible, in one sentence.
    """
    options.origin = str(cluster.process)
    if cluster.workers > shards:
        raise AnabranchError(
            f"{cluster.workers} workers can't share {shards} shards: start at most {shards} workers"
        )
    metrics = metrics or WorkerMetrics(pipeline.name)
    guard = Guard()
    if state is not None:
        state.guard, state.on_commit = guard, metrics.on_commit
    flow = build_graph(
        pipeline,
        WatchedBus(bus, guard),
        options,
        workers=cluster.workers,
        shards=shards,
        metrics=metrics,
        guard=guard,
        state=state,
    )
    try:
        with guard.watching():
            cli_main(  # type: ignore[no-untyped-call]
                flow,
                process_id=cluster.process if cluster.addresses else None,
                addresses=list(cluster.addresses) or None,
                epoch_interval=timedelta(seconds=epoch_s),
                recovery_config=None if state is None else state.recovery_config(),
            )
    except BaseException as error:
        cause = options.failure or guard.failure or find_cause(error)
        if cause is None and cluster.workers > 1 and "thread panic" in str(error):
            cause = LostWorkerError(f"worker {cluster.process} lost its connection to another one")
        if cause is None and state is not None:
            cause = _inconsistent(error, state)
        if cause is None:
            raise
        raise cause from None
    finally:
        metrics.flush()
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


def _inconsistent(error: BaseException, state: StateDirectory) -> StateError | None:
    """What the engine says of recovery partitions on several hosts that don't fit together."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, (InconsistentPartitionsError, MissingPartitionsError)):
            return StateError(
                f"the recovery partitions of this cluster don't fit together, of which {state.path}"
                f" holds one ({seen}): start with the state directory of every host, all from one "
                "moment"
            )
        seen = seen.__cause__ or seen.__context__
    return None


@contextmanager
def stop_on_signals(options: IntakeOptions) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the flow after the rows that were read."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        options.stop.set()

    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
