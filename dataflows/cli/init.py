"""``anabranch init``: writes a first declaration for a topic or file, from a sample of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anabranch.dataflows.cli.options import (
    DEFAULT_BUS,
    BusConfig,
    BusSettings,
    BusUrl,
    bus_of,
)
from anabranch.dataflows.telemetry.console import TextConsole, echo
from anabranch.state.errors import InputError

if TYPE_CHECKING:
    from anabranch.dataflows.bus import Bus
    from anabranch.dataflows.declaration.pipeline import Pipeline
    from anabranch.dataflows.first_declaration.roles import Roles
    from anabranch.dataflows.first_declaration.samples import Fields
    from anabranch.producers.batch import Kind

_STDOUT = "-"
_NAME = re.compile(r"[^a-zA-Z0-9._-]+")


def init(
    source: Annotated[
        str,
        typer.Argument(
            help="The events: a topic, or a .jsonl, .csv or .parquet file.", metavar="TOPIC|FILE"
        ),
    ],
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="TOPIC|FILE",
            help="The labels, if they are not a field of the events.",
        ),
    ] = None,
    registry: Annotated[
        str | None,
        typer.Option(
            "--registry",
            metavar="URL",
            help="The schema registry of the messages, which are in Avro, or JSON with its prefix.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            metavar="NAME",
            help="The pipeline's name. Default: that of the topic or file.",
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="FILE",
            help="Where to write it, a .py file that does not exist yet, or - for the terminal. "
            "Default: NAME.py.",
        ),
    ] = None,
    rows: Annotated[
        int,
        typer.Option(
            "--rows",
            metavar="N",
            min=1,
            help="How much to look at: the first N rows of a file, or N messages of a topic.",
        ),
    ] = 5000,
    bus: BusUrl = DEFAULT_BUS,
    bus_set: BusSettings = None,
    bus_config: BusConfig = None,
) -> None:
    """Write a first declaration of a pipeline, which runs, from a sample of its messages.

    It guesses the fields' types, the id, the time and its unit, the key, the label, some features
    and a model for that label; fields that it leaves out are comments. The sample is then checked
    as `anabranch check` does it. No topic is created or changed, no file overwritten.

    Examples:

        anabranch init payments.csv --labels verdicts.csv --to fraud.py

        anabranch init prod.orders.v2 --registry http://localhost:8081 --bus kafka://localhost:9092
    """
    from anabranch.dataflows.first_declaration.declare import declare

    sources = [source, *([labels] if labels else [])]
    with bus_of(sources, bus, bus_set, bus_config, None) as opened:
        named = _pipeline_name(source, name)
        path = None if to == _STDOUT else _target(to, named)
        events = _fields(source, opened, rows, registry)
        of_labels = None if labels is None else _fields(labels, opened, rows, registry)
        written, roles = declare(named, events, of_labels)
        if path is None:
            echo(written.text.rstrip("\n"))
            return
        _write(path, written.text)
        declared = _loaded(path)
        _tell(path, declared, events, roles)
        _check(declared, "events", source, opened, rows)
        if labels is not None:
            _check(declared, "labels", labels, opened, rows)
        _next(path, events, of_labels)


def _fields(name: str, bus: Bus | None, rows: int, registry: str | None) -> Fields:
    from anabranch.dataflows.first_declaration.samples import fields_of_file, fields_of_topic
    from anabranch.dataflows.skew.sources import file_of

    path = file_of(name)
    if path is not None:
        return fields_of_file(path, rows)
    assert bus is not None
    return fields_of_topic(bus, name, rows, registry)


def _pipeline_name(source: str, given: str | None) -> str:
    from anabranch.dataflows.skew.sources import file_of

    if given is not None:
        if _NAME.search(given) or not given[:1].isalpha() or len(given) > 100:
            raise typer.BadParameter(
                f"--name {given!r} must be a letter, then letters, digits, dots, - and _"
            )
        return given
    path = file_of(source)
    name = path.stem if path is not None else source.removesuffix(".events")
    name = _NAME.sub("_", name).strip("._-")[:100]
    return name if name[:1].isascii() and name[:1].isalpha() else f"p{name}"


def _target(to: str | None, name: str) -> Path:
    """The file to write; it must not exist."""
    from anabranch.dataflows.pipelines import SHIPPED

    stem = name.replace(".", "_").replace("-", "_")
    path = Path(to) if to is not None else Path(f"{stem}.py")
    if path.suffix != ".py":
        raise typer.BadParameter(f"--to {to} must end in .py, as a pipeline's file does")
    if path.exists():
        raise InputError(f"{path} exists: name another file with --to")
    if to is None and stem in SHIPPED:
        raise InputError(
            f"a pipeline called {stem} is shipped: give another --name, or a file with --to"
        )
    return path


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(f"{path} exists: name another file with --to") from None
    except OSError as error:
        raise InputError(f"{path} can't be written: {error.strerror}") from None


def _loaded(path: Path) -> Pipeline:
    from anabranch.dataflows.pipelines.loader import load_pipeline

    return load_pipeline(str(path))


def _tell(path: Path, pipeline: Pipeline, events: Fields, roles: Roles) -> None:
    """Say what was guessed."""
    console = TextConsole()
    console.print(f"wrote {path}: pipeline {pipeline.name!r}, of {len(events.messages):,} messages")
    name = "coordinates (no field tells all messages apart)" if roles.id is None else roles.id.path
    where = "$." if roles.time.beside else ""
    unit = "ISO-8601" if roles.time.unit == "iso" else roles.time.unit
    entities = ", ".join(each.path for each in roles.entities) or "none: no field repeats"
    label = "none"
    if pipeline.label is not None:
        label = f"{pipeline.label.field} ({pipeline.task.value})"
    for what, found in (
        ("id", name),
        ("time", f"{where}{roles.time.field.path} ({unit})"),
        ("windows by", entities),
        ("label", label),
        ("model", pipeline.model_name),
    ):
        console.print(f"  {what}: {found}", soft_wrap=True)
    if events.skipped:
        console.print(
            f"  {events.skipped:,} updates or deletes of rows are left out", soft_wrap=True
        )
    if events.unreadable:
        console.print(f"  {events.unreadable:,} messages can't be decoded", soft_wrap=True)


def _check(pipeline: Pipeline, kind: Kind, name: str, bus: Bus | None, rows: int) -> None:
    """Say how many of a sample fit the declaration."""
    from anabranch.dataflows.check.report import reason_counts
    from anabranch.dataflows.check.verdicts import verdicts
    from anabranch.dataflows.cli.check import sample_of
    from anabranch.dataflows.cli.display.check import print_reasons

    sample = sample_of(pipeline, kind, [name], bus, rows)
    found = verdicts(pipeline, kind, sample)
    console = TextConsole()
    console.print(f"  {len(found.rows):,} of {len(sample):,} {kind} of {name} fit", soft_wrap=True)
    if found.refused:
        reasons = reason_counts(sample, found.refused)
        print_reasons(console, reasons, f"{kind} that would be dead letters")


def _next(path: Path, events: Fields, labels: Fields | None) -> None:
    steps = [f"anabranch run {path}"]
    if events.is_file:
        given = "" if labels is None or not labels.is_file else f" --labels {labels.source}"
        steps.insert(0, f"anabranch publish {path} {events.source}{given}")
    TextConsole().print(f"look at {path}, then: {', and '.join(steps)}", soft_wrap=True)
