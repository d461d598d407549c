"""How the command line says what its user can mend."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from anabranch.dataflows.telemetry.logs import fail, structured
from anabranch.state.errors import AnabranchError


def print_error(error: AnabranchError) -> None:
    """The error's sentence on stderr."""
    if structured():
        fail(str(error))
        return
    sentence = Text.assemble(("error: ", "bold red"), str(error))
    Console(stderr=True, highlight=False).print(sentence, soft_wrap=True)
