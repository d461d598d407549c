"""The ``anabranch`` command: its subcommands, and how errors become a sentence and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from anabranch.dataflows.cli.check import check
from anabranch.dataflows.cli.consume import consume
from anabranch.dataflows.cli.dead_letters import dead_letters
from anabranch.dataflows.cli.demo.command import demo
from anabranch.dataflows.cli.display.errors import print_error
from anabranch.dataflows.cli.export import export
from anabranch.dataflows.cli.init import init
from anabranch.dataflows.cli.models import models
from anabranch.dataflows.cli.options import renamed_options
from anabranch.dataflows.cli.publish import publish
from anabranch.dataflows.cli.replay import replay
from anabranch.dataflows.cli.rollout import rollout
from anabranch.dataflows.cli.run import run
from anabranch.dataflows.cli.schema import schema
from anabranch.dataflows.cli.simulate import simulate
from anabranch.dataflows.cli.skew import skew
from anabranch.dataflows.cli.state import state
from anabranch.dataflows.cli.topics import topics
from anabranch.dataflows.runtime.process_exit import leave, must_leave
from anabranch.dataflows.telemetry.console import echo
from anabranch.dataflows.telemetry.logs import configure, log_uncaught, own_process, structured
from anabranch.state.errors import AnabranchError
from anabranch.state.store.permissions import restrict_process

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="anabranch",
    help=(
        "Real-time machine learning on event streams: exact windowed features, online models that "
        "predict and learn on every event. Start with `anabranch demo`.\n\n"
        "Every option can also be set by an environment variable, named in each command's help.\n\n"
        "Exit codes: 0 success, 1 an error (explained in one sentence), 2 wrong usage, "
        "130 interrupted. `skew` exits with 1 if features differ, `check` if something would be a "
        "dead letter, and both with 2 on an error; "
        "`rollout` exits with 3 if no run answers in time."
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"auto_envvar_prefix": "ANABRANCH", "help_option_names": ["-h", "--help"]},
)
RENAMED: dict[Callable[..., None], dict[str, str]] = {
    run: {
        "--lost": "--on-offset-out-of-range",
        "--from": "--start-offset",
        "--epoch": "--checkpoint-interval",
        "--batch": "--batch-size",
    },
    replay: {"--batch": "--batch-size"},
    consume: {"--from": "--start-offset"},
    skew: {
        "--allow": "--max-mismatch",
        "--order-slack": "--order-tolerance",
        "--psi": "--max-psi",
    },
}
"""Former option names of each command, with their current ones."""


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the versions of Anabranch and of what it runs on.",
            is_eager=True,
            allow_from_autoenv=False,
            callback=lambda value: print_versions() if value else None,
        ),
    ] = False,
) -> None:
    """Options of all commands."""


def print_versions() -> None:
    """Print a line with the versions, and exit."""
    from anabranch.dataflows.telemetry.versions import versions

    found = versions()
    others = ", ".join(f"{name} {each}" for name, each in found.items() if name != "anabranch")
    echo(f"anabranch {found['anabranch']} ({others})")
    raise typer.Exit


_COMMANDS = (
    demo, init, check, run, replay, skew, simulate, publish, consume, export, topics, schema, state,
)  # fmt: skip
for command in _COMMANDS:
    app.command(cls=renamed_options(RENAMED.get(command, {})))(command)
app.add_typer(dead_letters)
app.add_typer(models)
app.add_typer(rollout)


def main() -> None:
    """Run the command; it always ends by raising.

    Raises:
        SystemExit: with its exit code.
    """
    try:
        configure()
        restrict_process()
        app(prog_name="anabranch")
    except AnabranchError as error:
        print_error(error)
        sys.exit(EXIT_ERROR)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def main_process() -> None:
    """Entry point of the console command, in a process of its own."""
    own_process()
    try:
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if not must_leave(code):
            raise
    except BaseException:
        code = EXIT_ERROR
        if structured():
            log_uncaught(*sys.exc_info())
        elif must_leave(code):
            sys.excepthook(*sys.exc_info())
        else:
            raise
    else:
        return
    if must_leave(code):
        leave(code)
    sys.exit(code)
