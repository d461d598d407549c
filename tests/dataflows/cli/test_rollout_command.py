"""``anabranch rollout``: what each command says to the run, what it prints, and how it ends.

The run is a thread here, which answers as it is told to; what a real one does with a message is in
`tests/dataflows/steps/test_control.py`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer.main

from anabranch.dataflows.bus import Bus, TopicPartition, open_bus
from anabranch.dataflows.cli.rollout import rollout
from anabranch.dataflows.messages.control import Control
from anabranch.dataflows.messages.outputs import ComparedModels, RolloutMessage
from anabranch.dataflows.rollout.client import RolloutLog
from anabranch.models.rollout.command import KINDS
from tests.support.checkpoint_pipeline import PARTITIONS, PIPELINE, T0, refused, went_well
from tests.support.commands import Call, Command, caller
from tests.support.waiting import GENEROUS_S

pytestmark = pytest.mark.stress

CONTROL, ROLLOUTS = "trades.control", "trades.rollouts"
GROUP: Any = typer.main.get_command(rollout)
SAID = {
    "start": (("tree", "--set", "alpha=0.01", "--set", "comparison=unpaired"),
              {"challenger": "tree", "policy": {"alpha": 0.01, "comparison": "unpaired"}}),
    "pause": ((), {}),
    "resume": (("tree",), {"challenger": "tree"}),
    "promote": (("tree",), {"challenger": "tree"}),
    "rollback": ((), {}),
    "set-traffic": (("tree", "0.25"), {"challenger": "tree", "share": 0.25}),
    "add": (("new", "frozen@3"), {"challenger": "new", "model": "frozen@3"}),
    "remove": (("tree",), {"challenger": "tree"}),
}  # fmt: skip


def decided(action: str, challenger: str = "tree", **changes: Any) -> RolloutMessage:
    fields: dict[str, Any] = {
        "pipeline": "trades", "action": action, "rollout": "r1", "challenger": challenger,
        "champion": "LogisticRegression", "share": 0.25, "reason": "for a reason", "ts": T0,
        "policy": "Shadow", "evidence": None, "guardrails": {}, "topic": CONTROL, "partition": 0,
        "offset": 0,
    }  # fmt: skip
    return RolloutMessage(**(fields | changes))


EVIDENCE = ComparedModels(
    labels=1234, served=56, champion_loss=0.25, challenger_loss=0.2, difference=0.05, low=-0.01,
    high=None, e_value=7.5, e_worse=0.1, alpha=0.05,
)  # fmt: skip


@pytest.fixture
def call(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    return caller(tmp_path, capfd)


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Bus]:
    """The bus of a pipeline that has run, with rollouts."""
    text = PIPELINE.replace("Pipeline, field", "Pipeline, Shadow, field")
    text = text.replace("with_features=True,", "rollout=Shadow(),")
    (tmp_path / "flow.py").write_text(text)
    opened = open_bus(f"sqlite:{tmp_path / 'data' / 'bus'}")
    opened.create_topics(dict.fromkeys((CONTROL, ROLLOUTS), PARTITIONS))
    yield opened
    opened.close()


def tell(bus: Bus, *messages: RolloutMessage, partition: int = 0, at: int | None = None) -> None:
    publisher = bus.publisher()
    values = [msgspec.json.encode(message) for message in messages]
    times = None if at is None else [at] * len(values)
    publisher.append(ROLLOUTS, values, partitions=partition, times=times)
    publisher.close()


@contextmanager
def answering(bus: Bus, answers: Sequence[RolloutMessage]) -> Iterator[list[Control]]:
    """Answer the first control message like this, after a strange answer; yields what was said."""
    heard: list[Control] = []

    def listen() -> None:
        reader = bus.reader({TopicPartition(CONTROL, n): 0 for n in range(PARTITIONS)})
        until = time.monotonic() + GENEROUS_S
        while not heard and time.monotonic() < until:
            for piece in reader.poll(10, 0.05):
                heard.extend(msgspec.json.decode(v, type=Control) for v in piece.values)
        reader.close()
        for said in heard[:1]:
            tell(bus, decided("rejected", reason="not yours", request_id="somebody else's"))
            mine = [msgspec.structs.replace(answer, request_id=said.id) for answer in answers]
            tell(bus, *mine, partition=2)

    thread = threading.Thread(target=listen)
    thread.start()
    yield heard
    thread.join()


@pytest.mark.parametrize("name", GROUP.commands)
def test_every_command_teaches(name: str, call: Call) -> None:
    done = call("rollout", "flow.py", name, "--help")
    went_well(done)
    assert (
        f"anabranch rollout fraud.py {name}" in done.out.split("Options")[0].split("Examples:")[1]
    )


def test_there_is_a_command_for_each_kind_of_message() -> None:
    assert {name.replace("-", "_") for name in GROUP.commands} == {*KINDS, "status"}


@pytest.mark.parametrize("name", SAID)
def test_a_command_is_published_and_its_answer_printed(name: str, bus: Bus, call: Call) -> None:
    arguments, said = SAID[name]
    tell(bus, decided("started", reason="long ago"))
    with answering(bus, [decided("paused", reason="as was said")]) as heard:
        done = call("rollout", "flow.py", name, *arguments, "--by", "ann")
    went_well(done)
    assert done.out == (
        "tree: paused, serves 25.0%; it keeps its share, and nothing is decided until it is "
        "resumed: as was said\n"
    )
    (control,) = heard
    assert len(control.id) == 32
    expected = Control(kind=name.replace("-", "_"), id=control.id, requested_by="ann", **said)  # type: ignore[arg-type]
    assert control == expected
    assert control.command().problem() is None


def test_all_answers_to_a_command_are_printed(bus: Bus, call: Call) -> None:
    both = [decided("promoted"), decided("ended", challenger="bush")]
    with answering(bus, both):
        done = call("rollout", "flow.py", "promote", "tree", "--json")
    went_well(done)
    told = json.loads(done.out)
    assert [(each["action"], each["challenger"]) for each in told] == [
        ("promoted", "tree"),
        ("ended", "bush"),
    ]


def test_a_refusal_says_why_and_ends_with_1(bus: Bus, call: Call) -> None:
    with answering(bus, [decided("rejected", reason="there is no challenger 'bush'")]) as heard:
        done = call("rollout", "flow.py", "pause", "bush")
    assert done.code == 1
    assert done.out == ""
    assert done.err.endswith("could not be followed: there is no challenger 'bush'\n")
    assert heard[0].requested_by.partition("@")[2]


def test_when_nobody_answers_it_ends_with_3(bus: Bus, call: Call) -> None:
    done = call("rollout", "flow.py", "pause", "--timeout", "200ms")
    assert done.code == 3
    assert done.err.startswith("no response within 200ms: is `anabranch run` running?")
    assert bus.end_offsets(CONTROL) == [1, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("set-traffic", "tree", "1.5"), ("the share 1.5", "from 0 to 1")),
        (("set-traffic", "tree", "-0.1"), ("the share -0.1", "from 0 to 1")),
        (("set-traffic", "tree", "nan"), ("the share nan",)),
        (("promote", "t ree"), ("'t ree' can't be used",)),
        (("add", "new", "frozen"), ("NAME@VERSION", "'frozen'")),
        (("add", "new", "fro zen@1"), ("NAME@VERSION",)),
        (("start", "tree", "--set", "alpha"), ("NAME=VALUE", "'alpha'")),
        (("pause", "--timeout", "soon"), ("soon",)),
        (("status", "--json", "--follow"), ("leave one out",)),
    ],
)
def test_what_cannot_be_meant_is_one_sentence_and_nothing_is_said(
    arguments: tuple[str, ...], words: tuple[str, ...], bus: Bus, call: Call
) -> None:
    refused(call("rollout", "flow.py", *arguments), *words)
    assert bus.end_offsets(CONTROL) == [0, 0, 0]


@pytest.mark.parametrize("arguments", [("status",), ("pause",)])
def test_without_a_rollout_or_a_run_it_says_what_to_do(
    arguments: tuple[str, ...], tmp_path: Path, call: Call
) -> None:
    (tmp_path / "flow.py").write_text(PIPELINE)
    refused(call("rollout", "flow.py", *arguments), "has no rollouts", "rollout=Shadow()")
    text = PIPELINE.replace("Pipeline, field", "Pipeline, Shadow, field")
    (tmp_path / "flow.py").write_text(text.replace("with_features=True,", "rollout=Shadow(),"))
    refused(call("rollout", "flow.py", *arguments), "'trades.control' does not exist", "run")


# Status.

HISTORY = [
    decided("started", ts=T0),
    decided("stepped", ts=T0 + 60_000, share=0.05),
    decided("rejected", challenger="bush", reason="no"),
    decided("progress", evidence=EVIDENCE, share=0.05, guardrails={"error_rate": 0.0, "psi": None}),
    decided("champion_failed", challenger=""),
    decided("added", challenger="bush", rollout=""),
]


def test_status_shows_each_challenger_as_it_stands(bus: Bus, call: Call) -> None:
    for i, message in enumerate(HISTORY):
        tell(bus, message, partition=i % PARTITIONS, at=T0 + i)
    bus.publisher().append(ROLLOUTS, [b"oops"], partitions=1)
    done = call("rollout", "flow.py", "status", COLUMNS="80")
    went_well(done)
    for words in (
        "champion LogisticRegression, Shadow", "stepped",
        "11-14 22:14", "5.0%", "1,234", "56 served",
        "0.2 ", "vs 0.25", "0.05", "> -0.01", "< —", "7.5 ", "of 20", "error 0", "psi —",
    ):  # fmt: skip
        assert words in done.out, done.out
    assert all(len(line) <= 80 for line in done.out.splitlines())
    assert [line.split()[0] for line in done.out.splitlines() if "bush" in line] == ["bush"]


def test_status_as_json(bus: Bus, call: Call) -> None:
    tell(bus, *HISTORY)
    done = call("rollout", "flow.py", "status", "--json")
    went_well(done)
    told = json.loads(done.out)
    assert (told["champion"], told["policy"], told["messages"]) == (
        "LogisticRegression",
        "Shadow",
        6,
    )
    tree, bush = told["challengers"]["tree"], told["challengers"]["bush"]
    assert (tree["action"], tree["since"], tree["share"]) == ("stepped", T0 + 60_000, 0.05)
    assert tree["evidence"] == msgspec.to_builtins(EVIDENCE)
    assert (bush["action"], bush["evidence"]) == ("added", None)


def test_who_is_promoted_or_removed_is_no_challenger_any_more(bus: Bus, call: Call) -> None:
    tell(bus, *HISTORY, decided("removed", challenger="bush"))
    tell(bus, decided("promoted", champion="tree", share=1.0, policy="Canary"), at=T0 * 2)
    told = json.loads(call("rollout", "flow.py", "status", "--json").out)
    assert (told["champion"], told["policy"], told["challengers"]) == ("tree", "Canary", {})


def test_status_of_a_topic_without_decisions_is_one_sentence(bus: Bus, call: Call) -> None:
    done = call("rollout", "flow.py", "status")
    went_well(done)
    assert done.out == (
        "no decision about rollouts of trades yet: its topic trades.rollouts is empty\n"
    )


def test_of_a_long_topic_the_tail_is_read(bus: Bus, tmp_path: Path, call: Call) -> None:
    from anabranch.dataflows.pipelines.loader import load_pipeline

    tell(bus, *(decided("progress", reason=str(i)) for i in range(50)))
    pipeline = load_pipeline(str(tmp_path / "flow.py"))
    with RolloutLog(pipeline, bus, tail=3) as log:
        tell(bus, decided("progress", reason="50"))
        assert [each.reason for each in log.history()][:3] == ["47", "48", "49"]


def test_follow_prints_each_new_decision_until_it_is_told_to_end(bus: Bus, tmp_path: Path) -> None:
    import signal

    tell(bus, HISTORY[0])
    url = f"sqlite:{tmp_path / 'data' / 'bus'}"
    with Command(
        tmp_path, "rollout", "flow.py", "status", "-f", "--bus", url, PYTHONUNBUFFERED="1"
    ) as command:
        assert command.process.stdout is not None
        lines = iter(command.process.stdout.readline, "")
        assert "trades: champion LogisticRegression" in next(lines)
        tell(bus, decided("rolled_back", reason="it was slow"), partition=1)
        line = next(line for line in lines if "rolled back" in line)
        assert line.startswith("2023-11-14 22:13:20 tree: rolled back, serves 25.0%; ")
        assert line.endswith(": it was slow\n")
        command.send(signal.SIGINT)
        assert command.done().code == 0
