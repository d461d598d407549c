"""Starts a pipeline in this process: as the only worker, a supervised worker, or the supervisor."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from anabranch.dataflows.bus import AdminBus, Bus
from anabranch.dataflows.cli.output_claims import claimed_outputs, run_id
from anabranch.dataflows.runtime.supervised_worker import (
    EXIT_INTERRUPTED,
    EXIT_LOST,
    WorkerId,
    end_with_supervisor,
)
from anabranch.dataflows.runtime.supervisor import LocalWorkers, StopRequest, Supervisor
from anabranch.dataflows.telemetry.logs import (
    record,
    stderr_console,
    stop_capture,
    structured,
    warn,
)
from anabranch.dataflows.telemetry.versions import versions
from anabranch.state.store.lock import holder

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from anabranch.dataflows.declaration.pipeline import Pipeline
    from anabranch.dataflows.recovery.state_directory import StateDirectory
    from anabranch.dataflows.registry.warm_start import WarmStart
    from anabranch.dataflows.source.bus_source import SourceOptions
    from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics


_STARTED_MS = "ANABRANCH_STARTED_MS"  # environment variable of supervised workers


class OnOffsetOutOfRange(StrEnum):
    """What to do if retention has deleted messages before they were read."""

    stop = "stop"
    earliest = "earliest"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """The options of `anabranch run`, parsed.

    Attributes:
        bus: URL of the message bus, for people.
        state: the state directory; None: state is kept in memory only.
        start_offset: where to start reading without state, as it was written; None: earliest.
        on_offset_out_of_range: what to do about unread messages that are gone.
        until_end: stop at the end that the topics have now.
        batch_size: maximum number of messages per batch.
        shards: shards of each key space.
        checkpoint_s: seconds between two commits of state.
        metrics_port: where to serve metrics; None: nowhere.
        metrics_address: the address of this machine that they are served at.
        warm_start: the model with which a new state starts; None: an untrained one.
    """

    bus: str
    state: Path | None
    start_offset: str | None
    on_offset_out_of_range: OnOffsetOutOfRange
    until_end: bool
    batch_size: int
    shards: int
    checkpoint_s: float
    metrics_port: int | None
    warm_start: WarmStart | None = None
    metrics_address: str = "127.0.0.1"


def work(pipeline: Pipeline, bus: AdminBus, member: WorkerId, settings: RunSettings) -> None:
    """Run the only worker, or one worker of a cluster without state, in this process."""
    from anabranch.dataflows.cli.display.live_status import (
        LiveStatus,  # imported late: help and errors need no engine
    )
    from anabranch.dataflows.runtime.worker import LostWorkerError
    from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics

    console = stderr_console()
    with _prepared(pipeline, bus, member, 1, settings, console) as state:
        options, metrics = _options(pipeline, settings), WorkerMetrics(pipeline.name)
        _set_start(options, pipeline, bus, settings, state)
        _stop_on_signals(console, options.stop.set, again=lambda: _exit_at_once(console))
        _serve(metrics.registry, settings, console)
        _warm(pipeline, console)
        _print_start(pipeline, bus, settings, state, "", console)
        status = LiveStatus(pipeline.name, metrics.registry, console)
        try:
            with status.displayed():
                _run_worker(pipeline, bus, options, member, settings, metrics, state)
        except LostWorkerError as error:
            sentence = f"error: {error}: restart all workers"
            console.print(sentence, style="bold red", highlight=False, soft_wrap=True)
            raise typer.Exit(EXIT_LOST) from None
    status.summary()


def work_supervised(
    pipeline: Pipeline, bus: AdminBus, member: WorkerId, settings: RunSettings
) -> None:
    """Run a worker that a supervisor has started."""
    from anabranch.dataflows.runtime.worker import LostWorkerError, stop_on_signals
    from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics

    options = _options(pipeline, settings)
    with ExitStack() as stack:
        stack.enter_context(stop_on_signals(options))
        end_with_supervisor(options.stop)
        state: StateDirectory | None = None
        if settings.state is not None:
            from anabranch.dataflows.recovery.state_directory import StateDirectory

            joined = StateDirectory.join(
                settings.state,
                pipeline,
                bus,
                shards=settings.shards,
                workers=member.workers,
            )
            state = stack.enter_context(joined)
        _set_start(options, pipeline, bus, settings, state)
        metrics = WorkerMetrics(pipeline.name)
        try:
            _run_worker(pipeline, bus, options, member, settings, metrics, state)
        except LostWorkerError:
            raise typer.Exit(EXIT_LOST) from None


def supervise(
    pipeline: Pipeline,
    bus: AdminBus,
    member: WorkerId,
    members: Sequence[int],
    settings: RunSettings,
) -> None:
    """Run the cluster's workers of this machine, each in its own process, and restart them."""
    from anabranch.dataflows.cli.display.live_status import LiveStatus
    from anabranch.dataflows.telemetry.supervisor import restarts_counter
    from anabranch.dataflows.telemetry.worker_metrics import shared_registry

    console = stderr_console()
    print_line = partial(console.print, highlight=False, soft_wrap=True)
    command = [sys.executable, "-m", "anabranch", *sys.argv[1:]]
    environment = {_STARTED_MS: str(_started_ms())}
    if settings.state is not None:
        environment["ANABRANCH_RUN_STATE"] = str(settings.state)
    workers = member.workers if member.addresses else len(members)
    with (
        _prepared(pipeline, bus, member, workers, settings, console) as state,
        LocalWorkers(command, members, member.addresses, environment=environment) as cluster,
    ):
        registry = shared_registry(cluster.metrics_directory)
        restarts = restarts_counter(registry)
        stop = _stop_on_signals(console)
        _serve(registry, settings, console, len(members))
        _warm(pipeline, console)
        how = f" in {workers} processes" if workers == len(members) else f" as {member}"
        _print_start(pipeline, bus, settings, state, how, console)
        status = LiveStatus(pipeline.name, registry, console)
        supervisor = Supervisor(
            cluster,
            generation=state.generation if state is not None else None,
            say=print_line,
            warn=partial(warn, console),
            on_restart=restarts.labels(pipeline.name).inc,
        )
        with status.displayed():
            supervisor.run(stop)
        status.summary()


