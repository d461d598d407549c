"""``anabranch run``: the dataflow workers of a pipeline."""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from dataflows.bus import Bus
from dataflows.cli.options import (
    DEFAULT_BUS,
    BusSettings,
    BusUrl,
    PipelineName,
    opened_bus,
)
from dataflows.cluster import EXIT_LOST, SUPERVISED, LocalCluster
from state.errors import BusError, InputError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from dataflows.pipeline import Pipeline


class Begin(StrEnum):
    """Where to begin reading."""

    earliest = "earliest"
    latest = "latest"


@dataclass(frozen=True, slots=True)
class _Settings:
    """What the options of a run say, apart from how many processes share it."""

    bus: str
    bus_set: list[str] | None
    begin: Begin
    until_end: bool
    batch: int
    shards: int
    epoch_s: float
    metrics_port: int | None


def run(
    pipeline: PipelineName,
    bus: BusUrl = DEFAULT_BUS,
    bus_set: BusSettings = None,
    processes: Annotated[
        int,
        typer.Option("--processes", min=1, metavar="N", help="Worker processes on this machine."),
    ] = 1,
    addresses: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="host:port of every worker of a cluster on several hosts, comma-separated, the "
            "same on all; needs --process-id.",
        ),
    ] = None,
    process_id: Annotated[
        int | None,
        typer.Option("--process-id", min=0, metavar="N", help="Which of the addresses this is."),
    ] = None,
    begin: Annotated[
        Begin,
        typer.Option(
            "--from",
            envvar="ANABRANCH_RUN_FROM",
            metavar="WHERE",
            help="earliest or latest: where to begin reading.",
        ),
    ] = Begin.earliest,
    until_end: Annotated[
        bool, typer.Option("--until-end", help="Stop at what is on the topics now.")
    ] = False,
    batch: Annotated[
        int, typer.Option(min=1, metavar="N", help="Most messages in one batch.")
    ] = 1000,
    shards: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Shards of each key space: the most workers ever wanted."
        ),
    ] = 8,
    epoch: Annotated[
        str, typer.Option(metavar="TIME", help="How often deliveries are checked.")
    ] = "5s",
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port",
            min=0,
            max=65535,
            metavar="PORT",
            help="Serve Prometheus /metrics here; 0 picks a free port.",
        ),
    ] = None,
) -> None:
    """Run a pipeline: read events and labels, predict, learn, publish. Ctrl-C ends it cleanly.

    Examples:

        anabranch run payments --metrics-port 9100

        anabranch run dataset:Phishing --until-end

        anabranch run fraud.py --bus kafka://localhost:9092 --processes 2
    """
    from dataflows.load import load_pipeline
    from state.durations import parse_duration_ms

    declared = load_pipeline(pipeline)
    settings = _Settings(
        bus, bus_set, begin, until_end, batch, shards, parse_duration_ms(epoch) / 1000, metrics_port
    )
    place = _place(addresses, process_id)
    with opened_bus(bus, bus_set) as opened:
        _check_inputs(declared, opened, pipeline)
        if processes > 1 and addresses is None:
            if processes > shards:
                raise InputError(
                    f"{processes} processes can't share {shards} shards: raise --shards"
                )
            _supervise(declared, processes, settings)
        else:
            _work(declared, opened, place, settings)


def _work(pipeline: Pipeline, bus: Bus, place: tuple[int, list[str]], settings: _Settings) -> None:
    from dataflows.cli.live import Watch  # the engine is only loaded where it runs
    from dataflows.intake import IntakeOptions
    from dataflows.metrics import WorkerMetrics
    from dataflows.worker import (
        Cluster,
        LostWorkerError,
        run_worker,
        stop_on_signals,
        stop_with_parent,
    )

    options = IntakeOptions(
        limit=settings.batch,
        begin=settings.begin.value,
        until_end=settings.until_end,
        group=f"anabranch-{pipeline.name}",
    )
    metrics = WorkerMetrics(pipeline.name)

    def work() -> None:
        run_worker(
            pipeline,
            bus,
            options,
            cluster=Cluster(place[0], tuple(place[1])),
            metrics=metrics,
            epoch_s=settings.epoch_s,
            shards=settings.shards,
        )

    with stop_on_signals(options):
        if SUPERVISED in os.environ:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
            stop_with_parent(options)
            try:
                work()
            except LostWorkerError:
                raise typer.Exit(EXIT_LOST) from None
            return
        console = Console(stderr=True)
        _serve(metrics.registry, settings.metrics_port, console)
        _warm(pipeline, console)
        console.print(f"running {pipeline.name} on {settings.bus}; Ctrl-C ends it", soft_wrap=True)
        watch = Watch(pipeline.name, metrics.registry, console)
        with watch.shown():
            work()
    watch.summary()


def _supervise(pipeline: Pipeline, processes: int, settings: _Settings) -> None:
    from dataflows.cli.live import Watch
    from dataflows.metrics import shared_registry

    console = Console(stderr=True)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with LocalCluster(sys.argv[1:], processes) as cluster:
        registry = shared_registry(cluster.metrics_directory)
        _serve(registry, settings.metrics_port, console)
        _warm(pipeline, console)
        console.print(
            f"running {pipeline.name} on {settings.bus} in {processes} processes; Ctrl-C ends them",
            soft_wrap=True,
        )
        watch = Watch(pipeline.name, registry, console)
        cluster.start()
        with watch.shown():
            cluster.wait(stop.is_set)
        watch.summary()


def _serve(registry: CollectorRegistry, port: int | None, console: Console) -> None:
    if port is not None:
        from dataflows.metrics import serve

        address = f"http://127.0.0.1:{serve(registry, port)}/metrics"
        console.print(f"metrics on {address}", highlight=False, soft_wrap=True)


def _warm(pipeline: Pipeline, console: Console) -> None:
    from dataflows.cli.live import compiling
    from dataflows.warmup import warm

    with compiling(console):
        warm(pipeline)


def _place(addresses: str | None, process_id: int | None) -> tuple[int, list[str]]:
    if addresses is None:
        if process_id is not None:
            raise InputError("--process-id needs --addresses, the host:port of every worker")
        return 0, []
    listed = [address.strip() for address in addresses.split(",") if address.strip()]
    if process_id is None or process_id >= len(listed):
        raise InputError(
            f"--addresses names {len(listed)} workers: say which one this is with --process-id "
            f"0 to {len(listed) - 1}"
        )
    return process_id, listed


def _check_inputs(pipeline: Pipeline, bus: Bus, name: str) -> None:
    """Raise if an input topic is missing; ``name`` is what the user calls the pipeline."""
    from dataflows.intake import partition_count

    found = bus.topics()
    missing = [topic for topic in pipeline.inputs if topic not in found]
    if missing:
        raise BusError(
            f"topic {missing[0]!r} of pipeline {name!r} does not exist on {bus.url}: publish to "
            f"it, or create it with `anabranch topics {name} --create`"
        )
    partition_count(pipeline, bus)
