"""``anabranch run --model``: a new state that starts with a trained model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from anabranch.dataflows.bus import TopicPartition, open_bus
from anabranch.dataflows.recovery.manifest import read_manifest
from anabranch.models.registry.registry import Registry
from tests.support.checkpoint_pipeline import refused, went_well
from tests.support.commands import Call, Done, caller

PIPELINE = """
from river import forest, linear_model, naive_bayes, optim, preprocessing

from anabranch import Event, Pipeline, field, inline


class Part(Event):
    id: str
    ts: int
    size: float
    weight: float
    good: bool


pipeline = Pipeline(
    name="parts", event=Part, label=inline("good"), features=[field("size"), field("weight")],
    model=MODEL, metrics=("LogLoss",),
)
"""
COMPILED = "preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.Adam(0.05))"
FOREST = "forest.ARFClassifier(n_models=2, seed=1, grace_period=10)"
ROWS = 120


class Parts:
    """A directory with the pipeline, and a bus for each half of the events."""

    def __init__(self, directory: Path, call: Call, model: str = COMPILED) -> None:
        self.directory, self.call = directory, call
        self.declare(model)
        for name, rows in (("first", range(ROWS // 2)), ("second", range(ROWS // 2, ROWS)),
                           ("whole", range(ROWS)), ("none", range(0))):  # fmt: skip
            self.publish(name, rows)

    def publish(self, name: str, rows: range) -> None:
        bus = open_bus(f"sqlite:{self.directory / name}")
        bus.create_topics({"parts.events": 1})
        publisher = bus.publisher()
        values = [json.dumps(part(i)).encode() for i in rows]
        if values:
            publisher.append("parts.events", values, partitions=0, times=list(rows))
        publisher.close()
        bus.close()

    def declare(self, model: str) -> None:
        (self.directory / "parts.py").write_text(PIPELINE.replace("MODEL", model))

    def run(self, bus: str, state: str, *more: object) -> Done:
        where = ("--bus", f"sqlite:{bus}", "--state", state)
        return self.call(
            "run", "parts.py", *where, "--until-end", "--checkpoint-interval", "1s", *more
        )

    def snapshot(self, state: str, *more: object) -> Any:
        done = self.call("models", "snapshot", state, "--json", *more)
        went_well(done)
        return json.loads(done.out)

    def predictions(self, bus: str) -> list[Any]:
        """Score and version of each prediction."""
        opened = open_bus(f"sqlite:{self.directory / bus}")
        reader = opened.reader({TopicPartition("parts.predictions", 0): 0})
        found = [json.loads(v) for part in reader.poll(10_000) for v in part.values]
        reader.close()
        opened.close()
        return [(each["id"], each["score"], each["version"]) for each in found]


def part(number: int) -> dict[str, Any]:
    size, weight = float(number * 13 % 29), float(number * 7 % 17)
    return {"id": str(number), "ts": number * 1000, "size": size, "weight": weight,
            "good": size > weight + 5}  # fmt: skip


@pytest.fixture
def call(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    return caller(tmp_path, capfd)


@pytest.fixture
def parts(tmp_path: Path, call: Call) -> Parts:
    """With a state that has learned the first half, and a version of its model."""
    made = Parts(tmp_path, call)
    went_well(made.run("first", "old"))
    made.snapshot("old", "--name", "half")
    return made


BEGIN = ("--model", "half@1", "--registry", "old")


@pytest.mark.parametrize("model", [COMPILED, FOREST])
def test_it_continues_like_an_uninterrupted_model(tmp_path: Path, call: Call, model: str) -> None:
    parts = Parts(tmp_path, call, model)
    went_well(parts.run("whole", "uncut"))
    went_well(parts.run("first", "old"))
    parts.snapshot("old", "--name", "half")
    done = parts.run("second", "new", *BEGIN)
    went_well(done)
    assert f"starting from half@1, which has learned {ROWS // 2} labels" in done.err
    assert parts.predictions("second") == parts.predictions("whole")[ROWS // 2 :]
    made = parts.snapshot("new", "--name", "grown")
    assert (made["rows"], made["parent"]) == (ROWS, "half@1")
    whole = parts.snapshot("uncut", "--name", "whole")
    assert made["weights"] == whole["weights"]
    by_topic = {each["topic"]: each for each in made["trained_on"]}
    assert by_topic["parts.events"]["end"] == ROWS // 2  # of the second bus


def test_the_same_command_resumes(parts: Parts) -> None:
    went_well(parts.run("second", "new", *BEGIN))
    predictions = parts.predictions("second")
    again = parts.run("second", "new", *BEGIN)
    went_well(again)
    assert "resuming from generation" in again.err
    shutil.rmtree(parts.directory / "old")  # it has all that it needs
    went_well(parts.run("second", "new", *BEGIN))
    went_well(parts.run("second", "new"))
    assert parts.predictions("second") == predictions


def test_a_later_run_resumes_from_what_was_learned_since(parts: Parts) -> None:
    went_well(parts.run("second", "new", *BEGIN))
    assert parts.snapshot("new", "--name", "grown")["parent"] == "half@1"
    parts.publish("second", range(ROWS, ROWS + 20))
    went_well(parts.run("second", "new", *BEGIN))
    first_new = parts.predictions("second")[ROWS // 2]
    assert first_new[2] == ROWS
    made = parts.snapshot("new", "--name", "more")
    assert (made["rows"], made["parent"]) == (ROWS + 20, "grown@1")


def test_an_empty_state_starts_with_the_model(parts: Parts) -> None:
    """An epoch may end before the first event, when no model has been created yet."""
    went_well(parts.run("none", "new", *BEGIN))
    shutil.rmtree(parts.directory / "none")
    shutil.copytree(parts.directory / "second", parts.directory / "none")
    went_well(parts.run("none", "new", "--on-offset-out-of-range", "earliest"))  # other topics
    assert parts.predictions("none")[0][2] == ROWS // 2
    assert parts.snapshot("new")["rows"] == ROWS


def test_the_model_stays_in_the_registry_of_the_new_state(parts: Parts) -> None:
    went_well(parts.run("second", "new", *BEGIN))
    registry = Registry.of(parts.directory / "new")
    identity = read_manifest(parts.directory / "new")
    assert identity is not None
    assert identity.model == "half@1"
    for _ in range(3):
        version = registry.get("half")
        registry.add_pickle(registry.pickle(version), version, keep=1)
    assert [each.version for each in registry.list("half")] == [1, 4]


def test_a_model_is_imported_into_a_new_directory(parts: Parts) -> None:
    went_well(parts.call("models", "export", "old", "half", "--to", "m.pickle"))
    into = ("models", "import", "parts.py", "m.pickle", "--state", "new", "--name", "it")
    went_well(parts.call(*into))
    went_well(parts.run("second", "new", "--model", "it@1"))
    assert parts.predictions("second")[0][2] == ROWS // 2
    went_well(parts.run("second", "new", "--model", "it@1"))


def test_two_workers_start_with_the_model(parts: Parts) -> None:
    done = parts.run("second", "new", *BEGIN, "--processes", "2")
    assert done.code == 0, done.err
    assert parts.predictions("second")[0][2] == ROWS // 2
    assert parts.snapshot("new")["rows"] == ROWS


def test_a_model_that_can_not_be_used_is_one_sentence(parts: Parts) -> None:
    refused(parts.run("first", "old", "--model", "half@1"),
            "old has started from an untrained model and is at generation", "--state")  # fmt: skip
    refused(parts.run("second", "new", "--model", "half@1"), "there is no model 'half@1'")
    refused(parts.run("second", "new", "--model", "half", "--registry", "old"), "half@VERSION")
    refused(parts.run("second", "new", "--model", "half@2", "--registry", "old"), "it has half@1")
    refused(parts.run("second", "new", "--registry", "old"), "without --model NAME@VERSION")
    refused(
        parts.call("run", "parts.py", "--no-state", "--model", "half@1"), "--no-state contradict"
    )
    for model in (FOREST, COMPILED.replace("0.05", "0.06"), "naive_bayes.GaussianNB()"):
        parts.declare(model)
        done = parts.run("second", "new", *BEGIN)
        refused(
            done, "model half@1 is Pipeline(", "declares", "declare that model, or name another"
        )
    parts.declare(COMPILED)
    about = parts.directory / "old" / "registry" / "half" / "1" / "about.json"
    whole = about.read_bytes()
    about.write_bytes(whole[:90])
    refused(parts.run("second", "new", *BEGIN), "about.json is damaged")
    about.write_bytes(whole)
    pickled = about.with_name("model.pickle")
    pickled.write_bytes(pickled.read_bytes()[:-1])
    refused(parts.run("second", "new", *BEGIN), "model.pickle is damaged")
    assert not (parts.directory / "new").exists()


def test_another_model_is_refused_for_an_existing_state(parts: Parts) -> None:
    went_well(parts.run("second", "new", *BEGIN))
    went_well(parts.run("whole", "old", "--on-offset-out-of-range", "earliest"))
    parts.snapshot("old", "--name", "half")
    words = ("new has started from half@1 and is at generation", "--model half@2")
    refused(parts.run("second", "new", "--model", "half@2", "--registry", "old"), *words)
