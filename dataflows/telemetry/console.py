"""Consoles and lines of output on which text from data stays text.

Names, values and reasons that come from messages are printed literally: square brackets are no
markup, colons are no emoji, and a control character is printed as its escape, such as ``\\u001b``,
so that no data can colour, move or rewrite what a terminal shows. Everything that a command prints
goes through this module; log lines use `one_line`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterable
from typing import Any, Final

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import Task, TextColumn
from rich.segment import Segment
from rich.status import Status
from rich.text import Text

EXIT_PIPE: Final = 128 + signal.SIGPIPE
"""As a shell reports a program that a closed pipe has ended."""

_BREAKS: Final = "\n\r\v\f\x1c-\x1e\x85\u2028\u2029"
# C0 and C1 controls, DEL, marks that change the direction of text, halves of surrogate pairs.
_CONTROLS: Final = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff"
)
_UNPRINTABLE: Final = re.compile(f"[{_CONTROLS}]")
_NOT_ON_ONE_LINE: Final = re.compile(f"[{_BREAKS}{_CONTROLS}]")


def printable(text: str) -> str:
    r"""Escape control characters as JSON does, so that JSON text keeps its meaning.

    Line feeds and tabs are kept.

    >>> print(printable("a\x1b[31mb\u202ec"))
    a\u001b[31mb\u202ec
    """
    return _UNPRINTABLE.sub(_escape, text)


def one_line(text: str) -> str:
    r"""The same, with line feeds escaped too.

    >>> print(one_line("a\nb"))
    a\nb
    """
    return _NOT_ON_ONE_LINE.sub(_escape, text)


def echo(text: str) -> None:
    """Print a line on stdout, with control characters escaped."""
    typer.echo(printable(text))


class TextConsole(Console):
    """A console that prints strings literally, in tables and titles too; styles are `Text`."""

    def __init__(self, *, stderr: bool = False, soft_wrap: bool = False, **options: Any) -> None:
        super().__init__(
            stderr=stderr, soft_wrap=soft_wrap, markup=False, emoji=False, highlight=False,
            **options,
        )  # fmt: skip

    def render_str(self, text: str, **options: Any) -> Text:
        """Make a `Text` of a string: all strings that are printed come through here."""
        return super().render_str(printable(text), **{**options, "markup": False, "emoji": False})

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render; text that was styled by its caller is escaped here."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))

    def status(self, status: RenderableType, **options: Any) -> Status:
        """A status line with a spinner."""
        text = Text(printable(status)) if isinstance(status, str) else status
        return super().status(text, **options)

    def on_broken_pipe(self) -> None:
        """End as other programs do when the reader of their output has gone."""
        drop_output()
        raise SystemExit(EXIT_PIPE)


def drop_output() -> None:
    """Let nothing more be written, when the process ends, to an output that takes nothing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class LiteralColumn(TextColumn):
    """A column of a progress display whose text is printed literally."""

    def render(self, task: Task) -> Text:
        """The text of a task."""
        return Text(printable(self.text_format.format(task=task)))


def _escape(match: re.Match[str]) -> str:
    return json.dumps(match[0])[1:-1]
