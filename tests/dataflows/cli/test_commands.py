"""The command line: help, environment variables, error messages and exit codes."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from anabranch.dataflows.bus import open_bus
from anabranch.dataflows.cli.app import RENAMED, app
from anabranch.producers.datasets import DATASETS
from tests.support.commands import Call, Command, Done, caller, run_command
from tests.support.waiting import GENEROUS_S, wait_until

pytestmark = pytest.mark.stress

ROOT = Path(__file__).parents[3]
GROUP: Any = typer.main.get_command(app)
COMMANDS: dict[str, Any] = GROUP.commands

FRAUD = """
from river import linear_model
from anabranch import Event, Label, Pipeline, field, window

class Payment(Event):
    id: str
    ts: int
    card: str
    amount: float

class Verdict(Label):
    id: str
    ts: int
    fraud: bool

pipeline = Pipeline(name="fraud", event=Payment, label=Verdict.target("fraud"), features=[
    field("amount"), window("card", "amount", over="1m", stats="mean")],
    model=linear_model.LogisticRegression())
"""
BOOM = """
from river import base
from anabranch import Event, Pipeline, field, inline

class Boom(base.Classifier):
    def learn_one(self, x, y):
        if x["size"] == 77.0:  # not when a copy is tried as the pipeline is declared
            raise ValueError("boom")
    def predict_proba_one(self, x):
        return {True: 0.5, False: 0.5}

class Thing(Event):
    id: str
    ts: int
    size: float
    good: bool

pipeline = Pipeline(
    name="boom", event=Thing, label=inline("good"), features=[field("size")], model=Boom(),
    max_model_failures=1)
"""


@pytest.fixture
def call(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    return caller(tmp_path, capfd)


def test_help_is_fast(tmp_path: Path) -> None:
    run_command(tmp_path, "--help")  # the first may have to compile Python
    cpu_s = []  # the time of the processor, which does not depend on what else runs
    for _ in range(3):
        before = children_cpu_s()
        assert run_command(tmp_path, "--help").code == 0
        cpu_s.append(children_cpu_s() - before)
    assert min(cpu_s) < 1.0


def children_cpu_s() -> float:
    """Processor time of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_help_loads_neither_the_engine_nor_the_models() -> None:
    code = (
        "import sys, anabranch.dataflows.cli; "
        "print([m for m in ('river', 'numba', 'polars', 'bytewax') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_sentence_and_an_example(name: str, call: Call) -> None:
    done = call(name, "--help")
    assert done.code == 0
    assert len(COMMANDS[name].help.split("\n")[0]) > 20
    assert f"anabranch {name}" in COMMANDS[name].help
    assert f"anabranch {name}" in done.out.split("Options")[0].replace("Usage: anabranch", "")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_names_every_environment_variable(name: str, call: Call) -> None:
    shown = re.sub(r"[│\s]", "", call(name, "--help").out)
    for variable in environment_variables(name).values():
        assert variable + "]" in shown


def environment_variables(name: str) -> dict[str, str]:
    """Option → its environment variable, named after the option."""
    found = {}
    for parameter in COMMANDS[name].params:
        if parameter.opts[0].startswith("--") and parameter.name != "help":
            flag = parameter.opts[0].removeprefix("--").upper().replace("-", "_")
            found[parameter.opts[0]] = (
                f"ANABRANCH_{flag}"
                if flag.startswith(("BUS", "LOG", "SCHEMA_REGISTRY"))
                else f"ANABRANCH_{name.upper()}_{flag}"
            )
    return found


def test_options_can_be_set_by_environment_variables(call: Call) -> None:
    done = call(
        "simulate",
        "payments",
        ANABRANCH_BUS="sqlite:elsewhere",
        ANABRANCH_SIMULATE_EVENTS="20",
        ANABRANCH_SIMULATE_PARTITIONS="3",
    )
    assert "published 20 events" in done.out
    listed = call("topics", ANABRANCH_BUS="sqlite:elsewhere").out
    assert re.search(r"payments.events\W+3 \W+20 ", listed)
    read = call("consume", "payments.events", "--bus", "sqlite:elsewhere",
                ANABRANCH_CONSUME_FOLLOW="false", ANABRANCH_CONSUME_LIMIT="7")  # fmt: skip
    assert len(read.out.splitlines()) == 7


WITHOUT_NUMBERS = {"dead-letters", "models", "rollout", "schema", "skew", "state"}


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in WITHOUT_NUMBERS])
def test_a_wrong_value_in_a_variable_is_wrong_usage(name: str, call: Call) -> None:
    options = NUMBERS & environment_variables(name).keys()
    assert options
    needed = [p for p in COMMANDS[name].params if p.required]
    required = [w for p in needed for w in (*p.opts[: p.param_type_name == "option"], "x")]
    for option in options:
        done = call(name, *required, **{environment_variables(name)[option]: "many"})
        assert done.code == 2
        assert f"'{option}'" in done.err


