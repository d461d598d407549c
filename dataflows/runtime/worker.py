"""Runs the dataflow of a pipeline in this process, until its end or until it is stopped."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

from bytewax.recovery import InconsistentPartitionsError, MissingPartitionsError
from bytewax.run import cli_main

from anabranch.dataflows.bus import Bus
from anabranch.dataflows.declaration.input_topics import resolve_topics
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.error_guard import ErrorGuard, GuardedBus
from anabranch.dataflows.recovery.state_directory import StateDirectory
from anabranch.dataflows.recovery.verification import RECOVERY
from anabranch.dataflows.runtime.process_exit import engine_started
from anabranch.dataflows.runtime.supervised_worker import SINGLE_WORKER, STOP_SIGNALS, WorkerId
from anabranch.dataflows.sink.callback_sink import ResultsCallback
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.dataflows.steps.graph import GraphOptions, build_graph
from anabranch.dataflows.telemetry.stream_log import StreamLog
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics
from anabranch.state.errors import AnabranchError, StateError

# In the engine's report: the thread that reads from another worker has failed, or has left its
# queue in the middle, whichever is noticed first.
_LOST = ("thread panic", "MergeQueue poisoned")


class LostWorkerError(AnabranchError):
    """Another worker of the cluster is gone, and this one can't run without it."""


def run_worker(
    pipeline: Pipeline,
    bus: Bus,
    options: SourceOptions,
    *,
    worker_id: WorkerId = SINGLE_WORKER,
    metrics: WorkerMetrics | None = None,
    checkpoint_interval_s: float = 5.0,
    shards: int = 8,
    state: StateDirectory | None = None,
    callback: ResultsCallback | None = None,
) -> None:
    """Run until the input ends (``options.until_end``), `stop_on_signals`, or a failure.

    Args:
        pipeline, bus: what to run, and on what.
        options: how the source reads.
        worker_id: which worker this is.
        metrics: by default new ones.
        checkpoint_interval_s: how often an epoch is committed to ``state``.
        shards: how many all workers share.
        state: where the run resumes from; None: it starts from scratch and stores nothing.
        callback: gets the results, and nothing is published; None: they are.

    Raises:
        AnabranchError: why the flow could not run, in one sentence.
    """
    options.worker_id = str(worker_id.process)
    options.list_topics = options.list_topics or bus.topics  # unguarded: an outage ends nothing
    resolve_topics(pipeline, bus)
    if worker_id.workers > shards:
        raise AnabranchError(
            f"{worker_id.workers} workers can't share {shards} shards: start at most {shards} "
            "workers"
        )
    metrics = metrics or WorkerMetrics(pipeline.name)
    guard, log = ErrorGuard(), StreamLog(pipeline.topics.dead_letters)
    metrics.add_reporter(log.flush)
    if state is not None:
        state.guard, state.on_commit = guard, metrics.state.on_commit
    graph = GraphOptions(metrics, worker_id.workers, shards, guard, state, callback, log)
    flow = build_graph(pipeline, GuardedBus(bus, guard), options, graph)
    engine_started()
    try:
        with guard.engine_running():
            cli_main(  # type: ignore[no-untyped-call]
                flow,
                process_id=worker_id.process if worker_id.addresses else None,
                addresses=list(worker_id.addresses) or None,
                epoch_interval=timedelta(seconds=checkpoint_interval_s),
                recovery_config=None if state is None else state.recovery_config(),
            )
    except BaseException as error:
        cause = options.failure or guard.failure
        if cause is None and guard.unexpected is not None and means_lost_worker(error):
            raise guard.unexpected from None
        cause = cause or _explain(error, worker_id, state)
        if cause is None:
            raise
        raise cause from None
    finally:
        metrics.finish()
        log.finish()
    failure = options.failure or guard.failure
    if failure is not None:
        raise failure


def find_cause(error: BaseException) -> AnabranchError | None:
    """The first of our own errors in the chain that the engine has wrapped around it."""
    own = _first(error, lambda each: isinstance(each, AnabranchError))
    return own if isinstance(own, AnabranchError) else None


def means_lost_worker(error: BaseException) -> bool:
    """Whether the engine failed because its connection to another worker did."""
    return _first(error, lambda each: any(sign in str(each) for sign in _LOST)) is not None


def _explain(
    error: BaseException, worker_id: WorkerId, state: StateDirectory | None
) -> AnabranchError | None:
    """What an error of the engine means to the user; None if nothing is known."""
    cause = find_cause(error)
    if cause is None and worker_id.workers > 1 and means_lost_worker(error):
        cause = LostWorkerError(f"worker {worker_id.process} lost its connection to another one")
    if cause is None and state is not None:
        cause = _explain_state_error(error, state)
    return cause


def _explain_state_error(error: BaseException, state: StateDirectory) -> StateError | None:
    """For a full disk, a locked or damaged recovery store, and partitions of different ones."""
    if _first(error, lambda each: "DiskFull" in str(each)) is not None:
        return StateError(
            f"the state at {state.path} can't be written, the disk is full; make room there"
        )
    store = state.path / RECOVERY
    if _first(error, lambda each: "database is locked" in str(each)) is not None:
        return StateError(
            f"the recovery store {store} can't be written, as another process has locked it: end "
            "that one, then start again"
        )
    if _first(error, lambda each: "malformed" in str(each)) is not None:
        return StateError(
            f"the recovery store {store} is damaged: restore {state.path} from a backup, or start "
            "from scratch with another --state"
        )
    kinds = (InconsistentPartitionsError, MissingPartitionsError)
    inconsistent = _first(error, lambda each: isinstance(each, kinds))
    if inconsistent is not None:
        return StateError(
            f"the recovery partitions of this cluster don't belong together, of which {state.path}"
            f" holds one ({inconsistent}): start with the state directory of every host, all from "
            "one moment"
        )
    return None


def _first(error: BaseException, matches: Callable[[BaseException], bool]) -> BaseException | None:
    """The first error of a chain that matches, the outermost first."""
    seen: BaseException | None = error
    while seen is not None and not matches(seen):
        seen = seen.__cause__ or seen.__context__
    return seen


@contextmanager
def stop_on_signals(options: SourceOptions) -> Iterator[None]:
    """Ctrl-C and SIGTERM stop the flow after the rows that were read."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        options.stop.set()

    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
