"""Starts a pipeline: as the one worker, as a worker of a supervisor, or as the supervisor."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from anabranch.dataflows.bus import Bus
from anabranch.dataflows.runtime.supervised_worker import (
    EXIT_INTERRUPTED,
    EXIT_LOST,
    WorkerId,
    end_with_supervisor,
)
from anabranch.dataflows.runtime.supervisor import LocalWorkers, StopRequest, Supervisor
from anabranch.dataflows.telemetry.logs import record, stderr_console, structured, warn
from anabranch.dataflows.telemetry.versions import versions

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from anabranch.dataflows.declaration.pipeline import Pipeline
    from anabranch.dataflows.recovery.state_directory import StateDirectory
    from anabranch.dataflows.registry.warm_start import WarmStart
    from anabranch.dataflows.source.bus_source import SourceOptions
    from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics


class Begin(StrEnum):
    """Where to begin reading."""

    earliest = "earliest"
    latest = "latest"


class Lost(StrEnum):
    """What to do about messages that retention has removed before they were read."""

    stop = "stop"
    earliest = "earliest"


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What the options of a run say. ``state`` is None for state in memory only.

    ``beginning`` is the model that a new state begins with; None: with nothing learned.
    """

    bus: str
    state: Path | None
    begin: Begin | None
    lost: Lost
    until_end: bool
    batch: int
    shards: int
    epoch_s: float
    metrics_port: int | None
    beginning: WarmStart | None = None


def work(pipeline: Pipeline, bus: Bus, member: WorkerId, settings: RunSettings) -> None:
    """The only worker, or one of a cluster without state: in this process."""
    from anabranch.dataflows.cli.display.live_status import (
        Watch,  # the engine is only loaded where it runs
    )
    from anabranch.dataflows.runtime.worker import LostWorkerError
    from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics

    console = stderr_console()
    with _prepared(pipeline, bus, member, 1, settings, console) as state:
        options, metrics = _options(pipeline, settings), WorkerMetrics(pipeline.name)
        _stop_on_signals(console, options.stop.set, again=lambda: _end_at_once(console))
        _serve(metrics.registry, settings.metrics_port, console)
        _warm(pipeline, console)
        _say_running(pipeline, bus, settings, state, "", console)
        watch = Watch(pipeline.name, metrics.registry, console)
        try:
            with watch.shown():
                _run_worker(pipeline, bus, options, member, settings, metrics, state)
        except LostWorkerError as error:
            sentence = f"error: {error}: start all again"
            console.print(sentence, style="bold red", highlight=False, soft_wrap=True)
            raise typer.Exit(EXIT_LOST) from None
    watch.summary()


def work_supervised(pipeline: Pipeline, bus: Bus, member: WorkerId, settings: RunSettings) -> None:
    """A worker that a supervisor has started."""
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
        metrics = WorkerMetrics(pipeline.name)
        try:
            _run_worker(pipeline, bus, options, member, settings, metrics, state)
        except LostWorkerError:
            raise typer.Exit(EXIT_LOST) from None


def supervise(
    pipeline: Pipeline, bus: Bus, member: WorkerId, members: Sequence[int], settings: RunSettings
) -> None:
    """The local members of a cluster, each a process of its own."""
    from anabranch.dataflows.cli.display.live_status import Watch
    from anabranch.dataflows.telemetry.supervisor import restarts_counter
    from anabranch.dataflows.telemetry.worker_metrics import shared_registry

    console = stderr_console()
    say = partial(console.print, highlight=False, soft_wrap=True)
    command = [sys.executable, "-m", "anabranch", *sys.argv[1:]]
    known = {} if settings.state is None else {"ANABRANCH_RUN_STATE": str(settings.state)}
    workers = member.workers if member.addresses else len(members)
    with (
        _prepared(pipeline, bus, member, workers, settings, console) as state,
        LocalWorkers(command, members, member.addresses, environment=known) as cluster,
    ):
        registry = shared_registry(cluster.metrics_directory)
        restarts = restarts_counter(registry)
        stop = _stop_on_signals(console)
        _serve(registry, settings.metrics_port, console, len(members))
        _warm(pipeline, console)
        how = f" in {workers} processes" if workers == len(members) else f" as {member}"
        _say_running(pipeline, bus, settings, state, how, console)
        watch = Watch(pipeline.name, registry, console)
        supervisor = Supervisor(
            cluster,
            generation=state.generation if state is not None else None,
            say=say,
            warn=partial(warn, console),
            on_restart=restarts.labels(pipeline.name).inc,
        )
        with watch.shown():
            supervisor.run(stop)
        watch.summary()


