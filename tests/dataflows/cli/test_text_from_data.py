"""Text from data is printed as text: no markup, no escape sequence, no change of direction."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.progress import Progress
from rich.table import Table

from anabranch.dataflows.bus import open_bus
from anabranch.dataflows.cli.display.errors import print_error
from anabranch.dataflows.telemetry.console import LiteralColumn, TextConsole, echo
from anabranch.dataflows.telemetry.status import Status, status_table
from anabranch.state.errors import InputError
from tests.support.commands import Call, caller

ROOT = Path(__file__).parents[3]
MARKUP = ["[/x]", "[red]", "[link=http://a]b[/link]", ":smile:", "[/]", "\\[a]"]
CONTROLS = ["\x1b[31mred", "\x1b]0;title\x07", "a\rb", "a\x9b31mb", "a\u202eb\u2066c", "a\x7fb"]
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture
def call(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    return caller(tmp_path, capfd)


def printed(table: Table) -> str:
    file = io.StringIO()
    TextConsole(file=file, width=200).print(table)
    return file.getvalue()


def escaped(text: str) -> str:
    return UNSAFE.sub(lambda match: json.dumps(match[0])[1:-1], text)


@pytest.mark.parametrize("text", MARKUP + CONTROLS)
def test_the_table_of_a_run_shows_names_as_they_are(text: str) -> None:
    status = Status(
        drift={text: 1}, dead_letters={text: 2}, shares={text: 0.5, "b": 0.5}, keys={text: 3}
    )
    shown = printed(status_table(f"p {text}", status, 1.0, {}, "now"))
    assert not UNSAFE.search(shown)
    assert shown.count(escaped(text)) == 5


@pytest.mark.parametrize("text", MARKUP + CONTROLS)
def test_tables_sentences_and_progress_are_literal(
    text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    table = Table(title=text, caption=text)
    table.add_column(text)
    table.add_row(text)
    assert printed(table).count(escaped(text)) == 4
    print_error(InputError(f"about {text}!"))
    echo(f"about {text}!")
    out, err = capfd.readouterr()
    assert out == f"about {escaped(text)}!\n"
    assert err == f"error: about {escaped(text)}!\n"
    file = io.StringIO()
    console = TextConsole(file=file, width=200)
    with Progress(LiteralColumn("{task.description}"), console=console) as progress:
        progress.add_task(text)
    assert escaped(text) in file.getvalue()


@pytest.mark.parametrize("form", ["plain", "logfmt", "json"])
def test_log_lines_hold_no_control_characters(form: str) -> None:
    program = (
        "import logging; from anabranch.dataflows.telemetry import logs; logs.configure()\n"
        f"for text in {CONTROLS!r}:\n"
        "    logging.getLogger('x').info(text, extra={'field': text})\n"
        "    try: raise ValueError(text)\n"
        "    except ValueError: logging.getLogger('x').exception(text)\n"
    )
    err = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "ANABRANCH_LOG_FORMAT": form},
        capture_output=True,
        check=True,
    ).stderr.decode()
    assert not UNSAFE.search(err)
    if form == "json":
        assert [json.loads(line)["msg"] for line in err.splitlines()][::2] == CONTROLS


def test_consume_pretty_escapes_and_keeps_the_meaning(tmp_path: Path, call: Call) -> None:
    bus = open_bus(f"sqlite:{tmp_path / 'data' / 'bus'}")
    bus.create_topics({"names": 1})
    publisher = bus.publisher()
    values = [*MARKUP, *CONTROLS]
    publisher.append("names", [json.dumps(value, ensure_ascii=False).encode() for value in values])
    publisher.close()
    done = call("consume", "names", "--no-follow", "--pretty")
    assert not UNSAFE.search(done.out)
    assert [json.loads(line) for line in done.out.splitlines()] == values


def test_consume_sends_no_escape_sequence_to_a_terminal_and_all_bytes_to_a_pipe(
    tmp_path: Path, call: Call
) -> None:
    bus = open_bus(f"sqlite:{tmp_path / 'data' / 'bus'}")
    bus.create_topics({"raw": 1})
    publisher = bus.publisher()
    publisher.append("raw", [b"a\x1b[2Jb\xff"])
    publisher.close()
    command = [sys.executable, "-m", "anabranch", "consume", "raw", "--no-follow"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout == (
        b"a\x1b[2Jb\xff\n"
    )
    terminal, end = pty.openpty()
    process = subprocess.Popen(command, cwd=tmp_path, stdout=end)
    os.close(end)
    read = bytearray()

    def drain() -> None:
        try:
            while piece := os.read(terminal, 1000):
                read.extend(piece)
        except OSError:  # how a terminal without a writer ends
            pass

    thread = threading.Thread(target=drain)
    thread.start()
    assert process.wait(60) == 0
    thread.join(60)
    os.close(terminal)
    assert read.strip() == rb"a\u001b[2Jb\xff"


def test_one_module_makes_consoles() -> None:
    """No other prints by Rich's own console, which would take text for markup."""
    own = ROOT / "dataflows" / "telemetry" / "console.py"
    for folder in ("dataflows", "models", "producers", "state"):
        for path in (ROOT / folder).rglob("*.py"):
            if path != own:
                source = path.read_text()
                assert not re.search(r"(?<![\w.])Console\(\)|(?<![\w.])Console\(std", source), path
                assert "typer.echo" not in source, path
                assert not re.search(r"(?<!\w)TextColumn\(\"[^\"]*description", source), path