NUMBERS = {
    "--batch-size", "--delay", "--duplicates", "--events", "--history", "--limit", "--malformed",
    "--metrics-port", "--partitions", "--processes", "--rate", "--rows", "--seconds", "--seed",
    "--shards", "--speedup",
}  # fmt: skip

MISTAKES: list[tuple[list[str], str]] = [
    (["run", "nosuch"], "there is no pipeline 'nosuch': name a shipped pipeline (payments"),
    (["run", "fraud"], "there is no pipeline 'fraud': did you mean the file fraud.py?"),
    (["run", "missing.py"], "pipeline file 'missing.py' does not exist"),
    (["run", "syntax.py"], "syntax.py, line 3: the pipeline can't be loaded: '(' was never closed"),
    (["run", "typo.py"], "typo.py, line 16: unknown field 'amuont' in window(card): Payment has"),
    (["run", "imports.py"], "imports.py, line 1: the pipeline can't be loaded: ModuleNotFoundErr"),
    (["run", "empty.py"], "'empty.py' has no pipeline named 'pipeline': assign a Pipeline to it"),
    (["run", "fraud.py:flow"], "'fraud.py:flow' has no pipeline named 'flow': it has pipeline"),
    (["run", "no.such:flow"], "no.such: the pipeline can't be loaded: ModuleNotFoundError"),
    (["run", "dataset:Nope"], "River has no data set 'Nope': choose one of Bananas"),
    (["run", "fraud.py"], "create it with `anabranch topics fraud.py --create`"),
    (["run", "payments", "--checkpoint-interval", "soon"], "'soon' is not a duration"),
    (["run", "payments", "--process-id", "0"], "--process-id needs --addresses"),
    (["run", "payments", "--addresses", "a:1,b:2"], "say which one this is with --process-id"),
    (["consume", "nosuch"], "topic 'nosuch' does not exist on sqlite:data/bus"),
    (["publish", "fraud.py", "missing.jsonl"], "there is no file missing.jsonl"),
    (["publish", "fraud.py", "rows.txt"], "rows.txt is of an unknown kind"),
    (["publish", "fraud.py", "rows.jsonl"], "no field 'card' in the first 1 lines of rows.jsonl"),
    (["publish", "boom.py", "rows.jsonl", "--labels", "rows.jsonl"], "leave out --labels"),
    (["publish", "--dataset", "Nope"], "River has no data set 'Nope'"),
    (["publish", "--dataset", "Phishing", "--rate", "0"], "--rate 0 is not possible"),
    (["publish", "--dataset", "Phishing", "--rate", "1", "--speedup", "1"], "choose one of them"),
    (["publish", "--dataset", "Phishing", "--bus", "redis://x"], "'redis://x' is not a bus"),
    (["publish", "--dataset", "Phishing", "--bus-set", "x"], "must be written KEY=VALUE"),
    (["publish", "--dataset", "Phishing", "--bus", "sqlite:fraud.py/x"], "can't create"),
    (["simulate", "nosuch"], "there is no simulator 'nosuch': choose one of payments"),
    (["simulate", "payments", "--malformed", "2"], "a share of 2 of malformed is out of range"),
    (["demo", "--keep", "."], "is not empty"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "sentence"), MISTAKES, ids=lambda v: " ".join(v)[:40])