def _run_worker(
    pipeline: Pipeline,
    bus: Bus,
    options: SourceOptions,
    member: WorkerId,
    settings: RunSettings,
    metrics: WorkerMetrics,
    state: StateDirectory | None,
) -> None:
    from anabranch.dataflows.runtime.worker import run_worker

    # What was loaded stays: looking through it again for garbage would hold the stream up.
    gc.collect()
    gc.freeze()
    run_worker(
        pipeline,
        bus,
        options,
        worker_id=member,
        metrics=metrics,
        checkpoint_interval_s=settings.epoch_s,
        shards=settings.shards,
        state=state,
    )


def _options(pipeline: Pipeline, settings: RunSettings) -> SourceOptions:
    from anabranch.dataflows.source.bus_source import SourceOptions

    return SourceOptions(
        limit=settings.batch,
        start_offset=(settings.begin or Begin.earliest).value,
        until_end=settings.until_end,
        group=f"anabranch-{pipeline.name}",
        on_out_of_range=settings.lost.value,
    )


@contextmanager
def _prepared(
    pipeline: Pipeline,
    bus: Bus,
    member: WorkerId,
    workers: int,
    settings: RunSettings,
    console: Console,
) -> Iterator[StateDirectory | None]:
    """The state directory, held by this run alone and made ready for so many workers."""
    if settings.state is None:
        yield None
        return
    from anabranch.dataflows.recovery.state_directory import StateDirectory

    with StateDirectory.open(
        settings.state,
        pipeline,
        bus,
        shards=settings.shards,
        workers=workers,
        process=member.process,
        hosts=member.workers,
        say=partial(console.print, highlight=False, soft_wrap=True),
    ) as state:
        if settings.begin is not None and state.generation():
            line = f"--from {settings.begin} is ignored: the state says where to go on from"
            console.print(line, soft_wrap=True)
        if settings.beginning is not None:
            from anabranch.dataflows.registry.warm_start import warm_start

            say = partial(console.print, highlight=False, soft_wrap=True)
            warm_start(state, settings.beginning, say)
        yield state


def _say_running(
    pipeline: Pipeline,
    bus: Bus,
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
            f"state in {settings.state}, going on from generation {generation:,}, "
            f"{behind:,} messages behind"
        )
    else:
        where = f"state in {settings.state}, which is new"
    text = f"running {pipeline.name} on {settings.bus}{how}, {where}; Ctrl-C ends it"
    if structured():
        record(text, versions=versions())
    else:
        console.print(text, soft_wrap=True)


def _stop_on_signals(
    console: Console,
    first: Callable[[], None] = lambda: None,
    again: Callable[[], None] = lambda: None,
) -> StopRequest:
    def asked() -> None:
        first()
        console.print("ending after what was read; Ctrl-C again ends at once", soft_wrap=True)

    stop = StopRequest(asked, again)
    stop.install()
    return stop


def _end_at_once(console: Console) -> None:
    console.show_cursor()
    console.print("ended at once; the next start goes on from what was kept", soft_wrap=True)
    os._exit(EXIT_INTERRUPTED)


def _serve(
    registry: CollectorRegistry, port: int | None, console: Console, workers: int = 1
) -> None:
    if port is not None:
        from anabranch.dataflows.telemetry.http_server import serve

        address = f"http://127.0.0.1:{serve(registry, port, workers=workers)}/metrics"
        console.print(f"metrics on {address}", highlight=False, soft_wrap=True)


def _warm(pipeline: Pipeline, console: Console) -> None:
    from anabranch.dataflows.cli.display.live_status import compiling
    from anabranch.dataflows.steps.warmup import warm

    with compiling(console):
        warm(pipeline)
