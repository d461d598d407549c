"""``anabranch models``: what each command does, shows and refuses."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import typer.main
from river import linear_model, preprocessing, tree

from anabranch.dataflows.cli.models import models
from anabranch.dataflows.registry.model_snapshot import take_snapshot
from anabranch.models.learners.pickling import library_versions
from anabranch.models.registry.registry import Registry
from tests.support.checkpoint_pipeline import PARTITIONS, Kept, refused, trades, went_well
from tests.support.commands import Call, Command, Done, caller

MESSAGES = trades(80)
HALF = len(MESSAGES) // 2
NAME = "LogisticRegression"
RIVER = library_versions()["river"]
GROUP: Any = typer.main.get_command(models)


@pytest.fixture
def call(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    return caller(tmp_path, capfd)


@pytest.fixture(scope="module")
def at_half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("half")


@pytest.fixture
def kept(at_half: Path, tmp_path: Path, call: Call, capfd: pytest.CaptureFixture[str]) -> Kept:
    """A copy of a state that has come through half of the messages, and has a version of then."""
    made = Kept(at_half, caller(at_half, capfd))
    if not made.state.exists():
        made.declare()
        made.publish(MESSAGES[:HALF])
        assert not made.run_until(10_000, batch=20)
        went_well(made.call("models", "snapshot", "state", "--note", "half"))
    return made.copy(tmp_path, call)


def go_on(kept: Kept) -> None:
    """Come through the other half."""
    kept.publish(MESSAGES[HALF:])
    assert not kept.run_until(10_000, batch=20)


def told(done: Done) -> Any:
    """The one JSON value on stdout."""
    went_well(done)
    return json.loads(done.out)


@pytest.mark.parametrize("name", GROUP.commands)
def test_every_command_teaches(name: str, call: Call) -> None:
    done = call("models", name, "--help")
    went_well(done)
    assert f"anabranch models {name}" in done.out.split("Options")[0].split("Examples:")[1]
    shown = re.sub(r"[│\s]", "", done.out)
    for parameter in GROUP.commands[name].params:
        flag = parameter.opts[0]
        if flag.startswith("--") and parameter.name != "help":
            variable = flag.removeprefix("--").upper()
            assert f"ANABRANCH_MODELS_{name.upper()}_{variable}]" in shown


def test_a_snapshot_has_the_lineage_of_the_champion(kept: Kept) -> None:
    (made,) = told(kept.call("models", "list", "state", "--json"))
    assert (made["reference"], made["made"], made["note"]) == (f"{NAME}@1", "snapshot", "half")
    assert (made["pipeline"], made["task"], made["parent"]) == ("trades", "binary", None)
    assert made["columns"] == ["amount", "account_amount_10m_count", "account_amount_10m_sum",
                               "account_since_last_2h"]  # fmt: skip
    state = told(kept.call("state", "state", "--json"))
    spans = {(each["topic"], each["partition"]): each for each in made["trained_on"]}
    assert len(spans) == 2 * PARTITIONS
    for topic, ends in state["offsets"].items():
        for partition, end in ends.items():
            assert spans[topic, int(partition)]["end"] == end
            assert spans[topic, int(partition)]["start"] == 0
    (place,) = [each for each in state["state_partitions"] if each["name"] == "models"]
    assert made["metrics"] == place["models"][NAME]
    assert made["generation"] == place["resumes_at"]
    assert made["versions"] == library_versions()
    assert made["rows"] > 10
    assert set(made["weights"]) == {*made["columns"], "(intercept)"}


def test_the_next_one_grows_from_it_and_none_is_made_when_nothing_was_learned(kept: Kept) -> None:
    same = kept.call("models", "snapshot", "state")
    went_well(same)
    assert f"nothing was learned since {NAME}@1" in same.out
    go_on(kept)
    made = told(kept.call("models", "snapshot", "state", "--json"))
    assert (made["reference"], made["parent"]) == (f"{NAME}@2", f"{NAME}@1")
    other = told(kept.call("models", "snapshot", "state", "--name", "friday", "--json"))
    assert (other["reference"], other["parent"]) == ("friday@1", f"{NAME}@1")
    assert other["rows"] == made["rows"] > told(
        kept.call("models", "show", "state", f"{NAME}@1", "--json")
    )["rows"]  # fmt: skip
    shown = kept.call("models", "list", "state", "--name", NAME)
    went_well(shown)
    assert f"{NAME}@2" in shown.out
    assert "friday" not in shown.out
    assert "LogLoss" in shown.out


def test_a_snapshot_answers_as_the_state_does(kept: Kept) -> None:
    """The features that are served next, and what is predicted of them, say so."""
    model = take_snapshot(kept.state).model
    before = [len(rows) for rows in kept.outputs()["trades.predictions"]]
    kept.publish([each for each in MESSAGES[HALF:] if "amount" in each[1]])
    assert not kept.run_until(10_000, batch=20)
    new = [
        row
        for rows, seen in zip(kept.outputs()["trades.predictions"], before, strict=True)
        for row in rows[seen:]
    ]
    assert len(new) > 10
    for row in new:
        answer = model.predict_proba_one(row["features"])[True]
        assert answer == pytest.approx(row["score"], abs=1e-12)


def test_old_versions_go(kept: Kept) -> None:
    for begin in (HALF, HALF + 20, HALF + 40):
        kept.publish(MESSAGES[begin : begin + 20])
        kept.run_until(10_000, batch=20)
        went_well(kept.call("models", "snapshot", "state", "--retain", "2"))
    left = told(kept.call("models", "list", "state", "--json"))
    assert [each["reference"] for each in left] == [f"{NAME}@3", f"{NAME}@4"]


def test_show_and_diff_tell_it_to_people(kept: Kept) -> None:
    go_on(kept)
    went_well(kept.call("models", "snapshot", "state"))
    shown = kept.call("models", "show", "state", NAME)
    went_well(shown)
    for words in (
        f"{NAME}@2", "trained on", "trades.events 0: 0 to", "fingerprint", RIVER,
        "optimizer.lr.learning_rate", "weights, of scaled features", "amount",
    ):  # fmt: skip
        assert words in shown.out, words
    compared = kept.call("models", "diff", "state", f"{NAME}@1", NAME, "--top", "2")
    went_well(compared)
    for words in ("labels learned", "trained on", "LogLoss", "the most changed 2 of 5"):
        assert words in compared.out, words
    assert "learning_rate" not in compared.out  # it is the same
    found = told(kept.call("models", "diff", "state", f"{NAME}@1", NAME, "--json", "--top", "3"))
    assert (found["first"], found["second"]) == (f"{NAME}@1", f"{NAME}@2")
    changes = [abs(each["change"]) for each in found["weights"]]
    assert len(changes) == 3
    assert changes == sorted(changes, reverse=True)
    same = kept.call("models", "diff", "state", NAME, f"{NAME}@2")
    assert "do not differ" in same.out


def test_export_then_import_is_the_same_model(kept: Kept) -> None:
    went_well(kept.call("models", "export", "state", NAME, "--to", "m.pickle"))
    made = kept.call("models", "import", "flow.py", "m.pickle", "--state", "new", "--name", "old")
    went_well(made)
    assert "warning: unpickling m.pickle, which runs any code that is in it" in made.err
    here, there = Registry.of(kept.state), Registry.of(kept.directory / "new")
    one, other = here.get(NAME), there.get("old")
    assert other.parent == f"{NAME}@1 of pipeline trades"
    assert "m.pickle" in other.source
    for field in ("rows", "columns", "fingerprint", "declaration", "weights", "trained_on"):
        assert getattr(one, field) == getattr(other, field), field
    x = dict.fromkeys(one.columns, 3.5)
    with (kept.directory / "m.pickle").open("rb") as file:
        plain = pickle.load(file)
    answers = [m.predict_proba_one(x) for m in (plain, here.load(one), there.load(other))]
    assert answers[0] == answers[1] == answers[2]
    assert "old@1" in kept.call("models", "list", "new").out


def put(kept: Kept, name: str, model: Any) -> None:
    (kept.directory / name).write_bytes(pickle.dumps(model))


def learned(names: list[str], model: Any, label: Any = True) -> Any:
    for i in range(30):
        model.learn_one({name: float(i % 7) for name in names}, label)
    return model


def test_a_model_from_elsewhere_comes_in_if_it_fits(kept: Kept) -> None:
    put(kept, "m.pickle", learned(["amount"], tree.HoeffdingTreeClassifier()))
    into = ("models", "import", "flow.py", "m.pickle", "--state", "state", "--river", RIVER)
    done = kept.call(*into, "--json")
    made = told(done)
    assert (made["reference"], made["rows"]) == ("HoeffdingTreeClassifier@1", None)
    assert made["trained_on"] == []
    assert "it has never seen account_amount_10m_count" in done.err
    assert "declares another model, so `run --model` would refuse it" in done.err


def test_what_does_not_fit_is_one_sentence(kept: Kept) -> None:
    logistic, linear = linear_model.LogisticRegression, linear_model.LinearRegression
    put(kept, "city.pickle", learned(["amount", "city"], logistic()))
    put(kept, "number.pickle", learned(["amount"], linear(), 1.0))
    put(kept, "dict.pickle", {"weights": [1, 2]})
    put(kept, "scaler.pickle", preprocessing.StandardScaler())
    put(kept, "good.pickle", learned(["amount"], logistic()))
    (kept.directory / "torn.pickle").write_bytes(pickle.dumps(logistic())[:60])
    (kept.directory / "text.pickle").write_text("a model")
    cases = [
        ("city.pickle", RIVER, "has learned features that the pipeline does not have: city;"),
        ("number.pickle", RIVER, "LinearRegression can't do a binary task: give a classifier"),
        ("dict.pickle", RIVER, "holds 'dict', not a River model"),
        ("scaler.pickle", RIVER, "StandardScaler can't do a binary task"),
        ("torn.pickle", RIVER, "torn.pickle can't be unpickled"),
        ("text.pickle", RIVER, "text.pickle can't be unpickled"),
        ("good.pickle", "0.1", f"was written with river 0.1, and {RIVER} is installed"),
        ("none.pickle", RIVER, "none.pickle can't be read: No such file"),
        ("https://example.org/m.pickle", RIVER, "not a local file"),
    ]
    before = told(kept.call("models", "list", "state", "--json"))
    for name, river, words in cases:
        done = kept.call("models", "import", "flow.py", name, "--state", "state", "--river", river)
        refused(done, words)
    refused(kept.call("models", "import", "flow.py", "good.pickle"), "add --river")
    assert not (kept.directory / "data").exists()
    assert told(kept.call("models", "list", "state", "--json")) == before


def test_what_was_exported_for_another_pipeline_is_refused_unread(kept: Kept) -> None:
    went_well(kept.call("models", "export", "state", NAME, "--to", "m.pickle"))
    into = ("models", "import", "flow.py", "m.pickle", "--state", "new")
    kept.declare('field("amount"),', "")
    done = kept.call(*into)
    refused(done, "m.pickle has learned features that the pipeline does not have: amount;")
    assert "unpickling" not in done.err
    refused(kept.call("models", "import", "trips", "m.pickle"), "is for a binary task")
    kept.declare('over="10m"', 'over="10m", resolution="1m"')
    done = kept.call(*into)
    went_well(done)
    assert "were declared in another way" in done.err


MISTAKES = [
    (["list", "nosuch"], "there is no pipeline 'nosuch'"),
    (["list", "payments"], "there is no state directory data/state/payments: run the pipeline"),
    (["list", "bus"], "bus is not a state directory and has no models"),
    (["show", "state", "nosuch"], f"there is no model 'nosuch' in state/registry: it has {NAME}@1"),
    (["show", "state", f"{NAME}@7"], f"there is no model '{NAME}@7'"),
    (["show", "state", "a b"], "'a b' does not name a model: write NAME@VERSION"),
    (["diff", "state", NAME, "other"], "there is no model 'other'"),
    (["export", "state", NAME, "--to", "no/where.pickle"], "where.pickle can't be written"),
    (["export", "state", NAME, "--to", "bus"], "bus can't be written"),
    (["snapshot", "state", "--name", "a/b"], "model name 'a/b' can't be used"),
    (["import", "state", "m.pickle"], "state is a state directory: name the pipeline"),
    (["import", "flow.py", "m.pickle", "--name", ""], "model name '' can't be used"),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES, ids=lambda v: " ".join(v)[:40])
def test_a_mistake_is_one_sentence(kept: Kept, arguments: list[str], words: str) -> None:
    refused(kept.call("models", *arguments), words)


def test_wrong_usage_ends_with_2(kept: Kept) -> None:
    wrong = [["show", "state"], ["export", "state", NAME], ["nosuch"]]
    for arguments in [*wrong, ["snapshot", "state", "--retain", "0"]]:
        assert kept.call("models", *arguments).code == 2


def test_a_state_that_has_learned_nothing_has_no_model_yet(kept: Kept) -> None:
    shutil.rmtree(kept.state)
    went_well(kept.run("--start-offset", "latest"))
    assert "no models in" in kept.call("models", "list", "state").out
    refused(kept.call("models", "snapshot", "state"), "state holds no model yet: run")


def test_a_recovery_store_that_lacks_a_partition_is_refused(kept: Kept) -> None:
    """A snapshot would not say what the model was trained on."""
    with closing(sqlite3.connect(kept.state / "recovery" / "part-0.sqlite3")) as store, store:
        store.execute("DELETE FROM snaps WHERE state_key = '1' AND step_id LIKE '%source%'")
    done = kept.call("models", "snapshot", "state", "--name", "other")
    refused(done, "the recovery store of state knows 2 of 3 input partitions", "backup")


def test_a_damaged_version_is_named_and_the_others_are_listed(kept: Kept) -> None:
    went_well(kept.call("models", "snapshot", "state", "--name", "other"))
    (kept.state / "registry" / "other" / "1" / "about.json").write_text("{")
    done = kept.call("models", "list", "state")
    refused(done, "other/1/about.json is damaged")
    assert f"{NAME}@1" in done.out


def test_a_registry_is_no_part_of_the_state(kept: Kept) -> None:
    whole = kept.call("state", "state", "--verify")
    went_well(whole)
    assert "5 state partitions verified" in whole.out
    shutil.rmtree(kept.state / "registry")
    go_on(kept)


def test_beside_a_run_snapshots_are_whole_and_rise(kept: Kept) -> None:
    """The run is a process of its own, as for `anabranch state`."""
    shutil.rmtree(kept.state)
    kept.run_until(5)
    options = (
        "--bus",
        "sqlite:bus",
        "--state",
        "state",
        "--until-end",
        "--checkpoint-interval",
        "50ms",
    )
    registry, rows, looks = Registry.of(kept.state), 0, 0
    with Command(kept.directory, "run", "flow.py", *options, "--batch-size", "2") as command:
        while command.process.poll() is None:
            taken = take_snapshot(kept.state)
            assert taken.version.rows is not None
            assert taken.version.rows >= rows
            registry.add(taken.model, taken.version, keep=3)
            rows, looks = taken.version.rows, looks + 1
        went_well(command.done())
    assert looks > 1
    assert take_snapshot(kept.state).version.rows >= rows
    assert len(registry.list()) <= 3
    assert registry.problems() == []
    went_well(kept.call("state", "state", "--verify"))