def _run_worker(
    pipeline: Pipeline,
    bus: AdminBus,
    options: SourceOptions,
    member: WorkerId,
    settings: RunSettings,
    metrics: WorkerMetrics,
    state: StateDirectory | None,
) -> None:
    from anabranch.dataflows.runtime.worker import run_worker

    # Loaded modules stay for good: a garbage collection that scans them would stall the stream.
    gc.collect()
    gc.freeze()
    run_worker(
        pipeline,
        bus,
        options,
        worker_id=member,
        metrics=metrics,
        checkpoint_interval_s=settings.checkpoint_s,
        shards=settings.shards,
        state=state,
    )


def _options(pipeline: Pipeline, settings: RunSettings) -> SourceOptions:
    from anabranch.dataflows.source.bus_source import SourceOptions

    return SourceOptions(
        limit=settings.batch_size,
        until_end=settings.until_end,
        group=f"anabranch-{pipeline.name}",
        on_out_of_range=settings.on_offset_out_of_range.value,
    )


def _set_start(
    options: SourceOptions,
    pipeline: Pipeline,
    bus: Bus,
    settings: RunSettings,
    state: StateDirectory | None,
) -> None:
    """Let a state that begins start where the user said.

    Raises:
        InputError: that is no place in the topics.
    """
    from anabranch.dataflows.source.start_offsets import parse_start, resolve_start

    where = settings.start_offset
    if where is None or (state is not None and state.generation()):
        return
    start = parse_start(where, pipeline.zone, _started_ms())
    if start == "earliest" or start == "latest":
        options.start_offset = start
        return
    read = [topic for topic in pipeline.inputs if topic != pipeline.topics.control]
    options.start_offsets = resolve_start(bus, read, start)


