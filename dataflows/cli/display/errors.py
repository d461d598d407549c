"""Prints errors that the user can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.text import Text

from anabranch.dataflows.telemetry.console import TextConsole, printable
from anabranch.dataflows.telemetry.logs import fail, structured
from anabranch.state.errors import AnabranchError

EXIT_UNREADABLE = 2
"""Of commands for which 1 is a finding: an error has the code of wrong usage."""


@contextmanager
def errors_as_exit_code() -> Iterator[None]:
    """Print an error's sentence and exit with `EXIT_UNREADABLE`.

    Raises:
        typer.Exit: after an error.
    """
    try:
        yield
    except AnabranchError as error:
        print_error(error)
        raise typer.Exit(EXIT_UNREADABLE) from None


def print_error(error: AnabranchError) -> None:
    """Print the error's message on stderr, or log it where logs are structured."""
    if structured():
        fail(str(error))
        return
    sentence = Text.assemble(("error: ", "bold red"), printable(str(error)))
    TextConsole(stderr=True).print(sentence, soft_wrap=True)
