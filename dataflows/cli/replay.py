"""``anabranch replay``: runs history through a pipeline and writes training rows."""

from __future__ import annotations

from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from anabranch.dataflows.bus import Bus
from anabranch.dataflows.cli.options import (
    DEFAULT_BUS,
    BatchSize,
    BusConfig,
    BusSettings,
    BusUrl,
    PipelineName,
    Shards,
    opened_bus,
    with_labels_bus,
)
from anabranch.state.errors import InputError


class ContinueAt(StrEnum):
    """Where on a topic a run continues if the replay can't tell which messages it has covered."""

    earliest = "earliest"
    latest = "latest"


def replay(
    pipeline: PipelineName,
    to: Annotated[
        Path,
        typer.Option(
            "--to",
            metavar="FILE",
            help="Write the training rows to this .parquet file, replacing it if it exists.",
        ),
    ],
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            envvar="ANABRANCH_REPLAY_FROM",
            metavar="FILE|TOPIC",
            help="The events: a .parquet, .jsonl or .csv file, or a topic, from its start to its "
            "current end.",
            show_default="the topic of the pipeline's events",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="FILE|TOPIC",
            help="The labels. Events and labels are merged by time.",
            show_default="the topic of the pipeline's labels with that of its events, else none",
        ),
    ] = None,
    dead_letters: Annotated[
        Path | None,
        typer.Option(
            "--dead-letters",
            metavar="FILE",
            help="Write messages that could not be used to this JSONL file, with the reason. "
            "Default: they are only counted.",
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            metavar="DIR",
            help="Also write a new state directory, with which `anabranch run` continues after the "
            "last replayed message.",
        ),
    ] = None,
    continue_at: Annotated[
        ContinueAt | None,
        typer.Option(
            "--continue-at",
            metavar="WHERE",
            help="With --state: earliest or latest, where that run starts reading the pipeline's "
            "topics. Needed only if the replay can't tell: its input is a file without the columns "
            "partition and offset, or a topic of another name.",
        ),
    ] = None,
    features_only: Annotated[
        bool,
        typer.Option(
            "--features-only",
            help="Write features and labels only, for models that are trained elsewhere: no model "
            "predicts or learns, so --state can't be given.",
        ),
    ] = False,
    batch_size: BatchSize = 8192,
    shards: Shards = 8,
    bus: BusUrl = DEFAULT_BUS,
    bus_set: BusSettings = None,
    bus_config: BusConfig = None,
) -> None:
    """Run history through a pipeline and write training rows with the features as served.

    Each row has the features as of its event, what the model predicted at that point, and the label
    that came later. Nothing is published. Rows and state appear only when the replay is complete;
    Ctrl-C leaves nothing behind.

    Examples:

        anabranch replay payments --to rows.parquet --state state

        anabranch replay fraud.py --from paid.parquet --labels verdicts.jsonl --to rows.parquet
    """
    from anabranch.dataflows.cli.display.replay import run_replay
    from anabranch.dataflows.declaration.input_topics import resolve_topics
    from anabranch.dataflows.pipelines.loader import load_pipeline
    from anabranch.dataflows.replay.replay import ReplaySettings
    from anabranch.dataflows.replay.source_offsets import is_file

    if to.suffix.lower() not in (".parquet", ".pq"):
        raise InputError(
            f"--to {to}: rows are written as Parquet, so its name must end in .parquet"
        )
    declared = load_pipeline(pipeline)
    settings = ReplaySettings(
        events=source,
        labels=labels,
        rows=to,
        dead_letters=dead_letters,
        state=state,
        continue_at=None if continue_at is None else continue_at.value,
        features_only=features_only,
        batch_size=batch_size,
        shards=shards,
    )
    needs_bus = state is not None or source is None
    needs_bus = needs_bus or not all(is_file(name) for name in (source, labels) if name)
    with ExitStack() as stack:
        opened: Bus | None = None
        if needs_bus:
            own = stack.enter_context(opened_bus(bus, bus_set, bus_config))
            opened = stack.enter_context(with_labels_bus(declared, own))
            resolve_topics(declared, opened)
        run_replay(declared, settings, opened, pipeline)
