"""``anabranch export``: copies a pipeline's outputs to files, a database or a key-value store."""

from __future__ import annotations

import signal
import threading
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from anabranch.dataflows.cli.launcher import OnOffsetOutOfRange
from anabranch.dataflows.cli.options import (
    DEFAULT_BUS,
    BusConfig,
    BusSettings,
    BusUrl,
    PipelineName,
    opened_bus,
    read_settings,
)
from anabranch.dataflows.telemetry.console import echo
from anabranch.dataflows.telemetry.logs import stderr_console

EXIT_INTERRUPTED = 130


def export(
    pipeline: PipelineName,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="TARGET",
            help="parquet:DIR, sqlite:FILE.db, postgresql://USER@HOST/DB, redis://HOST, "
            "valkey://HOST (rediss:// and valkeys:// with TLS).",
        ),
    ],
    topics: Annotated[
        str,
        typer.Option(
            "--topics",
            metavar="OUTPUT,…",
            help="Which outputs: predictions (with features, if the pipeline publishes them), "
            "drift, dead-letters, rollouts.",
        ),
    ] = "predictions,drift",
    follow: Annotated[
        bool,
        typer.Option(
            "--follow",
            "-f",
            help="Wait for new messages; otherwise it ends where the topics end now.",
        ),
    ] = False,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            min=1,
            metavar="N",
            help="Maximum number of messages that are written at once. Default: as suits the "
            "target.",
        ),
    ] = None,
    flush_interval: Annotated[
        float | None,
        typer.Option(
            "--flush-interval",
            min=0.0,
            metavar="S",
            help="With --follow: how many seconds a message may wait for others. "
            "Default: 60 for Parquet files, 1 for databases, 0.2 for Redis.",
        ),
    ] = None,
    on_offset_out_of_range: Annotated[
        OnOffsetOutOfRange,
        typer.Option(
            "--on-offset-out-of-range",
            metavar="WHAT",
            help="What to do if retention has deleted messages that were not exported, or a topic "
            "was deleted and created again. stop: exit with an error that names it. earliest: "
            "continue with the messages that are there.",
        ),
    ] = OnOffsetOutOfRange.stop,
    to_config: Annotated[
        Path | None,
        typer.Option(
            "--to-config",
            metavar="FILE",
            help="A file of settings of the target's server, KEY=VALUE a line: for PostgreSQL "
            "parameters of libpq (user, password, sslmode, …), for Redis username, password, db, "
            "ssl_…. The password can also be in ANABRANCH_EXPORT_PASSWORD.",
        ),
    ] = None,
    bus: BusUrl = DEFAULT_BUS,
    bus_set: BusSettings = None,
    bus_config: BusConfig = None,
) -> None:
    """Copy what a pipeline publishes to Parquet files, SQL tables or Redis, each message once.

    It reads the output topics, beside the run or after it. The target stores how far it is: the
    next export continues there, whatever ended this one. With --follow, Ctrl-C stops it.

    Examples:

        anabranch export fraud.py --to parquet:exports

        anabranch export fraud.py --to postgresql://ml@db/fraud --topics predictions,drift --follow

        anabranch export fraud.py --to redis://cache:6379/0 --follow
    """
    from anabranch.dataflows.export.exporter import Exporter
    from anabranch.dataflows.export.open_target import open_target
    from anabranch.dataflows.export.output_tables import output_tables
    from anabranch.dataflows.pipelines.loader import load_pipeline

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    declared = load_pipeline(pipeline)
    tables = output_tables(declared, topics.split(","))
    settings = {} if to_config is None else read_settings(to_config, "--to-config")
    with (
        opened_bus(bus, bus_set, bus_config) as opened,
        closing(open_target(to, settings)) as target,
        closing(
            Exporter(
                opened,
                declared.name,
                tables,
                target,
                batch_size=batch_size,
                interval_s=flush_interval,
                on_out_of_range=on_offset_out_of_range.value,
                stop=stop,
            )
        ) as exporter,
    ):
        if follow:
            names = ", ".join(table.topic for table in tables)
            stderr_console().print(
                f"exporting {names} to {target.name}; Ctrl-C stops it", soft_wrap=True
            )
        complete = exporter.run(follow)
        counts = " and ".join(f"{n:,} {output}" for output, n in exporter.exported.items())
        left_out = f"; {exporter.rejected:,} messages left out" if exporter.rejected else ""
        echo(f"exported {counts} to {target.name}{left_out}")
        if not complete:
            stderr_console().print(
                f"{target.name} did not respond, so the last messages are not there: the next "
                "export begins with them",
                soft_wrap=True,
            )
    if stop.is_set() and not (follow and complete):
        raise typer.Exit(EXIT_INTERRUPTED)
