"""``anabranch dead-letters``: lists messages that could not be used, or publishes them again."""

from __future__ import annotations

from typing import Annotated

import typer

from anabranch.dataflows.cli.options import (
    DEFAULT_BUS,
    BusConfig,
    BusSettings,
    BusUrl,
    Json,
    PipelineName,
    opened_bus,
    with_labels_bus,
)
from anabranch.dataflows.telemetry.console import echo

dead_letters = typer.Typer(
    name="dead-letters",
    help=(
        "List the messages that a pipeline could not use, and publish those again that its "
        "declaration takes now.\n\n"
        "Examples:\n\n"
        "    anabranch dead-letters list fraud.py\n\n"
        "    anabranch dead-letters republish fraud.py --dry-run"
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
)

Reasons = Annotated[
    list[str] | None,
    typer.Option(
        "--reason",
        metavar="REASON",
        help="Only dead letters with this reason, such as 'does not fit the type'. Can be given "
        "several times.",
    ),
]


@dead_letters.command("list")
def list_(
    pipeline: PipelineName,
    reason: Reasons = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", "-n", min=1, metavar="N", help="Count only the newest N."),
    ] = None,
    json: Json = False,
    bus: BusUrl = DEFAULT_BUS,
    bus_set: BusSettings = None,
    bus_config: BusConfig = None,
) -> None:
    """List dead letters by reason: how many, when the first and the last came, and an example.

    Examples:

        anabranch dead-letters list fraud.py

        anabranch dead-letters list fraud.py --reason late --limit 1000 --json
    """
    from anabranch.dataflows.cli.display.dead_letters import print_listing
    from anabranch.dataflows.dead_letters.stored import check_reasons, list_letters
    from anabranch.dataflows.pipelines.loader import load_pipeline

    check_reasons(reason)
    declared = load_pipeline(pipeline)
    with opened_bus(bus, bus_set, bus_config) as opened:
        print_listing(list_letters(opened, declared, reason, limit), json)


@dead_letters.command()
def republish(
    pipeline: PipelineName,
    reason: Reasons = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", "-n", min=1, metavar="N", help="Publish at most N."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Say what would be published, and what not and why; publish nothing."
        ),
    ] = False,
    json: Json = False,
    bus: BusUrl = DEFAULT_BUS,
    bus_set: BusSettings = None,
    bus_config: BusConfig = None,
) -> None:
    """Publish dead letters again that the declaration takes now, each once.

    They go to the topic and partition that they came from, with their key, headers and time. None
    is published twice, also by a call after one that was killed. Left out are those that still do
    not fit, and events that would be late. Without --reason only those are considered whose
    message itself was refused: no late ones, duplicates, or labels without an event.

    Other pipelines on the same topic read the copies as well.

    Examples:

        anabranch dead-letters republish fraud.py --dry-run

        anabranch dead-letters republish fraud.py --reason 'label without event'
    """
    from anabranch.dataflows.cli.display.dead_letters import print_republished
    from anabranch.dataflows.dead_letters.republish import republish as publish_again
    from anabranch.dataflows.pipelines.loader import load_pipeline

    declared = load_pipeline(pipeline)
    with (
        opened_bus(bus, bus_set, bus_config) as own,
        with_labels_bus(declared, own) as opened,
    ):
        report = publish_again(opened, declared, reason, limit, dry_run, say=echo)
    print_republished(report, json)
