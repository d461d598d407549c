"""Puts the subcommands together, and turns errors into one sentence and an exit code."""

from __future__ import annotations

import sys

import typer

from anabranch.dataflows.cli.consume import consume
from anabranch.dataflows.cli.demo.command import demo
from anabranch.dataflows.cli.display.errors import print_error
from anabranch.dataflows.cli.models import models
from anabranch.dataflows.cli.publish import publish
from anabranch.dataflows.cli.replay import replay
from anabranch.dataflows.cli.rollout import rollout
from anabranch.dataflows.cli.run import run
from anabranch.dataflows.cli.simulate import simulate
from anabranch.dataflows.cli.skew import skew
from anabranch.dataflows.cli.state import state
from anabranch.dataflows.cli.topics import topics
from anabranch.dataflows.telemetry.logs import configure
from anabranch.state.errors import AnabranchError

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="anabranch",
    help=(
        "Real-time machine learning on event streams: exact windowed features, online models that "
        "predict and learn on every event. Start with `anabranch demo`.\n\n"
        "Every option can also be given by environment variable; each command's help names them. "
        "Exit codes: 0 done, 1 something you can mend (said in one sentence), 2 wrong usage, "
        "130 interrupted; `skew` ends with 1 for a difference, and with 2 for what you can mend; "
        "`rollout` ends with 3 when nobody answers."
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"auto_envvar_prefix": "ANABRANCH", "help_option_names": ["-h", "--help"]},
)
for command in (demo, run, replay, skew, simulate, publish, consume, topics, state):
    app.command()(command)
app.add_typer(models)
app.add_typer(rollout)


def main() -> None:
    """Entry point of the console command."""
    try:
        configure()
        app(prog_name="anabranch")
    except AnabranchError as error:
        print_error(error)
        sys.exit(EXIT_ERROR)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