def _started_ms() -> int:
    """When the run was started, epoch ms: the same for all of its workers, whenever they start."""
    return int(os.environ.get(_STARTED_MS) or time.time_ns() // 1_000_000)


@contextmanager
def _prepared(
    pipeline: Pipeline,
    bus: AdminBus,
    member: WorkerId,
    workers: int,
    settings: RunSettings,
    console: Console,
) -> Iterator[StateDirectory | None]:
    """Lock the state directory, repartition it for so many workers, and yield it."""
    say = partial(console.print, highlight=False, soft_wrap=True)
    if settings.state is None:
        with claimed_outputs(pipeline, bus, run_id(None, member), say):
            yield None
        return
    from anabranch.dataflows.recovery.state_directory import StateDirectory

    with ExitStack() as stack:
        # A run that has the state has claimed the outputs, too: its lock says more.
        if holder(settings.state) is None:
            run = run_id(settings.state, member)
            stack.enter_context(claimed_outputs(pipeline, bus, run, say))
        state = stack.enter_context(
            StateDirectory.open(
                settings.state,
                pipeline,
                bus,
                shards=settings.shards,
                workers=workers,
                process=member.process,
                hosts=member.workers,
                on_recreated=settings.on_offset_out_of_range.value,
                say=say,
            )
        )
        if settings.start_offset is not None and state.generation():
            console.print(
                f"--start-offset {settings.start_offset} is ignored: the run resumes from the "
                "offsets in its state",
                soft_wrap=True,
            )
        if settings.warm_start is not None:
            from anabranch.dataflows.registry.warm_start import warm_start

            warm_start(state, settings.warm_start, say)
        yield state


def _print_start(
    pipeline: Pipeline,
    bus: AdminBus,
    settings: RunSettings,
    state: StateDirectory | None,
    how: str,
    console: Console,
) -> None:
    if state is None:
        where = "state in memory only"
    elif generation := state.generation():
        behind = state.lag(bus)
        where = (
            f"state in {settings.state}, resuming from generation {generation:,}, "
            f"{behind:,} messages behind"
        )
    else:
        where = f"state in {settings.state}, which is new"
    text = f"running {pipeline.name} on {settings.bus}{how}, {where}; Ctrl-C stops it"
    if structured():
        record(text, versions=versions())
    else:
        console.print(text, soft_wrap=True)


def _stop_on_signals(
    console: Console,
    first: Callable[[], None] = lambda: None,
    again: Callable[[], None] = lambda: None,
) -> StopRequest:
    def on_first() -> None:
        first()
        console.print(
            "stopping once the messages already read are processed; Ctrl-C again stops at once",
            soft_wrap=True,
        )

    stop = StopRequest(on_first, again)
    stop.install()
    return stop


def _exit_at_once(console: Console) -> None:
    console.show_cursor()
    console.print("stopped; the next run resumes from the last checkpoint", soft_wrap=True)
    stop_capture()
    os._exit(EXIT_INTERRUPTED)


def _serve(
    registry: CollectorRegistry, settings: RunSettings, console: Console, workers: int = 1
) -> None:
    if settings.metrics_port is not None:
        from anabranch.dataflows.telemetry.http_server import serve

        host = settings.metrics_address
        port = serve(registry, settings.metrics_port, host, workers=workers)
        where = f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"
        everywhere = ", on all addresses of this machine" if host in ("0.0.0.0", "::") else ""
        console.print(f"metrics on {where}{everywhere}", highlight=False, soft_wrap=True)


def _warm(pipeline: Pipeline, console: Console) -> None:
    from anabranch.dataflows.cli.display.live_status import compiling
    from anabranch.dataflows.steps.warmup import warm

    with compiling(console):
        warm(pipeline)
