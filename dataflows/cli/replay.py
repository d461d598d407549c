"""``anabranch replay``: history through the same steps, training rows out."""

from __future__ import annotations

from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anabranch.dataflows.cli.options import (
    DEFAULT_BUS,
    BusSettings,
    BusUrl,
    PipelineName,
    opened_bus,
)
from anabranch.state.errors import InputError

if TYPE_CHECKING:
    pass


class ContinueAt(StrEnum):
    """Where a run goes on, when nobody knows which messages the replay stands for."""

    earliest = "earliest"
    latest = "latest"


def replay(
    pipeline: PipelineName,
    source: Annotated[
        str,
        typer.Option(
            "--from",
            envvar="ANABRANCH_REPLAY_FROM",
            metavar="FILE|TOPIC",
            help="The events: a .parquet, .jsonl or .csv file, or a topic from its start to where "
            "it ends now.",
        ),
    ],
    to: Annotated[
        Path,
        typer.Option(
            "--to", metavar="FILE", help="Where the training rows go: a .parquet file, replaced."
        ),
    ],
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="FILE|TOPIC",
            help="The labels, merged with the events by time.",
            show_default="PIPELINE.labels with --from PIPELINE.events, else none",
        ),
    ] = None,
    dead_letters: Annotated[
        Path | None,
        typer.Option(
            "--dead-letters",
            metavar="FILE",
            help="Write what could not be used here, as JSONL. Without it, it is only counted.",
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            metavar="DIR",
            help="Leave a new state directory, from which `anabranch run` goes on.",
        ),
    ] = None,
    continue_at: Annotated[
        ContinueAt | None,
        typer.Option(
            "--continue-at",
            metavar="WHERE",
            help="earliest or latest: where that run begins on a topic, if the replay can't know: "
            "files without partition and offset, and topics of another name.",
        ),
    ] = None,
    features_only: Annotated[
        bool,
        typer.Option(
            "--features-only",
            help="Rows of features and labels alone: no model predicts or learns, and no state is "
            "left. For models that are trained elsewhere.",
        ),
    ] = False,
    batch: Annotated[
        int, typer.Option(min=1, metavar="N", help="Most messages in one batch.")
    ] = 8192,
    shards: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Shards of the state: as those of its runs."),
    ] = 8,
    bus: BusUrl = DEFAULT_BUS,
    bus_set: BusSettings = None,
) -> None:
    """Run history through the steps of a pipeline, and write training rows as they were served.

    Each row has the features as of its event, what the model predicted then, and the label that
    came later. Nothing is published. Rows and state appear when all is done: Ctrl-C leaves nothing.

    Examples:

        anabranch replay payments --from payments.events --to rows.parquet --state state

        anabranch replay fraud.py --from paid.parquet --labels verdicts.jsonl --to rows.parquet
    """
    from anabranch.dataflows.cli.display.replay import show
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
        batch=batch,
        shards=shards,
    )
    topics = state is not None or not all(is_file(name) for name in (source, labels) if name)
    with opened_bus(bus, bus_set) if topics else nullcontext() as opened:
        show(declared, settings, opened, pipeline)
