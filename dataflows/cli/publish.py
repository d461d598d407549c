"""``anabranch publish``: publishes a file or a River data set to the topics of a pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anabranch.dataflows.bus import Bus
from anabranch.dataflows.cli.display.publish import Publishing
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
    with_labels_bus,
)
from anabranch.dataflows.cli.simulate import check_pacing
from anabranch.dataflows.declaration.formats import Json
from anabranch.dataflows.declaration.topics import Topics
from anabranch.dataflows.messages.time_unit_check import TimeUnitCheck
from anabranch.dataflows.telemetry.console import TextConsole, echo
from anabranch.state.errors import InputError

if TYPE_CHECKING:
    from anabranch.dataflows.check.sample import Sample
    from anabranch.dataflows.check.verdicts import Verdicts
    from anabranch.dataflows.declaration.pipeline import Pipeline
    from anabranch.producers.batch import Batch, Kind

_SAMPLE = 2000
"""How many rows of a file are checked before anything is published."""


def publish(
    pipeline: Annotated[
        str | None,
        typer.Argument(
            help="The pipeline whose topics to publish to: payments, fraud.py, shop.fraud:flow, …",
            metavar="PIPELINE",
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Argument(help="The events, as .jsonl, .csv or .parquet.", metavar="FILE"),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            metavar="FILE",
            help="The labels, as .jsonl, .csv or .parquet. Events and labels are merged by time.",
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            metavar="NAME",
            help="Publish a data set of River instead of a file: Bananas, ChickWeights, "
            "ImageSegments, Phishing, SP500Stocks, Shuttle or TrumpApproval; `list` shows details.",
        ),
    ] = None,
    rate: Rate = None,
    speedup: Speedup = None,
    partitions: Partitions = None,
    bus: BusUrl = DEFAULT_BUS,
    bus_set: BusSettings = None,
    bus_config: BusConfig = None,
) -> None:
    """Publish the rows of a file or data set as events; missing topics are created.

    With --rate or --speedup the messages are live traffic, stamped with the current time. Otherwise
    they are history, stamped with their event times. If none of the first rows fits the pipeline's
    type, nothing is published.

    Examples:

        anabranch publish --dataset Phishing

        anabranch publish fraud.py payments.jsonl --labels verdicts.jsonl --speedup 60
    """
    from anabranch.dataflows.pipelines.loader import load_pipeline

    if dataset is not None:
        if pipeline is not None or labels is not None:
            raise typer.BadParameter("--dataset can't be combined with PIPELINE, FILE or --labels")
        if dataset == "list":
            _list_datasets()
            return
    elif pipeline is None or file is None:
        raise typer.BadParameter("give a PIPELINE and a FILE, or --dataset NAME")
    pacing = check_pacing(rate, speedup)
    with ExitStack() as stack:
        opened = stack.enter_context(opened_bus(bus, bus_set, bus_config))
        if dataset is not None:
            publishing, batches = _from_dataset(opened, dataset, partitions)
        else:
            assert pipeline is not None
            assert file is not None
            declared = load_pipeline(pipeline)
            opened = stack.enter_context(with_labels_bus(declared, opened))
            publishing, batches = _from_files(opened, declared, file, labels, partitions)
        with publishing.progress() as send:
            send(batches, pacing)


def _from_dataset(
    bus: Bus, name: str, partitions: int | None
) -> tuple[Publishing, Iterator[Batch]]:
    from anabranch.producers.datasets import dataset_messages, dataset_shape

    shape = dataset_shape(name)
    topics: dict[Kind, str] = {"events": Topics().named(shape.pipeline).events}
    create_topics(bus, list(topics.values()), partitions)
    return Publishing(bus, topics, total=shape.rows), dataset_messages(name)


def _from_files(
    bus: Bus, pipeline: Pipeline, file: Path, labels: Path | None, partitions: int | None
) -> tuple[Publishing, Iterator[Batch]]:
    from anabranch.producers.files.formats import count_rows

    if labels is not None and not pipeline.has_label_topic:
        raise InputError(
            f"the labels of pipeline {pipeline.name!r} are in its events: leave out --labels"
        )
    for kind, given in (("events", file), ("labels", labels)):
        _check_written_as_json(pipeline, kind, given)
    counts = [count_rows(path) for path in (file, labels) if path is not None]
    checks = [TimeUnitCheck(str(path), pipeline.time_scale) for path in (file, labels or file)]
    notes: list[str] = []
    batches = _checked(_messages(pipeline, "events", file, notes), checks[0])
    topics: dict[Kind, str] = {"events": pipeline.topics.of_role("events")}
    if labels is not None:
        of_labels = _checked(_messages(pipeline, "labels", labels, notes), checks[1])
        batches = _with_labels(pipeline, batches, of_labels)
        topics["labels"] = pipeline.topics.of_role("labels")
    batches = _with_first_read(batches)
    create_topics(bus, pipeline.inputs, partitions)
    total = None if None in counts else sum(count for count in counts if count is not None)
    return Publishing(bus, topics, total=total, checks=checks, notes=notes), batches


def _check_written_as_json(pipeline: Pipeline, kind: str, file: Path | None) -> None:
    """Check that rows of a file, which are published as JSON, are what a topic holds."""
    topic = pipeline.topics.of_role(kind)
    declared = pipeline.format_of(topic, labels=kind == "labels")
    if file is not None and not isinstance(declared, Json):
        raise InputError(
            f"{file} would be published as JSON, and the {kind} of pipeline {pipeline.name!r} are "
            f"{type(declared).__name__}(…): publish them with the program that writes them, or "
            "read the file itself with `anabranch replay`"
        )


def _checked(batches: Iterator[Batch], check: TimeUnitCheck) -> Iterator[Batch]:
    """The same batches, whose times ``check`` has seen."""
    for batch in batches:
        if len(batch):
            check.add(int(batch.times.min()), int(batch.times.max()))
        yield batch


def _with_first_read(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, the first already read: an unusable file raises before topics exist."""
    return chain(list(islice(batches, 1)), batches)


