"""``anabranch topics``: lists the topics of a bus, creates those of a pipeline, or deletes some."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from rich.table import Table

from anabranch.dataflows.bus import AdminBus, Bus, BusError
from anabranch.dataflows.cli.options import (
    DEFAULT_BUS,
    BusConfig,
    BusSettings,
    BusUrl,
    Json,
    Partitions,
    create_topics,
    opened_bus,
    with_labels_bus,
)
from anabranch.dataflows.telemetry.console import TextConsole, echo
from anabranch.state.durations import parse_duration_ms
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
            help="How long messages of the pipeline's topics are kept, such as 7d, or `forever`; "
            "with --create, those of the topics that are created. It counts from the time of a "
            "message, which for history is its event time.",
            show_default="forever on the embedded bus, else that of the broker",
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Read all of the embedded bus and verify every checksum; list what is damaged, "
            "and exit 1.",
        ),
    ] = False,
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

        anabranch topics fraud.py --retention 30d

        anabranch topics delete fraud.events fraud.labels
    """
    if pipeline in (_DELETE, _RELEASE):
        if not names:
            raise typer.BadParameter(f"{pipeline} needs the names of the TOPICs to {pipeline}")
        if create or retention or json or verify:
            raise typer.BadParameter(
                f"{pipeline} goes with neither --create, --retention, --verify nor --json"
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
    if retention is not None and pipeline is None:
        raise typer.BadParameter("--retention needs a PIPELINE, whose topics keep messages so long")
    if verify:
        if create or retention or pipeline:
            raise typer.BadParameter("--verify is of the whole bus, and goes with --json alone")
        _verify(bus, json)
        return
    kept_ms = None if retention in (None, "forever") else parse_duration_ms(retention)
    if retention is not None and create and not bus.startswith("sqlite:"):
        bus_set = [*(bus_set or ()), f"{_RETENTION}={-1 if kept_ms is None else kept_ms}"]
    with ExitStack() as stack:
        opened = stack.enter_context(opened_bus(bus, bus_set, bus_config))
        wanted: list[str] | None = None
        created: list[str] = []
        if pipeline is not None:
            from anabranch.dataflows.declaration.input_topics import resolve_topics
            from anabranch.dataflows.pipelines.loader import load_pipeline

            declared = load_pipeline(pipeline)
            opened = stack.enter_context(with_labels_bus(declared, opened))
            resolve_topics(declared, opened)
            wanted = [*declared.inputs, *declared.topics.outputs]
            if create:
                created = _create(opened, declared, partitions)
            if retention is not None:
                there = opened.topics()
                for name in created if create else [name for name in wanted if name in there]:
                    opened.set_retention(name, kept_ms)
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
                echo("topics that were there already keep their retention: set it without --create")
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


def _verify(url: str, json: bool) -> None:
    """List what is damaged.

    Raises:
        BusError: something is.
        InputError: it is no embedded bus.
    """
    from anabranch.dataflows.bus.embedded.bus import EmbeddedBus

    if not url.startswith("sqlite:"):
        raise InputError("--verify is of the embedded bus: Kafka's brokers verify their own files")
    bus = EmbeddedBus(url.removeprefix("sqlite:"))
    damage = [(path.name, problem) for path, problem in bus.verify()]
    if json:
        rows = [{"file": file, "problem": problem} for file, problem in damage]
        echo(orjson.dumps({"bus": bus.url, "damage": rows}).decode())
    elif damage:
        table = Table(title="damaged files", title_justify="left")
        table.add_column("file", overflow="fold")
        table.add_column("problem")
        for file, problem in damage:
            table.add_row(file, problem)
        TextConsole().print(table)
    if damage:
        files = ", ".join(dict.fromkeys(file for file, _ in damage))
        raise BusError(
            f"{bus.url} is damaged: {files}; restore them from a backup, or delete those topics "
            "and publish again"
        )
    if not json:
        echo("all topics verified: no damage found")


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
