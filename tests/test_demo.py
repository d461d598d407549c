"""`anabranch demo` in a short form: what it shows, and that it leaves nothing behind."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from dataflows.bus import open_bus
from tests.commands import Command, Done, run_command
from tests.test_commands import children_of, wait_until

SHORT = ("--seconds", "3", "--history", "5000", "--rate", "3000")


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """An empty directory to work in, and an environment with a directory for temporary files."""
    (tmp_path / "here").mkdir()
    (tmp_path / "tmp").mkdir()
    return tmp_path / "here", {"TMPDIR": str(tmp_path / "tmp")}


def test_the_demo_shows_what_it_promises(places: tuple[Path, dict[str, str]]) -> None:
    here, environment = places
    done = run_command(here, "demo", *SHORT, **environment)
    assert done.code == 0, done.err
    events = 5000 + round(3 * 3000 / 1.95)
    assert number(done, "events") > events  # with broken copies and duplicates
    dead = sum(
        int(n.replace(",", "")) for n in re.findall(r"dead letters: .*│ +([\d,]+) ", done.out)
    )
    assert dead > 0
    assert number(done, "predictions") == number(done, "events") - dead == events
    assert 0.6 < float(cell(done, "ROC AUC (scored before learning)")) < 1
    assert 0 < float(cell(done, "log loss (scored before learning)")) < 0.3
    assert number(done, "messages not yet read") == 0
    assert "ms" in cell(done, "message to prediction, p50 / p99 (live messages)")
    assert done.out.count("  payment p0") == 3
    assert "not JSON:" in done.out
    assert "Try next" in done.out
    assert not list(here.iterdir())
    assert not list(Path(environment["TMPDIR"]).iterdir())


def test_what_the_demo_says_to_try_next_works(places: tuple[Path, dict[str, str]]) -> None:
    here, environment = places
    done = run_command(here, "demo", *SHORT, "--keep", "kept", **environment)
    proposed = re.findall(r"^  .*(?:dataflows.cli|anabranch) (.*)$", done.out, re.MULTILINE)
    assert len(proposed) >= 7
    for line in proposed:
        command, *rest = line.split()
        if command == "simulate":
            rest += ["--events", "500"]
        if line == "run payments":
            rest += ["--until-end"]
        if command == "consume":
            rest += ["--no-follow"]
        ended = run_command(here, command, *rest, **environment)
        assert ended.code == 0, (line, ended.err)


def test_ctrl_c_ends_the_demo_and_its_simulator(places: tuple[Path, dict[str, str]]) -> None:
    here, environment = places
    with Command(here, "demo", "--seconds", "60", "--keep", "kept", **environment) as command:
        bus = open_bus(f"sqlite:{here}/kept/bus")
        wait_until(lambda: "payments.predictions" in bus.topics())
        wait_until(lambda: sum(bus.end_offsets("payments.predictions")) > 0)
        children = children_of(command.process.pid)
        assert children
        command.tell(signal.SIGINT)
        done = command.done()
    assert done.code == 130
    assert "predictions" in done.out
    assert not [child for child in children if Path(f"/proc/{child}").exists()]


def cell(done: Done, row: str) -> str:
    """The right column of a row of the final table."""
    found = re.search(rf"│ {re.escape(row)} +│ +(\S.*?) +│", done.out)
    assert found is not None, (row, done.out)
    return found.group(1)


def number(done: Done, row: str) -> int:
    return int(cell(done, row).replace(",", ""))
