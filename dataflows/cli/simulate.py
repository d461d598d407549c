"""``anabranch simulate``: publishes simulated traffic for the shipped pipelines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from anabranch.dataflows.cli.display.publish import Pacing, Publishing
from anabranch.dataflows.cli.options import (
    DEFAULT_BUS,
    BusConfig,
    BusSettings,
    BusUrl,
    Partitions,
    Rate,
    Speedup,
    create_topics,
    opened_bus,
)
from anabranch.dataflows.declaration.topics import Topics
from anabranch.state.errors import InputError

if TYPE_CHECKING:
    from anabranch.producers.batch import Batch, Kind


def simulate(
    pipeline: Annotated[
        str,
        typer.Argument(help="What to simulate: payments, clicks or trips.", metavar="PIPELINE"),
    ],
    events: Annotated[
        int | None,
        typer.Option(
            "--events", min=0, metavar="N", help="Stop after N events. Default: run until Ctrl-C."
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option("--seed", metavar="N", help="Random seed; the same seed gives the same data."),
    ] = 0,
    rate: Rate = None,
    speedup: Speedup = None,
    history: Annotated[
        int,
        typer.Option(
            "--history",
            metavar="N",
            min=0,
            help="Publish the first N events as history: at full speed, stamped with their event "
            "times. Then continue at --rate or --speedup.",
        ),
    ] = 0,
    event_rate: Annotated[
        float | None,
        typer.Option(
            "--event-rate", metavar="N", help="Mean number of events per second of event time."
        ),
    ] = None,
    drift_at: Annotated[
        int | None,
        typer.Option(
            "--drift-at",
            min=0,
            metavar="N",
            help="Concept drift: fraud moves to other merchants at event N (payments only).",
        ),
    ] = None,
    fault: Annotated[
        str | None,
        typer.Option(
            "--fault",
            metavar="NAME",
            help="Corrupt the data from event --fault-at on, as a faulty upstream system would "
            "(payments only): cents, country, feed or type. Distribution monitors detect it.",
        ),
    ] = None,
    fault_at: Annotated[
        int,
        typer.Option("--fault-at", min=0, metavar="N", help="First event affected by --fault."),
    ] = 0,
    malformed: Annotated[
        float,
        typer.Option(
            "--malformed",
            metavar="SHARE",
            help="Share of events (0 to 1) that are followed by a malformed copy.",
        ),
    ] = 0.0,
    duplicates: Annotated[
        float,
        typer.Option(
            "--duplicates", metavar="SHARE", help="Share of events (0 to 1) that are sent twice."
        ),
    ] = 0.0,
    out_of_order: Annotated[
        float,
        typer.Option(
            "--out-of-order",
            metavar="SHARE",
            help="Share of events (0 to 1) that are sent late, by up to --delay.",
        ),
    ] = 0.0,
    delay: Annotated[
        float,
        typer.Option(
            "--delay",
            metavar="SECONDS",
            help="Maximum delay of --out-of-order events, in seconds of event time.",
        ),
    ] = 60.0,
    partitions: Partitions = None,
    bus: BusUrl = DEFAULT_BUS,
    bus_set: BusSettings = None,
    bus_config: BusConfig = None,
) -> None:
    """Publish simulated events and, with a delay, their labels, drawn from a known distribution.

    Examples:

        anabranch simulate payments --rate 1000

        anabranch simulate trips --events 50000 --seed 7 --malformed 0.01

        anabranch simulate payments --events 120000 --fault cents --fault-at 100000
    """
    from anabranch.producers.simulators.by_name import simulate as simulated
    from anabranch.producers.simulators.faults import Faults
    from anabranch.producers.simulators.upstream_faults import with_upstream_fault

    faults = Faults(
        malformed=malformed, duplicates=duplicates, out_of_order=out_of_order, delay_s=delay
    )
    batches = simulated(
        pipeline, seed=seed, events=events, event_rate=event_rate, drift_at=drift_at, faults=faults
    )
    if fault is not None:
        if pipeline != "payments":
            raise InputError(f"--fault works with payments only, not with {pipeline}")
        batches = with_upstream_fault(batches, fault, fault_at)
    pacing = check_pacing(rate, speedup)
    names = Topics().named(pipeline)
    topics: dict[Kind, str] = {"events": names.events, "labels": names.labels}
    with opened_bus(bus, bus_set, bus_config) as opened:
        create_topics(opened, list(topics.values()), partitions)
        publishing = Publishing(opened, topics, total=events, count_events=True)
        with publishing.progress() as send:
            if history:
                send(_first(batches, history), Pacing())
            send(batches, pacing)


def check_pacing(rate: float | None, speedup: float | None) -> Pacing:
    """The pacing that --rate or --speedup asks for.

    Raises:
        InputError: both were given, or one is not a finite number above 0.
    """
    if rate is not None and speedup is not None:
        raise InputError("--rate and --speedup were both given: choose one of them")
    for name, value in (("--rate", rate), ("--speedup", speedup)):
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"{name} {value:g} is not possible: give a number above 0")
    return Pacing(rate, speedup)


def _first(batches: Iterator[Batch], events: int) -> Iterator[Batch]:
    """Batches with at least ``events`` events in total; the rest stays in ``batches``."""
    seen = 0
    while seen < events:
        batch = next(batches, None)
        if batch is None:
            return
        seen += len(batch) - int(batch.labels.sum())
        yield batch
