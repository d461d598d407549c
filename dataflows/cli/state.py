"""``anabranch state``: shows what a state directory holds, and checks it for damage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from anabranch.dataflows.cli.options import Json
from anabranch.dataflows.telemetry.console import TextConsole, echo
from anabranch.dataflows.telemetry.status import quality_text
from anabranch.state.errors import StateError

if TYPE_CHECKING:
    from anabranch.dataflows.recovery.inspection import StatePartitionReport, StateReport
    from anabranch.dataflows.recovery.verification import Damage


def state(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A state directory, as given to `run --state`.")
    ],
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Read every file and verify every checksum; list what is damaged, and exit 1.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Show what a state directory holds: its checkpoint, offsets, keys, windows and models.

    It can be called while a run uses the directory, and changes nothing: read access is enough.

    Examples:

        anabranch state data/state/payments

        anabranch state data/state/payments --verify
    """
    from anabranch.dataflows.recovery.inspection import DamagedError, inspect

    console = TextConsole()
    try:
        with TextConsole(stderr=True).status(f"reading {directory}"):
            report = inspect(directory, verify)
    except DamagedError as error:
        if json:
            _print_damage_json(directory, error.damage)
        else:
            console.print(_damage_table(error.damage))
        raise
    if json:
        _print_json(report)
    else:
        _print_tables(report, console)
    if report.damage:
        if not json:
            console.print(_damage_table(report.damage))
        raise DamagedError(directory, report.damage)
    if report.problems:
        raise StateError(f"{directory} is damaged: {'; '.join(report.problems)}")
    if verify and not json:
        console.print(f"{len(report.state_partitions)} state partitions verified: no damage found")


def _print_json(report: StateReport) -> None:
    import dataclasses

    import msgspec

    fields = {each.name: getattr(report, each.name) for each in dataclasses.fields(report)}
    echo(msgspec.json.encode(fields).decode())


def _print_damage_json(directory: Path, damage: list[Damage]) -> None:
    import msgspec

    echo(msgspec.json.encode({"path": str(directory), "damage": damage}).decode())


def _damage_table(damage: list[Damage]) -> Table:
    table = Table(title="damaged files", title_justify="left")
    table.add_column("file", overflow="fold")
    table.add_column("problem")
    for each in damage:
        table.add_row(each.file, each.problem)
    return table


def _print_tables(report: StateReport, console: Console) -> None:
    for line in _summary(report):
        console.print(line, highlight=False, soft_wrap=True)
    offsets = Table(title="next offsets to read", title_justify="left")
    offsets.add_column("topic")
    offsets.add_column("offset by partition")
    for topic, by_partition in report.offsets.items():
        offsets.add_row(topic, ", ".join(f"{p}: {at:,}" for p, at in by_partition.items()))
    console.print(offsets)
    partitions = Table(title="state partitions", title_justify="left")
    for name in ("partition", "generation", "content", "size"):
        partitions.add_column(name, justify="left" if name in ("partition", "content") else "right")
    for place in report.state_partitions:
        at = "—" if place.resumes_at is None else f"{place.resumes_at:,}"
        partitions.add_row(place.name, at, _contents(place), _size(place.bytes))
    console.print(partitions)
    for place in report.state_partitions:
        if place.slices:
            console.print(_slices_table(place))


def _summary(report: StateReport) -> Iterator[str]:
    """Lines about the directory as a whole."""
    import numpy as np

    manifest = report.manifest
    used = "not in use" if report.process is None else f"in use by process {report.process}"
    layout = f"{manifest.shards} shards" if manifest.by_shard else "one worker"
    yield f"pipeline {manifest.pipeline}, generation {report.generation:,}, {used}"
    yield f"windows partitioned for {layout}, {manifest.partitions} input partitions"
    if report.event_time_ms is not None:
        yield f"event time {np.datetime64(report.event_time_ms, 'ms')} UTC"


def _slices_table(place: StatePartitionReport) -> Table:
    """A row per value of each slice: its number of labels, and the champion's metrics on them."""
    metrics = list(place.models.get(place.champion, {}))
    table = Table(title=f"metrics of {place.champion} by slice", title_justify="left")
    for name in ("slice", "value", "labels", *metrics):
        table.add_column(name, justify="left" if name in ("slice", "value") else "right")
    for name, values in place.slices.items():
        for value, figures_of in values.items():
            quality = figures_of["quality"].get(place.champion, {})
            figures = [f"{quality[each]:.4f}" if each in quality else "—" for each in metrics]
            table.add_row(name, value, f"{figures_of['labels']:,}", *figures)
    return table


def _contents(place: StatePartitionReport) -> str:
    """One line about what a state partition holds."""
    kept = "labels" if place.models else "events"
    windows = "; ".join(
        f"{entity}: {keys:,} keys, {place.events.get(entity, 0):,} {kept}"
        for entity, keys in place.keys.items()
    )
    if place.models:
        quality = "; ".join(
            f"{model}{' (champion)' if model == place.champion else ''}: "
            + ", ".join(f"{name} {quality_text(value)}" for name, value in metrics.items())
            for model, metrics in place.models.items()
        )
        waiting = f"{place.pending_predictions:,} predictions awaiting their label"
        return "; ".join(filter(None, (quality, _segments(place), waiting, windows)))
    if windows:
        return windows
    return f"{place.ids:,} recent ids" if place.ids else "nothing yet"


def _segments(place: StatePartitionReport) -> str:
    """How many segments have a model of their own, and which of them have the most labels."""
    if not place.segments:
        return ""
    own = {name: each["labels"] for name, each in place.segments.items() if each["own"]}
    first = sorted(own, key=lambda name: -own[name])[:5]
    named = ", ".join(f"{name}: {own[name]:,}" for name in first)
    more = ", …" if len(own) > len(first) else ""
    labels = f" (labels of {named}{more})" if own else ""
    return f"{len(own):,} segments with a model of their own{labels}"


def _size(count: int) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count //= 1000
    return f"{count:,} GB"
