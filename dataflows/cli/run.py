"""``anabranch run``: the dataflow workers of a pipeline."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Annotated

import typer
from rich.console import Console

from dataflows.bus import Bus
from dataflows.cli.live import Watch
from dataflows.cli.options import (
    DEFAULT_BUS,
    BusSettings,
    BusUrl,
    PipelineName,
    opened_bus,
)
from dataflows.cluster import SUPERVISED, LocalCluster
from dataflows.load import load_pipeline
from dataflows.metrics import WorkerMetrics, serve, shared_registry
from dataflows.pipeline import Pipeline
from state.durations import parse_duration_ms
from state.errors import InputError


def run(
    pipeline: PipelineName,
    bus: BusUrl = DEFAULT_BUS,
    bus_set: BusSettings = None,
    processes: Annotated[
        int, typer.Option("--processes", min=1, help="Worker processes on this machine.")
    ] = 1,
    addresses: Annotated[
        str | None,
        typer.Option(
            help="host:port of every worker of a cluster on several hosts, comma-separated, the "
            "same on all; needs --process-id."
        ),
    ] = None,
    process_id: Annotated[
        int | None, typer.Option("--process-id", min=0, help="Which of the addresses this is.")
    ] = None,
    begin: Annotated[
        str, typer.Option("--from", help="earliest or latest: where to begin reading.")
    ] = "earliest",
    until_end: Annotated[
        bool, typer.Option("--until-end", help="Stop at what is on the topics now.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="Most messages in one batch.")] = 1000,
    shards: Annotated[
        int, typer.Option(min=1, help="Shards of each key space: the most workers ever wanted.")
    ] = 8,
    epoch: Annotated[str, typer.Option(help="How often deliveries are checked.")] = "5s",
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port", help="Serve Prometheus /metrics here; 0 picks a free port.",
            min=0, max=65535,
        ),
    ] = None,
) -> None:
    """Run a pipeline: read events and labels, predict, learn, publish. Ctrl-C ends it cleanly."""
    declared = load_pipeline(pipeline)
    if begin not in ("earliest", "latest"):
        raise InputError(f"--from must be earliest or latest, not {begin!r}")
    if processes > 1 and addresses is None:
        if processes > shards:
            raise InputError(f"{processes} processes can't share {shards} shards: raise --shards")
        with opened_bus(bus, bus_set) as opened:
            _check_inputs(declared, opened)
        _supervise(declared, sys.argv[1:], processes, metrics_port)
        return
    _work(
        declared, bus, bus_set, _cluster(addresses, process_id), begin, until_end, batch, shards,
        parse_duration_ms(epoch) / 1000, metrics_port,
    )  # fmt: skip


def _work(
    pipeline: Pipeline,
    bus: str,
    bus_set: list[str] | None,
    cluster: tuple[int, list[str]],
    begin: str,
    until_end: bool,
    batch: int,
    shards: int,
    epoch_s: float,
    metrics_port: int | None,
) -> None:
    from dataflows.intake import IntakeOptions  # the engine is only loaded where it runs
    from dataflows.worker import Cluster, run_worker, stop_on_signals

    options = IntakeOptions(
        limit=batch, begin=begin, until_end=until_end, group=f"anabranch-{pipeline.name}"
    )
    console = Console(stderr=True)
    metrics = WorkerMetrics(pipeline.name)
    watch = Watch(pipeline.name, metrics.registry, console)
    supervised = SUPERVISED in os.environ
    if not supervised and metrics_port is not None:
        port = serve(metrics.registry, metrics_port)
        console.print(f"metrics on port {port}, path /metrics")
    with opened_bus(bus, bus_set) as opened, stop_on_signals(options):
        place = Cluster(cluster[0], tuple(cluster[1]))
        if supervised:
            run_worker(pipeline, opened, options, cluster=place, metrics=metrics,
                       epoch_s=epoch_s, shards=shards)  # fmt: skip
            return
        console.print(f"running {pipeline.name} on {bus}; Ctrl-C ends it")
        with watch.shown():
            run_worker(pipeline, opened, options, cluster=place, metrics=metrics,
                       epoch_s=epoch_s, shards=shards)  # fmt: skip
    watch.summary()


def _supervise(
    pipeline: Pipeline, arguments: list[str], processes: int, metrics_port: int | None
) -> None:
    console = Console(stderr=True)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    cluster = LocalCluster(arguments, processes)
    registry = shared_registry(cluster.metrics_directory)
    if metrics_port is not None:
        port = serve(registry, metrics_port)
        console.print(f"metrics on port {port}, path /metrics")
    watch = Watch(pipeline.name, registry, console)
    console.print(f"running {pipeline.name} in {processes} processes; Ctrl-C ends them")
    try:
        cluster.start()
        with watch.shown():
            cluster.wait(stop.is_set)
        watch.summary()
    finally:
        cluster.end()


def _cluster(addresses: str | None, process_id: int | None) -> tuple[int, list[str]]:
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


def _check_inputs(pipeline: Pipeline, bus: Bus) -> None:
    from dataflows.intake import partition_count

    partition_count(pipeline, bus)
