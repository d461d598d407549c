"""``anabranch simulate``: endless traffic with known truth, for the shipped pipelines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from anabranch.dataflows.cli.display.publish import Pacing, Publishing
from anabranch.dataflows.cli.options import (
    DEFAULT_BUS,
    BusSettings,
    BusUrl,
    Partitions,
    Rate,
    Speedup,
    create_topics,
    opened_bus,
)
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
        typer.Option("--events", min=0, metavar="N", help="How many events. Default: for ever."),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="The same seed, the same messages.")
    ] = 0,
    rate: Rate = None,
    speedup: Speedup = None,
    history: Annotated[
        int,
        typer.Option(
            "--history",
            metavar="N",
            min=0,
            help="Publish so many events at once, with times of their own; then go on at --rate "
            "or --speedup.",
        ),
    ] = 0,
    event_rate: Annotated[
        float | None,
        typer.Option("--event-rate", metavar="N", help="Events per second of event time."),
    ] = None,
    drift_at: Annotated[
        int | None,
        typer.Option(
            "--drift-at",
            min=0,
            metavar="N",
            help="Fraud moves elsewhere at this event (payments only).",
        ),
    ] = None,
    fault: Annotated[
        str | None,
        typer.Option(
            "--fault",
            metavar="NAME",
            help="Break what is sent from --fault-at on (payments only): cents, country, feed or "
            "type. The monitors of distributions should find it.",
        ),
    ] = None,
    fault_at: Annotated[
        int,
        typer.Option("--fault-at", min=0, metavar="N", help="The first event that is broken."),
    ] = 0,
    malformed: Annotated[
        float,
        typer.Option(
            "--malformed",
            metavar="SHARE",
            help="Share of events followed by a broken copy.",
        ),
    ] = 0.0,
    duplicates: Annotated[
        float,
        typer.Option("--duplicates", metavar="SHARE", help="Share of events published twice."),
    ] = 0.0,
    out_of_order: Annotated[
        float,
        typer.Option("--out-of-order", metavar="SHARE", help="Share of events published late."),
    ] = 0.0,
    delay: Annotated[
        float,
        typer.Option(
            "--delay", metavar="SECONDS", help="The longest delay of those, seconds of event time."
        ),
    ] = 60.0,
    partitions: Partitions = None,
    bus: BusUrl = DEFAULT_BUS,
    bus_set: BusSettings = None,
) -> None:
    """Publish simulated events and, later, their labels; the truth behind them is known.

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
            raise InputError(f"--fault is for payments, and has no meaning for {pipeline}")
        batches = with_upstream_fault(batches, fault, fault_at)
    pacing = check_pacing(rate, speedup)
    topics: dict[Kind, str] = {"events": f"{pipeline}.events", "labels": f"{pipeline}.labels"}
    with opened_bus(bus, bus_set) as opened:
        create_topics(opened, list(topics.values()), partitions)
        publishing = Publishing(opened, topics, total=events, count_events=True)
        with publishing.shown() as send:
            if history:
                send(_first(batches, history), Pacing())
            send(batches, pacing)


def check_pacing(rate: float | None, speedup: float | None) -> Pacing:
    """The pacing that two options ask for.

    Raises:
        InputError: both were given, or one that isn't positive.
    """
    if rate is not None and speedup is not None:
        raise InputError("--rate and --speedup were both given: choose one of them")
    for name, value in (("--rate", rate), ("--speedup", speedup)):
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"{name} {value:g} can't be kept: give a number above 0")
    return Pacing(rate, speedup)


def _first(batches: Iterator[Batch], events: int) -> Iterator[Batch]:
    """Batches until ``events`` events have gone by; the rest stays in ``batches``."""
    seen = 0
    while seen < events:
        batch = next(batches, None)
        if batch is None:
            return
        seen += len(batch) - int(batch.labels.sum())
        yield batch
