"""``anabranch run``: the dataflow workers of a pipeline."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anabranch.dataflows.bus import Bus
from anabranch.dataflows.cli.launcher import (
    Begin,
    Lost,
    RunSettings,
    supervise,
    work,
    work_supervised,
)
from anabranch.dataflows.cli.options import (
    DEFAULT_BUS,
    BusSettings,
    BusUrl,
    PipelineName,
    opened_bus,
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
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            metavar="DIR",
            help="Where windows, models and positions are kept, so that the next run goes on where "
            "this one ended, however it ended. One run at a time; with --addresses a directory for "
            "each process.",
            show_default="data/state/PIPELINE",
        ),
    ] = None,
    no_state: Annotated[
        bool,
        typer.Option("--no-state", help="Keep state in memory only: every start begins anew."),
    ] = False,
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
        Begin | None,
        typer.Option(
            "--from",
            envvar="ANABRANCH_RUN_FROM",
            metavar="WHERE",
            help="earliest or latest: where to begin reading when there is no state yet.",
            show_default="earliest",
        ),
    ] = None,
    lost: Annotated[
        Lost,
        typer.Option(
            "--lost",
            metavar="WHAT",
            help="stop or earliest: when retention has removed messages that were not read yet, or "
            "an output was made anew, stop and say which, or go on with what is left.",
        ),
    ] = Lost.stop,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME@VERSION",
            help="Begin a new state with this model of the registry (`anabranch models`) instead "
            "of one that has learned nothing. A state that has begun with it goes on.",
        ),
    ] = None,
    registry: Annotated[
        Path | None,
        typer.Option(
            "--registry",
            metavar="DIR",
            help="The state directory whose registry has that model.",
            show_default="that of --state",
        ),
    ] = None,
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
        str, typer.Option(metavar="TIME", help="How often state is kept and deliveries checked.")
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
    log_format: Annotated[
        LogFormat | None,
        typer.Option(
            "--log-format",
            envvar=FORMAT,
            metavar="FORMAT",
            help="plain, for people; logfmt or json, a line for each thing that happened, for "
            "programs. The variable is for all commands.",
            show_default="plain",
        ),
    ] = None,
    log_level: Annotated[
        LogLevel | None,
        typer.Option(
            "--log-level",
            envvar=LEVEL,
            metavar="LEVEL",
            help="debug, info, warning or error: the least that is logged.",
            show_default="info",
        ),
    ] = None,
) -> None:
    """Run a pipeline: read events and labels, predict, learn, publish. Ctrl-C ends it cleanly.

    The next run goes on where this one ended. With --processes or --addresses, workers that are
    lost are started again from what was kept.

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
        kept_in = _state_path(state, no_state, declared.name, member)
        epoch_s = parse_duration_ms(epoch) / 1000
        beginning = None if supervised else _beginning(declared, kept_in, model, registry)
        settings = RunSettings(
            bus, kept_in, begin, lost, until_end, batch, shards, epoch_s, metrics_port, beginning
        )
        if not supervised:
            _check_processes(processes, addresses, shards)
        with opened_bus(bus, bus_set) as opened:
            _check_inputs(declared, opened, pipeline)
            if supervised:
                work_supervised(declared, opened, member, settings)
            elif member.addresses and kept_in is not None:
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
    """Where state is kept; processes of one cluster that share a disk get one directory each."""
    if no_state:
        if state is not None:
            raise InputError("--state and --no-state contradict each other: leave one out")
        return None
    own = f"-{member.process}" if member.workers > 1 else ""  # a supervisor names it to its workers
    return state or Path("data", "state", f"{name}{own}")


def _beginning(
    pipeline: Pipeline, state: Path | None, model: str | None, registry: Path | None
) -> WarmStart | None:
    """The model that a new state begins with."""
    if model is None:
        if registry is not None:
            raise InputError("--registry says where a model is: name it with --model NAME@VERSION")
        return None
    if state is None:
        raise InputError("--model is what a new state begins with: leave out --no-state")
    from anabranch.dataflows.registry.warm_start import find_warm_start

    return find_warm_start(pipeline, state, registry or state, model)


def _check_processes(processes: int, addresses: str | None, shards: int) -> None:
    if processes > 1 and addresses is not None:
        raise InputError(
            "--processes is for workers of this machine alone, --addresses for one worker each on "
            "several: leave one out"
        )
    if processes > shards:
        raise InputError(f"{processes} processes can't share {shards} shards: raise --shards")


def _check_inputs(pipeline: Pipeline, bus: Bus, name: str) -> None:
    """Raise if an input topic is missing; ``name`` is what the user calls the pipeline."""
    from anabranch.dataflows.declaration.input_topics import partition_count

    found = {*bus.topics(), pipeline.topics.control}  # that one is made when it is missing
    missing = [topic for topic in pipeline.inputs if topic not in found]
    if missing:
        raise BusError(
            f"topic {missing[0]!r} of pipeline {name!r} does not exist on {bus.url}: publish to "
            f"it, or create it with `anabranch topics {name} --create`"
        )
    partition_count(pipeline, bus)