def _messages(pipeline: Pipeline, kind: Kind, file: Path, notes: list[str]) -> Iterator[Batch]:
    """The rows of a file as messages; what else is to be said of them goes to ``notes``.

    Raises:
        InputError: none of the first rows fits the type; a table of the reasons was printed.
    """
    from anabranch.dataflows.check.sample import rows_of
    from anabranch.dataflows.check.verdicts import verdicts
    from anabranch.dataflows.cli.display.live_status import compiling
    from anabranch.dataflows.files.declared_fields import event_fields, label_fields
    from anabranch.dataflows.telemetry.logs import stderr_console
    from anabranch.producers.files.formats import file_messages

    fields = event_fields(pipeline) if kind == "events" else label_fields(pipeline)
    batches = file_messages(file, fields, topic_kind=kind, batch_size=_SAMPLE)
    first = list(islice(batches, 1))
    sample = rows_of(first, str(file))
    with compiling(stderr_console()):
        found = verdicts(pipeline, kind, sample)
    if found.none_fits:
        _print_reasons(sample, found)
        raise InputError(
            f"none of the first {len(sample):,} rows of {file} fits {fields.message}: nothing was "
            f"published; `anabranch check` says more"
        )
    if found.refused:
        notes.append(
            f"{len(found.refused):,} of the first {len(sample):,} rows of {file} would be dead "
            f"letters ({found.refused[0].reason}: {found.refused[0].detail}); `anabranch check` "
            "says more"
        )
    return chain(first, batches)


def _print_reasons(sample: Sample, found: Verdicts) -> None:
    from anabranch.dataflows.check.report import reason_counts
    from anabranch.dataflows.cli.display.check import print_reasons

    title = f"the first {len(sample):,} rows of {sample.source} would all be dead letters"
    print_reasons(TextConsole(stderr=True), reason_counts(sample, found.refused), title)


def _with_labels(
    pipeline: Pipeline, events: Iterator[Batch], labels: Iterator[Batch]
) -> Iterator[Batch]:
    """Events and labels merged by time, each label with the key of its event."""
    from anabranch.dataflows.files.declared_fields import event_fields, label_fields
    from anabranch.producers.files.time_merge import keyed_by_event, merged

    of_event, of_label = event_fields(pipeline), label_fields(pipeline)
    return keyed_by_event(
        merged(events, labels), of_event.paths_of(of_event.id), of_label.paths_of(of_label.id)
    )


def _list_datasets() -> None:
    from anabranch.producers.datasets import DATASETS, dataset_shape

    for name in DATASETS:
        shape = dataset_shape(name)
        echo(f"{name}: {shape.rows:,} rows, {shape.task}, {len(shape.fields)} numeric features")
