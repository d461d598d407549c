"""``anabranch check``: compares a sample of a file or topic with a pipeline's declaration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anabranch.dataflows.cli.display.errors import errors_as_exit_code
from anabranch.dataflows.cli.options import (
    DEFAULT_BUS,
    BusConfig,
    BusSettings,
    BusUrl,
    Json,
    PipelineName,
    bus_of,
)
from anabranch.state.errors import InputError

if TYPE_CHECKING:
    from anabranch.dataflows.bus import Bus
    from anabranch.dataflows.check.sample import Sample
    from anabranch.dataflows.declaration.pipeline import Pipeline
    from anabranch.producers.batch import Kind

EXIT_DEAD_LETTERS = 1


def check(
    pipeline: PipelineName,
    source: Annotated[
        str | None,
        typer.Argument(
            help="The events: a .jsonl, .csv or .parquet file, or a topic. Default: the pipeline's "
            "events topic.",
            metavar="FILE|TOPIC",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="FILE|TOPIC",
            help="The labels, to be joined to the events. Default: the pipeline's labels topic if "
            "the events are its events topic, else none.",
        ),
    ] = None,
    rows: Annotated[
        int,
        typer.Option(
            "--rows",
            metavar="N",
            min=1,
            help="How much to read: the first N rows of a file; of a topic, N / 2 messages from "
            "the start and as many from the end.",
        ),
    ] = 5000,
    json: Json = False,
    bus: BusUrl = DEFAULT_BUS,
    bus_set: BusSettings = None,
    bus_config: BusConfig = None,
) -> None:
    """Say which messages of a file or topic fit a pipeline, which would be dead letters, and why.

    A sample is decoded as `run` decodes it: fields and their types, times, repeated ids, and which
    labels find their events. Nothing is published or changed.

    Exit codes: 0 all fits; 1 something would be a dead letter; 2 the input can't be read.

    Examples:

        anabranch check fraud.py payments.csv --labels verdicts.csv

        anabranch check fraud.py fraud.events --json
    """
    with errors_as_exit_code():
        from anabranch.dataflows.check.report import check as checked
        from anabranch.dataflows.cli.display.check import print_report
        from anabranch.dataflows.cli.display.live_status import compiling
        from anabranch.dataflows.pipelines.loader import load_pipeline
        from anabranch.dataflows.telemetry.logs import stderr_console

        declared = load_pipeline(pipeline)
        if labels is not None and not declared.has_label_topic:
            raise InputError(
                f"the labels of pipeline {declared.name!r} are in its events: leave out --labels"
            )
        names = [source or "the pipeline's topics", *([labels] if labels else [])]
        with bus_of(names, bus, bus_set, bus_config, declared) as opened:
            if opened is not None:
                declared.topics = declared.topics.resolved(opened.topics())
            topics = declared.topics
            of_events = sample_of(
                declared, "events", topics.all_events if source is None else [source], opened, rows
            )
            of_labels = None
            if labels is not None:
                of_labels = sample_of(declared, "labels", [labels], opened, rows)
            elif _has_labels(declared, source, opened):
                of_labels = sample_of(declared, "labels", topics.all_labels, opened, rows)
        with compiling(stderr_console()):
            report = checked(declared, of_events, of_labels)
        print_report(report, json)
    if not report.ok:
        raise typer.Exit(EXIT_DEAD_LETTERS)


def _has_labels(pipeline: Pipeline, source: str | None, bus: Bus | None) -> bool:
    """Whether the pipeline's own labels belong to these events, and there are some."""
    topics = pipeline.topics
    own = source is None or source in topics.all_events
    if bus is None or not pipeline.has_label_topic or not own:
        return False
    existing = bus.topics()
    return all(each in existing for each in topics.all_labels) and any(
        sum(bus.end_offsets(each)) > sum(bus.start_offsets(each)) for each in topics.all_labels
    )


def sample_of(
    pipeline: Pipeline, kind: Kind, names: Sequence[str], bus: Bus | None, rows: int
) -> Sample:
    """A sample of the file or the topics called ``names``, as the pipeline would read them."""
    from anabranch.dataflows.check.sample import sample_of_file, sample_of_topics
    from anabranch.dataflows.declaration.message_places import reads_headers
    from anabranch.dataflows.files.declared_fields import event_fields, label_fields
    from anabranch.dataflows.messages.inputs import Delayed
    from anabranch.dataflows.skew.sources import file_of

    path: Path | None = file_of(names[0])
    if path is not None:
        fields = event_fields(pipeline) if kind == "events" else label_fields(pipeline)
        return sample_of_file(path, fields, kind, rows)
    assert bus is not None
    label = pipeline.label
    if kind == "labels" and isinstance(label, Delayed):
        return sample_of_topics(bus, names, rows, reads_headers(label.type))
    return sample_of_topics(bus, names, rows, reads_headers(pipeline.event))