def test_an_error_is_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, call: Call
) -> None:
    (tmp_path / "fraud.py").write_text(FRAUD)
    (tmp_path / "boom.py").write_text(BOOM)
    (tmp_path / "typo.py").write_text(FRAUD.replace('"amount", over', '"amuont", over'))
    (tmp_path / "syntax.py").write_text("import dataflows\n\nx = (1 +\n")
    (tmp_path / "imports.py").write_text("import nosuchmodule\n")
    (tmp_path / "empty.py").write_text("x = 1\n")
    (tmp_path / "rows.txt").write_text("hello\n")
    (tmp_path / "rows.jsonl").write_text('{"id": "1", "ts": 1}\n')
    done = call(*arguments)
    assert_sentence(done, sentence)
    assert not (tmp_path / "data").exists()  # nothing was created


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["run"],
        ["run", "payments", "--start-offset", "middle"],
        ["run", "payments", "--processes", "0"],
        ["publish"],
        ["publish", "payments"],
        ["publish", "payments", "x.jsonl", "--dataset", "Phishing"],
        ["consume", "x", "--start-offset", "middle"],
        ["topics", "--create"],
        ["topics", "--nosuch"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], call: Call) -> None:
    done = call(*arguments)
    assert done.code == 2
    assert "Usage: anabranch" in done.err
    assert "Traceback" not in done.err


FORMER = [
    (command.__name__, *names) for command, renames in RENAMED.items() for names in renames.items()
]


@pytest.mark.parametrize(("name", "old", "new"), FORMER)
def test_a_former_option_name_is_refused_with_the_current_one(
    name: str, old: str, new: str, call: Call
) -> None:
    sentences = [f"{old} is now called {new}"]
    attempts = [call(name, "payments", old, "1"), call(name, "payments", f"{old}=1")]
    variable, current = (
        f"ANABRANCH_{name.upper()}_{option[2:].replace('-', '_').upper()}" for option in (old, new)
    )
    sentences.append(f"{variable} is now called {current}")
    attempts.append(call(name, "payments", **{variable: "1"}))
    for done, sentence in zip(attempts, [sentences[0], *sentences], strict=True):
        assert done.code == 2
        assert sentence in " ".join(done.err.replace("│", " ").split())


def test_a_former_name_as_an_argument_or_an_empty_variable_is_no_mistake(call: Call) -> None:
    done = call("run", "--", "--lost")
    assert "there is no pipeline '--lost'" in done.err
    assert call("topics", "payments", ANABRANCH_RUN_LOST="stop").code == 0
    assert "there is no pipeline" in call("run", "nosuch", ANABRANCH_RUN_LOST="").err


def test_a_bus_that_cannot_be_reached(call: Call) -> None:
    done = call("run", "payments", "--bus", "kafka://127.0.0.1:1",
                "--bus-set", "reach.timeout.ms=1500")  # fmt: skip
    assert_sentence(done, "can't reach Kafka at 127.0.0.1:1 within 1.5 s")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_port_that_is_taken(processes: int, call: Call) -> None:
    call("topics", "payments", "--create", "--partitions", "2")
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = call("run", "payments", "--metrics-port", port, "--processes", processes)
    assert_sentence(done, f"metrics port {port} can't be opened")


def test_conflicting_partition_counts(call: Call) -> None:
    assert call("publish", "--dataset", "Phishing", "--partitions", "2").code == 0
    done = call("publish", "--dataset", "Phishing", "--partitions", "3")
    assert_sentence(done, "topic phishing.events has 2 partitions, not 3")
    assert call("publish", "--dataset", "Phishing").code == 0  # as many as there are


