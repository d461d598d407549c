"""``anabranch run``: runs the workers of a pipeline."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anabranch.dataflows.bus import Bus
from anabranch.dataflows.cli.launcher import (
    OnOffsetOutOfRange,
    RunSettings,
    supervise,
    work,
    work_supervised,
)
from anabranch.dataflows.cli.options import (
    DEFAULT_BUS,
    BatchSize,
    BusConfig,
    BusSettings,
    BusUrl,
    PipelineName,
    Shards,
    opened_bus,
    with_labels_bus,
)
from anabranch.dataflows.runtime.supervised_worker import (
    SINGLE_WORKER,
    SUPERVISED,
    WorkerId,
    reporting_errors,
)
from anabranch.dataflows.telemetry.logs import FORMAT, LEVEL, LogFormat, LogLevel, about, configure
from anabranch.state.errors import BusError, InputError

if TYPE_CHECKING:
    from anabranch.dataflows.declaration.pipeline import Pipeline
    from anabranch.dataflows.registry.warm_start import WarmStart


def run(
    pipeline: PipelineName,
    bus: BusUrl = DEFAULT_BUS,
    bus_set: BusSettings = None,
    bus_config: BusConfig = None,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            metavar="DIR",
            help="State directory: windows, models and offsets, from which the next run resumes, "
            "also after a crash. One run at a time; with --addresses one directory per process.",
            show_default="data/state/PIPELINE",
        ),
    ] = None,
    no_state: Annotated[
        bool,
        typer.Option(
            "--no-state", help="Keep state in memory only: every run starts from scratch."
        ),
    ] = False,
    processes: Annotated[
        int,
        typer.Option("--processes", min=1, metavar="N", help="Worker processes on this machine."),
    ] = 1,
    addresses: Annotated[
        str | None,
        typer.Option(
            "--addresses",
            metavar="LIST",
            help="For a cluster on several hosts: host:port of every worker, comma-separated, the "
            "same list on all hosts. Needs --process-id.",
        ),
    ] = None,
    process_id: Annotated[
        int | None,
        typer.Option(
            "--process-id",
            min=0,
            metavar="N",
            help="Position of this worker in --addresses, from 0.",
        ),
    ] = None,
    start_offset: Annotated[
        str | None,
        typer.Option(
            "--start-offset",
            metavar="WHERE",
            help="Where to start reading if there is no state yet: earliest; latest; a time such "
            "as 2026-11-30T08:00, or -2d for two days ago: with the first messages published "
            "then; or a file with lines topic,partition,offset.",
            show_default="earliest",
        ),
    ] = None,
    on_offset_out_of_range: Annotated[
        OnOffsetOutOfRange,
        typer.Option(
            "--on-offset-out-of-range",
            metavar="WHAT",
            help="What to do if retention has deleted unread messages, or a topic was deleted and "
            "created again. stop: exit with an error that names it. earliest: continue with the "
            "messages that are there, and keep what was learned.",
        ),
    ] = OnOffsetOutOfRange.stop,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME@VERSION",
            help="Start a new state with this model of the registry (see `anabranch models`) "
            "instead of an untrained one. An existing state that started with it is resumed.",
        ),
    ] = None,
    registry: Annotated[
        Path | None,
        typer.Option(
            "--registry",
            metavar="DIR",
            help="State directory whose registry holds the model of --model.",
            show_default="that of --state",
        ),
    ] = None,
    until_end: Annotated[
        bool,
        typer.Option(
            "--until-end", help="Stop once everything that is on the topics now has been read."
        ),
    ] = False,
    batch_size: BatchSize = 1000,
    shards: Shards = 8,
    checkpoint_interval: Annotated[
        str,
        typer.Option(
            "--checkpoint-interval",
            metavar="DURATION",
            help="How often state is committed, together with the offsets it covers.",
        ),
    ] = "5s",
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port",
            min=0,
            max=65535,
            metavar="PORT",
            help="Serve Prometheus metrics at this port under /metrics; 0 picks a free port.",
        ),
    ] = None,
    metrics_address: Annotated[
        str,
        typer.Option(
            "--metrics-address",
            metavar="ADDRESS",
            help="Address of this machine for --metrics-port. 0.0.0.0 (or ::) is all of them, "
            "which a container needs; anyone who reaches the port can read the metrics.",
        ),
    ] = "127.0.0.1",
    log_format: Annotated[
        LogFormat | None,
        typer.Option(
            "--log-format",
            envvar=FORMAT,
            metavar="FORMAT",
            help="plain text for people; logfmt or json for log collectors, with a record per "
            "message. The variable applies to all commands.",
            show_default="plain",
        ),
    ] = None,
    log_level: Annotated[
        LogLevel | None,
        typer.Option(
            "--log-level",
            envvar=LEVEL,
            metavar="LEVEL",
            help="Log messages of this level and above: debug, info, warning or error.",
            show_default="info",
        ),
    ] = None,
) -> None:
    """Run a pipeline: read events and labels, predict, learn, publish. Ctrl-C stops it cleanly.

    The next run resumes where this one stopped. With --processes or --addresses, a worker that
    fails is restarted from the last checkpoint, and the others with it.

    Examples:

        anabranch run payments --metrics-port 9100

        anabranch run dataset:Phishing --until-end --no-state

        anabranch run fraud.py --bus kafka://localhost:9092 --processes 2
    """
    from anabranch.dataflows.pipelines.loader import load_pipeline
    from anabranch.state.durations import parse_duration_ms

    configure(log_format, log_level)
    supervised = SUPERVISED in os.environ
    with reporting_errors() if supervised else nullcontext():
        declared = load_pipeline(pipeline)
        member = _member(addresses, process_id)
        about(pipeline=declared.name, worker=member.process if member.workers > 1 else None)
        directory = _state_path(state, no_state, declared.name, member)
        settings = RunSettings(
            bus=bus,
            state=directory,
            start_offset=start_offset,
            on_offset_out_of_range=on_offset_out_of_range,
            until_end=until_end,
            batch_size=batch_size,
            shards=shards,
            checkpoint_s=parse_duration_ms(checkpoint_interval) / 1000,
            metrics_port=metrics_port,
            metrics_address=metrics_address,
            warm_start=None if supervised else _warm_start(declared, directory, model, registry),
        )
        if not supervised:
            _check_processes(processes, addresses, shards)
            _check_start(start_offset, declared)
        with (
            opened_bus(bus, bus_set, bus_config) as own,
            with_labels_bus(declared, own) as opened,
        ):
            _check_inputs(declared, opened, pipeline)
            if supervised:
                work_supervised(declared, opened, member, settings)
            elif member.addresses and directory is not None:
                supervise(declared, opened, member, [member.process], settings)
            elif processes > 1 and not member.addresses:
                supervise(declared, opened, member, range(processes), settings)
            else:
                work(declared, opened, member, settings)


def _member(addresses: str | None, process_id: int | None) -> WorkerId:
    if addresses is None:
        if process_id is not None:
            raise InputError("--process-id needs --addresses, the host:port of every worker")
        return SINGLE_WORKER
    listed = [address.strip() for address in addresses.split(",") if address.strip()]
    if process_id is None or process_id >= len(listed):
        raise InputError(
            f"--addresses names {len(listed)} workers: say which one this is with --process-id "
            f"0 to {len(listed) - 1}"
        )
    return WorkerId(process_id, listed)


def _state_path(state: Path | None, no_state: bool, name: str, member: WorkerId) -> Path | None:
    """The state directory; each process of a cluster has its own, even on a shared disk."""
    if no_state:
        if state is not None:
            raise InputError("--state and --no-state contradict each other: leave one out")
        return None
    # Supervised workers never get here: their supervisor passes them its directory.
    suffix = f"-{member.process}" if member.workers > 1 else ""
    return state or Path("data", "state", f"{name}{suffix}")


def _warm_start(
    pipeline: Pipeline, state: Path | None, model: str | None, registry: Path | None
) -> WarmStart | None:
    """The registered model with which a new state starts, if one was named."""
    if model is None:
        if registry is not None:
            raise InputError("--registry is of no use without --model NAME@VERSION: give both")
        return None
    if state is None:
        raise InputError("--model and --no-state contradict each other: leave one out")
    from anabranch.dataflows.registry.warm_start import find_warm_start

    return find_warm_start(pipeline, state, registry or state, model)


def _check_processes(processes: int, addresses: str | None, shards: int) -> None:
    if processes > 1 and addresses is not None:
        raise InputError(
            "--processes starts several workers on this machine, --addresses one worker on each of "
            "several hosts: leave one out"
        )
    if processes > shards:
        raise InputError(f"{processes} processes can't share {shards} shards: raise --shards")


def _check_start(start_offset: str | None, pipeline: Pipeline) -> None:
    """Whether ``--start-offset`` means something; before the bus is asked for anything."""
    if start_offset is None:
        return
    from anabranch.dataflows.source.start_offsets import parse_start

    try:
        parse_start(start_offset, pipeline.zone)
    except InputError as error:
        raise typer.BadParameter(str(error)) from error


def _check_inputs(pipeline: Pipeline, bus: Bus, name: str) -> None:
    """Raise if an input topic is missing; ``name`` is the pipeline as the user typed it."""
    from anabranch.dataflows.declaration.input_topics import partition_count, resolve_topics

    resolve_topics(pipeline, bus)
    existing = {*bus.topics(), pipeline.topics.control}  # the latter is created on demand
    missing = [topic for topic in pipeline.inputs if topic not in existing]
    if missing:
        raise BusError(
            f"topic {missing[0]!r} of pipeline {name!r} does not exist on {bus.url}: publish to "
            f"it, or create it with `anabranch topics {name} --create`"
        )
    partition_count(pipeline, bus)
