"""`anabranch demo`: what it prints, and that it leaves nothing behind."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from anabranch.dataflows.bus import Bus, open_bus
from anabranch.dataflows.cli.demo.demo_run import Crash, result
from anabranch.dataflows.cli.demo.verification import verify
from anabranch.dataflows.pipelines.loader import load_pipeline
from anabranch.dataflows.telemetry.status import Status
from anabranch.state.errors import AnabranchError
from tests.support.commands import Command, Done, caller, run_command
from tests.support.waiting import wait_until

pytestmark = pytest.mark.stress

SHORT = ("--history", "5000", "--rate", "3000", "--seconds")
PAYMENTS = load_pipeline("payments")
FAILING = """
import os
import sys

if "simulate" in sys.orig_argv:
    os._exit(7)
"""


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """An empty directory to work in, and an environment with a directory for temporary files."""
    (tmp_path / "here").mkdir()
    (tmp_path / "tmp").mkdir()
    return tmp_path / "here", {"TMPDIR": str(tmp_path / "tmp")}


def test_the_demo_survives_a_crash_without_losing_an_event(
    places: tuple[Path, dict[str, str]],
) -> None:
    here, environment = places
    done = run_command(here, "demo", *SHORT, 2, **environment)
    assert done.code == 0, done.err
    worker = re.search(r"^kill -9 of the worker \(process (\d+)\): [\d,]+ paym", done.out, re.M)
    assert worker is not None, done.out
    assert re.search(
        rf"worker 0 of 1 \(process {worker[1]}\) was killed by SIGKILL; restarting it from "
        r"generation \d+ in 1 s",
        done.out,
    )
    back_s = re.search(r"; 0 duplicated, 0 lost; recovered in ([\d.]+) s\.", done.out)
    assert back_s is not None, done.out
    assert float(back_s[1]) > 1  # the pause before a restart
    check_counts(done, 2, " despite the kill")
    assert "ms" in cell(done, "read to published, p50 / p99 (whole run)")
    assert done.out.count("  payment p0") == 3
    assert "not JSON:" in done.out
    assert "Try next" in done.out
    assert not list(here.iterdir())
    assert not list(Path(environment["TMPDIR"]).iterdir())


def test_the_commands_that_the_demo_suggests_work(
    places: tuple[Path, dict[str, str]], capfd: pytest.CaptureFixture[str]
) -> None:
    here, environment = places
    call = caller(here, capfd)
    done = run_command(here, "demo", *SHORT, 1, "--no-crash", "--keep", "kept", **environment)
    assert done.code == 0, done.err
    assert "kill" not in done.out
    check_counts(done, 1, "")
    proposed = re.findall(r"^  .*(?:dataflows.cli|anabranch) (.*)$", done.out, re.MULTILINE)
    assert len(proposed) == 8
    assert "state kept/state" in proposed
    for line in proposed:
        command, *rest = line.split()
        if command == "simulate":
            rest += ["--events", "500"]
        if line == "run payments":
            rest += ["--until-end"]
        if command == "consume":
            rest += ["--no-follow"]
        if command == "run":
            ended = run_command(here, command, *rest, **environment)
        else:
            ended = call(command, *rest, **environment)
        assert ended.code == 0, (line, ended.err)


def test_ctrl_c_ends_all_processes(places: tuple[Path, dict[str, str]]) -> None:
    here, environment = places
    with Command(here, "demo", "--seconds", "60", "--keep", "kept", **environment) as command:
        bus = open_bus(f"sqlite:{here}/kept/bus")
        wait_until(lambda: "payments.predictions" in bus.topics())
        wait_until(lambda: sum(bus.end_offsets("payments.predictions")) > 0)
        children = children_of(command)
        assert set(children.values()) == {"run", "simulate"}
        command.send(signal.SIGINT)
        done = command.done()
    assert done.code == 130
    assert "predictions" in done.out
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
    assert not list(Path(environment["TMPDIR"]).iterdir())


def test_ctrl_c_while_no_worker_runs(places: tuple[Path, dict[str, str]]) -> None:
    here, environment = places
    with Command(here, "demo", *SHORT, 10, PYTHONUNBUFFERED="1", **environment) as command:
        command.wait_for_output("kill -9 of the worker")
        children = children_of(command)
        command.send(signal.SIGINT)  # the next worker is started after a second
        done = command.done()
    assert done.code == 130
    assert "0 duplicated" not in done.out  # not everything was read
    assert "simulate" in children.values()
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
    assert not list(Path(environment["TMPDIR"]).iterdir())


def test_a_simulator_that_fails_is_one_sentence(places: tuple[Path, dict[str, str]]) -> None:
    here, environment = places
    (here / "sitecustomize.py").write_text(FAILING)
    done = run_command(here, "demo", *SHORT, 2, PYTHONPATH=str(here), **environment)
    assert done.code == 1
    assert done.err == "error: the simulator failed: exit code 7\n"
    assert not list(Path(environment["TMPDIR"]).iterdir())


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Bus]:
    """Three events, two of them predicted and one rejected; and a rejected label."""
    bus = open_bus(f"sqlite:{tmp_path}/bus")
    topics = PAYMENTS.topics
    bus.create_topics(dict.fromkeys([*PAYMENTS.inputs, *topics.outputs], 1))
    append(bus, topics.events, b"{}", b"{}", b"{")
    append(bus, topics.predictions, output_of(topics.events, 0), output_of(topics.events, 1))
    append(bus, topics.dead_letters, output_of(topics.events, 2), output_of("payments.labels", 0))
    yield bus
    bus.close()


def test_verification_succeeds_if_every_event_has_one_result(bus: Bus) -> None:
    found = verify(bus, PAYMENTS)
    assert (found.events, found.predictions, found.dead_letters) == (3, 2, 1)
    assert "(2 + 1); 0 duplicated, 0 lost" in result(found, None, Status())
    assert "despite the kill" in result(found, Crash(1), Status())


@pytest.mark.parametrize(
    ("events", "offset", "wrong"),
    [
        (0, 1, "of 3 events 0 have no prediction or dead letter, 1 have more than one"),
        (0, 2, "of 3 events 0 have no prediction or dead letter, 1 have more than one"),
        (2, 4, "of 5 events 1 have no prediction or dead letter, 0 have more than one"),
        (0, 3, "1 belong to no event"),
    ],
)
def test_verification_fails_for_one_wrong_result(
    bus: Bus, events: int, offset: int, wrong: str
) -> None:
    append(bus, PAYMENTS.topics.events, *[b"{}"] * events)
    append(bus, PAYMENTS.topics.predictions, output_of(PAYMENTS.topics.events, offset))
    with pytest.raises(AnabranchError, match=wrong):
        result(verify(bus, PAYMENTS), Crash(1), Status())


def append(bus: Bus, topic: str, *values: bytes) -> None:
    publisher = bus.publisher()
    publisher.append(topic, values, partitions=0)
    publisher.close()


def output_of(topic: str, offset: int) -> bytes:
    return orjson.dumps({"topic": topic, "partition": 0, "offset": offset, "reason": "not JSON"})


def children_of(command: Command) -> dict[int, str]:
    """The child processes of a command, and the subcommand of each."""
    found = {}
    for listed in Path(f"/proc/{command.process.pid}/task").glob("*/children"):
        for child in listed.read_text().split():
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            if words[1:3] == [b"-m", b"anabranch"]:
                found[int(child)] = words[3].decode()
    if not Path("/proc").is_dir():
        pytest.skip("needs /proc")
    return found


def check_counts(done: Done, seconds: int, killed: str) -> None:
    """Assert that the table and the count on the topics agree, and nothing is missing."""
    events = 5000 + round(seconds * 3000 / 1.95)
    read, predictions = number(done, "events"), number(done, "predictions")
    counts = re.findall(r"dead letters: .*│ +([\d,]+) ", done.out)
    dead = sum(int(count.replace(",", "")) for count in counts)
    assert dead > 0
    assert read > predictions == events == read - dead  # with broken copies and duplicates
    assert number(done, "lag (messages not read yet)") == 0
    learned, labels = cell(done, "labels learned").split(" of ")
    assert learned == labels
    waiting = number(done, "predictions waiting for their label")
    assert int(learned.replace(",", "")) + waiting == events
    assert 0.6 < float(cell(done, "ROC AUC (prequential)")) < 1
    assert 0 < float(cell(done, "log loss (prequential)")) < 0.3
    assert (
        f"{read:,} events: every event has exactly one prediction or dead letter{killed}\n"
        f"({predictions:,} + {dead:,}); 0 duplicated, 0 lost"
    ) in done.out


def cell(done: Done, row: str) -> str:
    """The value of a row of the final table."""
    found = re.search(rf"│ {re.escape(row)} +│ +(\S.*?) +│", done.out)
    assert found is not None, (row, done.out)
    return found.group(1)


def number(done: Done, row: str) -> int:
    return int(cell(done, row).replace(",", ""))
