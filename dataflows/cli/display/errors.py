"""Prints errors that the user can act on."""

from __future__ import annotations

from rich.text import Text

from anabranch.dataflows.telemetry.console import TextConsole, printable
from anabranch.dataflows.telemetry.logs import fail, structured
from anabranch.state.errors import AnabranchError


def print_error(error: AnabranchError) -> None:
    """Print the error's message on stderr, or log it where logs are structured."""
    if structured():
        fail(str(error))
        return
    sentence = Text.assemble(("error: ", "bold red"), printable(str(error)))
    TextConsole(stderr=True).print(sentence, soft_wrap=True)
