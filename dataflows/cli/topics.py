"""``anabranch topics``: lists the topics of a bus, creates those of a pipeline, or deletes some."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from rich.table import Table

from anabranch.dataflows.bus import AdminBus, Bus
from anabranch.dataflows.cli.options import (
    DEFAULT_BUS,
    BusConfig,
    BusSettings,
    BusUrl,
    Json,
    Partitions,
    create_topics,
    opened_bus,
)
from anabranch.dataflows.telemetry.console import TextConsole, echo
from anabranch.state.errors import InputError

if TYPE_CHECKING:
    from anabranch.dataflows.declaration.pipeline import Pipeline

_DELETE, _RELEASE = "delete", "release"
_RETENTION = "topic.retention.ms"  # a setting of the Kafka bus, for topics that it creates


def topics(
    pipeline: Annotated[
        str | None,
        typer.Argument(
            help="List only the topics of this pipeline; or `delete`, and the topics to delete; or "
            "`release`, and the outputs that another pipeline may write from now on.",
            metavar="[PIPELINE]",
        ),
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Argument(help="With delete or release: the topics.", metavar="[TOPIC]..."),
    ] = None,
    create: Annotated[
        bool, typer.Option("--create", help="Create the missing topics of the pipeline.")
    ] = False,
    partitions: Partitions = None,
    retention: Annotated[
        str | None,
        typer.Option(
            "--retention",
            metavar="TIME",
            help="With --create: how long Kafka keeps messages of the topics that are created, "
            "such as 7d, or `forever`. Kafka counts from the time of a message, which for history "
            "is its event time. The embedded bus keeps everything.",
            show_default="that of the broker",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
    json: Json = False,
    bus: BusUrl = DEFAULT_BUS,
    bus_set: BusSettings = None,
    bus_config: BusConfig = None,
) -> None:
    """List topics with their partition and message counts, create those of a pipeline, or delete.

    --create creates what is missing and alters nothing that exists. An output belongs to the
    pipeline that wrote it first; `release` passes it on, once that is no longer run.

    Examples:

        anabranch topics

        anabranch topics fraud.py --create --partitions 4

        anabranch topics delete fraud.events fraud.labels
    """
    if pipeline in (_DELETE, _RELEASE):
        if not names:
            raise typer.BadParameter(f"{pipeline} needs the names of the TOPICs to {pipeline}")
        if create or retention or json:
            raise typer.BadParameter(
                f"{pipeline} goes with neither --create, --retention nor --json"
            )
        with opened_bus(bus, bus_set, bus_config) as opened:
            if pipeline == _DELETE:
                _delete(opened, list(dict.fromkeys(names)), yes)
            else:
                _release(opened, list(dict.fromkeys(names)))
        return
    if names:
        raise typer.BadParameter(
            f"only `topics delete` and `topics release` take topics: {' '.join(names)}"
        )
    if create and pipeline is None:
        raise typer.BadParameter("--create needs a PIPELINE, whose topics are created")
    if retention is not None:
        if not create:
            raise typer.BadParameter("--retention is of the topics that --create creates")
        if bus.startswith("sqlite:"):
            raise InputError(
                "the embedded bus keeps all messages: leave out --retention, or delete topics with "
                "`anabranch topics delete`"
            )
        bus_set = [*(bus_set or ()), f"{_RETENTION}={_milliseconds(retention)}"]
    with opened_bus(bus, bus_set, bus_config) as opened:
        wanted: list[str] | None = None
        created: list[str] = []
        if pipeline is not None:
            from anabranch.dataflows.declaration.input_topics import resolve_topics
            from anabranch.dataflows.pipelines.loader import load_pipeline

            declared = load_pipeline(pipeline)
            resolve_topics(declared, opened)
            wanted = [*declared.inputs, *declared.topics.outputs]
            if create:
                created = _create(opened, declared, partitions)
        if json:
            rows = [
                {
                    "topic": name,
                    "partitions": count,
                    "messages": messages,
                    "created": name in created,
                }
                for name, count, messages in _counts(opened, wanted)
            ]
            echo(orjson.dumps({"bus": opened.url, "topics": rows}).decode())
            return
        for name in created:
            echo(f"created {name}")
        if create and (left := [name for name in wanted or () if name not in created]):
            echo(f"left as they are, because they exist: {', '.join(left)}")
            if retention is not None:
                echo("topics that were there already keep their retention")
        TextConsole().print(_table(opened, wanted))


def _create(bus: Bus, pipeline: Pipeline, partitions: int | None) -> list[str]:
    """Create the topics of a pipeline that are missing, and alter none; return their names."""
    from anabranch.dataflows.declaration.input_topics import create_missing

    created = create_topics(bus, pipeline.inputs, partitions)
    count = bus.topics()[pipeline.topics.events]
    return [*created, *create_missing(bus, pipeline.topics.outputs, count)]


def _delete(bus: AdminBus, names: Sequence[str], yes: bool) -> None:
    messages = sum(sum(bus.end_offsets(name)) - sum(bus.start_offsets(name)) for name in names)
    if not yes:
        echo(f"on {bus.url}: {', '.join(names)}")
        what = "this topic" if len(names) == 1 else f"these {len(names)} topics"
        typer.confirm(f"Delete {what} with {messages:,} messages?", abort=True)
    bus.delete_topics(names)
    for name in names:
        echo(f"deleted {name}")


def _release(bus: AdminBus, names: Sequence[str]) -> None:
    bus.release_outputs(names)
    for name in names:
        echo(f"released {name}")


def _milliseconds(retention: str) -> int:
    from anabranch.state.durations import parse_duration_ms

    return -1 if retention == "forever" else parse_duration_ms(retention)


def _counts(bus: Bus, wanted: Sequence[str] | None) -> Iterator[tuple[str, Any, Any]]:
    """Each topic with its partition count and its number of messages; None if it is missing."""
    existing = bus.topics()
    for name in sorted(existing) if wanted is None else wanted:
        if name in existing:
            messages = sum(bus.end_offsets(name)) - sum(bus.start_offsets(name))
            yield name, existing[name], messages
        else:
            yield name, None, None


def _table(bus: Bus, wanted: Sequence[str] | None) -> Table:
    table = Table(title=f"topics on {bus.url}", title_justify="left")
    table.add_column("topic")
    table.add_column("partitions", justify="right")
    table.add_column("messages", justify="right")
    for name, count, messages in _counts(bus, wanted):
        if count is None:
            table.add_row(name, "—", "missing")
        else:
            table.add_row(name, str(count), f"{messages:,}")
    return table
