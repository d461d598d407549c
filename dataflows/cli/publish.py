"""``anabranch publish``: publishes a file or a River data set to the topics of a pipeline."""

from __future__ import annotations

from collections.abc import Iterator
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
)
from anabranch.dataflows.cli.simulate import check_pacing
from anabranch.dataflows.declaration.topics import Topics
from anabranch.dataflows.messages.time_unit_check import TimeUnitCheck
from anabranch.dataflows.telemetry.console import echo
from anabranch.state.errors import InputError

if TYPE_CHECKING:
    from anabranch.dataflows.declaration.pipeline import Pipeline
    from anabranch.dataflows.declaration.schema import Schema
    from anabranch.producers.batch import Batch, Kind


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
    they are history, stamped with their event times.

    Examples:

        anabranch publish --dataset Phishing

        anabranch publish fraud.py payments.jsonl --labels verdicts.jsonl --speedup 60
    """
    if dataset is not None:
        if pipeline is not None or labels is not None:
            raise typer.BadParameter("--dataset can't be combined with PIPELINE, FILE or --labels")
        if dataset == "list":
            _list_datasets()
            return
    elif pipeline is None or file is None:
        raise typer.BadParameter("give a PIPELINE and a FILE, or --dataset NAME")
    pacing = check_pacing(rate, speedup)
    with opened_bus(bus, bus_set, bus_config) as opened:
        if dataset is not None:
            publishing, batches = _from_dataset(opened, dataset, partitions)
        else:
            assert pipeline is not None
            assert file is not None
            publishing, batches = _from_files(opened, pipeline, file, labels, partitions)
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
    bus: Bus, name: str, file: Path, labels: Path | None, partitions: int | None
) -> tuple[Publishing, Iterator[Batch]]:
    from anabranch.dataflows.pipelines.loader import load_pipeline
    from anabranch.producers.files.formats import count_rows

    pipeline = load_pipeline(name)
    if labels is not None and not pipeline.has_label_topic:
        raise InputError(
            f"the labels of pipeline {pipeline.name!r} are in its events: leave out --labels"
        )
    counts = [count_rows(path) for path in (file, labels) if path is not None]
    checks = [TimeUnitCheck(str(path), pipeline.time_scale) for path in (file, labels or file)]
    batches = _checked(_event_messages(pipeline, file), checks[0])
    topics: dict[Kind, str] = {"events": pipeline.topics.events}
    if labels is not None:
        batches = _with_labels(pipeline, batches, labels, checks[1])
        topics["labels"] = pipeline.topics.labels
    batches = _with_first_read(batches)
    create_topics(bus, pipeline.inputs, partitions)
    total = None if None in counts else sum(count for count in counts if count is not None)
    return Publishing(bus, topics, total=total, checks=checks), batches


def _checked(batches: Iterator[Batch], check: TimeUnitCheck) -> Iterator[Batch]:
    """The same batches, whose times ``check`` has seen."""
    for batch in batches:
        if len(batch):
            check.add(int(batch.times.min()), int(batch.times.max()))
        yield batch


def _with_first_read(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, the first already read: an unusable file raises before topics exist."""
    return chain(list(islice(batches, 1)), batches)


def _event_messages(pipeline: Pipeline, file: Path) -> Iterator[Batch]:
    from anabranch.producers.files.formats import file_messages

    return file_messages(
        file,
        time_field=pipeline.time,
        time_unit=pipeline.time_unit,
        zone=pipeline.zone,
        id_field=pipeline.id,
        key_field=pipeline.partition_field,
        text_fields=_text_fields(pipeline.schema),
    )


def _with_labels(
    pipeline: Pipeline, events: Iterator[Batch], file: Path, check: TimeUnitCheck
) -> Iterator[Batch]:
    """Events and labels merged by time, each label with the key of its event."""
    from anabranch.dataflows.declaration.schema import Schema
    from anabranch.dataflows.messages.inputs import Delayed
    from anabranch.producers.files.formats import file_messages
    from anabranch.producers.files.time_merge import keyed_by_event, merged

    label = pipeline.label
    assert isinstance(label, Delayed)
    labels = file_messages(
        file,
        time_field=label.time,
        time_unit=pipeline.time_unit,
        zone=pipeline.zone,
        id_field=label.id,
        key_field=label.id,
        text_fields=_text_fields(Schema.of(label.type)),
        topic_kind="labels",
    )
    return keyed_by_event(merged(events, _checked(labels, check)), pipeline.id, label.id)


def _text_fields(schema: Schema) -> list[str]:
    return [name for name, field in schema.fields.items() if field.kind == "text"]


def _list_datasets() -> None:
    from anabranch.producers.datasets import DATASETS, dataset_shape

    for name in DATASETS:
        shape = dataset_shape(name)
        echo(f"{name}: {shape.rows:,} rows, {shape.task}, {len(shape.fields)} numeric features")
