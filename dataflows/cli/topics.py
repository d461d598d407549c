"""``anabranch topics``: lists the topics of a bus, or creates those of a pipeline."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from anabranch.dataflows.bus import Bus
from anabranch.dataflows.cli.options import (
    DEFAULT_BUS,
    BusConfig,
    BusSettings,
    BusUrl,
    Partitions,
    create_topics,
    opened_bus,
)
from anabranch.dataflows.telemetry.console import TextConsole, echo


def topics(
    pipeline: Annotated[
        str | None,
        typer.Argument(help="List only the topics of this pipeline.", metavar="PIPELINE"),
    ] = None,
    create: Annotated[
        bool, typer.Option("--create", help="Create the missing topics of the pipeline.")
    ] = False,
    partitions: Partitions = None,
    bus: BusUrl = DEFAULT_BUS,
    bus_set: BusSettings = None,
    bus_config: BusConfig = None,
) -> None:
    """List topics with their partition and message counts, or create those of a pipeline.

    Examples:

        anabranch topics

        anabranch topics fraud.py --create --partitions 4
    """
    if create and pipeline is None:
        raise typer.BadParameter("--create needs a PIPELINE, whose topics are created")
    with opened_bus(bus, bus_set, bus_config) as opened:
        wanted: list[str] | None = None
        if pipeline is not None:
            from anabranch.dataflows.pipelines.loader import load_pipeline

            declared = load_pipeline(pipeline)
            wanted = [*declared.inputs, *declared.topics.outputs]
            if create:
                for name in create_topics(opened, wanted, partitions):
                    echo(f"created {name}")
        TextConsole().print(_table(opened, wanted))


def _table(bus: Bus, wanted: list[str] | None) -> Table:
    existing = bus.topics()
    table = Table(title=f"topics on {bus.url}", title_justify="left")
    table.add_column("topic")
    table.add_column("partitions", justify="right")
    table.add_column("messages", justify="right")
    for name in sorted(existing) if wanted is None else wanted:
        if name not in existing:
            table.add_row(name, "—", "missing")
            continue
        ends, starts = bus.end_offsets(name), bus.start_offsets(name)
        table.add_row(name, str(existing[name]), f"{sum(ends) - sum(starts):,}")
    return table