def test_events_and_labels_get_equal_partition_counts(tmp_path: Path, call: Call) -> None:
    bus = open_bus(f"sqlite:{tmp_path}/data/bus")
    bus.create_topics({"clicks.events": 3})
    assert call("simulate", "clicks", "--events", "5").code == 0
    assert bus.topics()["clicks.labels"] == 3
    bus.create_topics({"trips.events": 2, "trips.labels": 1})
    assert call("simulate", "trips", "--events", "5").code == 0  # they may differ


def test_a_model_that_fails_is_one_sentence_too(tmp_path: Path) -> None:
    (tmp_path / "boom.py").write_text(BOOM)
    rows = [{"id": str(n), "ts": n, "size": 77.0, "good": True} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run_command(tmp_path, "publish", "boom.py", "rows.jsonl").code == 0
    done = run_command(tmp_path, "run", "boom.py")
    assert done.code == 1
    assert "panicked" not in done.err
    assert "Traceback" not in done.err
    sentence = "error: the model of pipeline 'boom' failed on 2 labels in a row, first on id '0' "
    assert done.err.splitlines()[-1].startswith(sentence)
    assert "boom.py, line 8, in learn_one" in done.err.splitlines()[-1]


def test_consume_into_a_closed_pipe_ends_without_an_error(tmp_path: Path) -> None:
    run_command(tmp_path, "simulate", "payments", "--events", "20000")
    with Command(tmp_path, "consume", "payments.events", "--no-follow") as command:
        assert command.process.stdout is not None
        assert json.loads(command.process.stdout.readline())["id"]
        command.process.stdout.close()
        assert command.process.wait(GENEROUS_S) == 128 + signal.SIGPIPE
        assert command.process.stderr is not None
        assert command.process.stderr.read() == ""


def test_consume_pretty(call: Call) -> None:
    call("publish", "--dataset", "Phishing")
    done = call("consume", "phishing.events", "-n", "1", "--pretty")
    assert json.loads(done.out)["id"] == "0"
    assert len(done.out.splitlines()) > 5


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_is_named_in_the_help(name: str) -> None:
    option = next(p for p in COMMANDS["publish"].params if p.name == "dataset")
    assert name in option.help


def test_published_files_give_their_labels_the_partition_of_the_event(
    tmp_path: Path, call: Call
) -> None:
    (tmp_path / "fraud.py").write_text(FRAUD)
    events = [f"{n},{1000 * n},{n % 7},{n}.5" for n in range(500)]
    (tmp_path / "e.csv").write_text("\n".join(["id,ts,card,amount", *events]))
    labels = [{"id": str(n), "ts": 1000 * n + 90_000, "fraud": n % 5 == 0} for n in range(500)]
    (tmp_path / "l.jsonl").write_text("\n".join(map(json.dumps, labels)))
    done = call("publish", "fraud.py", "e.csv", "--labels", "l.jsonl", "--partitions", "3")
    assert "published 500 events to fraud.events and 500 labels to fraud.labels in" in done.out
    ids = {
        (topic, part): {
            json.loads(line)["id"]
            for line in call("consume", topic, "-F", "--partition", part).out.splitlines()
        }
        for topic in ("fraud.events", "fraud.labels")
        for part in range(3)
    }
    for part in range(3):
        assert ids["fraud.events", part] == ids["fraud.labels", part]
    assert sum(bool(ids["fraud.events", part]) for part in range(3)) > 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_publishing_that_is_interrupted_says_what_is_stored(
    number: signal.Signals, tmp_path: Path
) -> None:
    bus = open_bus(f"sqlite:{tmp_path}/data/bus")
    with Command(tmp_path, "publish", "--dataset", "Phishing", "--rate", "100") as command:
        wait_until(lambda: "phishing.events" in bus.topics())
        wait_until(lambda: sum(bus.end_offsets("phishing.events")) > 20)
        command.send(number)
        done = command.done()
    assert done.code == 130
    stored = sum(bus.end_offsets("phishing.events"))
    assert f"interrupted: published {stored} events to phishing.events" in done.out


@pytest.mark.parametrize(
    ("number", "processes"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGTERM, 2)]
)
def test_a_run_that_is_stopped_finishes_what_it_has_read(
    number: signal.Signals, processes: int, tmp_path: Path
) -> None:
    run_command(tmp_path, "simulate", "trips", "--events", "3000", "--partitions", "2")
    bus = open_bus(f"sqlite:{tmp_path}/data/bus")
    temporary = {"TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    with Command(tmp_path, "run", "trips", "--processes", processes, **temporary) as command:
        wait_until(lambda: "trips.predictions" in bus.topics())
        wait_until(lambda: sum(bus.end_offsets("trips.predictions")) > 0)
        children = children_of(command.process.pid)
        assert len(children) == (0 if processes == 1 else 2)
        command.send(number)
        done = command.done()
    assert done.code == 0
    predictions = sum(bus.end_offsets("trips.predictions"))
    assert re.search(rf"predictions +│ +{predictions:,} ", done.err)
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
    assert not list((tmp_path / "tmp").glob("anabranch-*"))


def test_when_a_worker_is_killed_the_others_end_and_it_is_named(tmp_path: Path) -> None:
    run_command(tmp_path, "simulate", "trips", "--events", "500", "--partitions", "2")
    bus = open_bus(f"sqlite:{tmp_path}/data/bus")
    with Command(tmp_path, "run", "trips", "--processes", "2", "--no-state") as command:
        wait_until(lambda: "trips.predictions" in bus.topics())
        wait_until(lambda: sum(bus.end_offsets("trips.predictions")) == 500)
        children = children_of(command.process.pid)
        victim = next(c for c in children if "ANABRANCH_RUN_PROCESS_ID=1" in environment_of(c))
        os.kill(victim, signal.SIGKILL)
        done = command.done()
    assert done.code == 1
    sentence = f"worker 1 of 2 (process {victim}) was killed by SIGKILL, so all were stopped"
    assert done.err.splitlines()[-1] == f"error: {sentence}"
    assert "Traceback" not in done.err
    assert not [child for child in children if Path(f"/proc/{child}").exists()]


def test_every_command_in_the_readme_exists() -> None:
    found = 0
    text = (ROOT / "README.md").read_text()
    for line in re.findall(r"anabranch ([a-z]+(?: [^`#\n]*)?)", text):
        words = shlex.split(line.replace("…", " "), comments=True)
        if words[0] not in COMMANDS:
            assert not any(word.startswith("--") for word in words), f"no command {words[0]!r}"
            continue
        found += 1
        command = COMMANDS[words[0]]
        # `anabranch models list` and `anabranch rollout fraud.py status` are commands of groups.
        inner = getattr(command, "commands", {})
        command = next((inner[word] for word in words[1:3] if word in inner), command)
        known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
        used = {word for word in words[1:] if word.startswith("-") and not word[1].isdigit()}
        assert used <= known, f"anabranch {line}"
    assert found >= 5


def test_every_option_in_the_readme_exists() -> None:
    text = re.sub(
        r"(pip|pytest|python -m benchmarks|make)[^`\n]*", "", (ROOT / "README.md").read_text()
    )
    grouped = [c for group in COMMANDS.values() for c in getattr(group, "commands", {}).values()]
    commands = [GROUP, *COMMANDS.values(), *grouped]
    known = {o for c in commands for p in c.params for o in (*p.opts, *p.secondary_opts)}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) <= known


def assert_sentence(done: Done, sentence: str) -> None:
    """Assert exit code 1, and that stderr is one line with ``sentence``."""
    assert done.code == 1, done
    lines = done.err.strip().splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith("error: ")
    assert sentence in lines[0]


def children_of(process: int) -> list[int]:
    listed = Path(f"/proc/{process}/task/{process}/children")
    if not listed.exists():
        pytest.skip("needs /proc")
    return [int(child) for child in listed.read_text().split()]


def environment_of(process: int) -> list[str]:
    return Path(f"/proc/{process}/environ").read_text().split("\0")
