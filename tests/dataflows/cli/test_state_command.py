"""``anabranch state``: its tables, its JSON, and its check for damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from anabranch.dataflows.recovery.inspection import inspect
from tests.support.checkpoint_pipeline import PARTITIONS, Kept, refused, trades, went_well
from tests.support.commands import Call, Command, caller

MESSAGES = trades(60)
EVENTS = sum("amount" in message for _, message in MESSAGES)


@pytest.fixture
def call(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    return caller(tmp_path, capfd)


@pytest.fixture
def kept(tmp_path: Path, call: Call) -> Kept:
    """A state that has processed all messages."""
    made = Kept(tmp_path, call)
    made.declare()
    made.publish(MESSAGES)
    assert not made.run_until(10_000, batch=20)
    return made


def test_it_shows_progress_and_content(kept: Kept) -> None:
    done = kept.call("state", "state")
    went_well(done)
    assert "pipeline trades, generation" in done.out
    assert ", not in use" in done.out
    assert "windows partitioned for one worker, 3 input partitions" in done.out
    for name in ("trades.events", "trades.labels", "input-0", "windows", "models"):
        assert name in done.out
    whole = kept.call("state", "state", "--verify")
    went_well(whole)
    assert "5 state partitions verified: no damage found" in whole.out


def test_json_has_everything_in_one_object(kept: Kept) -> None:
    told = json.loads(kept.call("state", "state", "--json", "--verify").out)
    assert told["manifest"]["pipeline"] == "trades"
    assert told["process"] is None
    assert told["problems"] == []
    assert told["generation"] >= 1
    assert sum(told["offsets"]["trades.events"].values()) == EVENTS
    assert sum(told["offsets"]["trades.labels"].values()) == len(MESSAGES) - EVENTS
    newest = max(message["ts"] for _, message in MESSAGES if "amount" in message)
    assert told["event_time_ms"] == newest
    places = {place["name"]: place for place in told["state_partitions"]}
    assert set(places) == {"models", "windows", *(f"input-{n}" for n in range(PARTITIONS))}
    assert places["windows"]["keys"]["account"] == 8
    assert places["windows"]["events"]["account"] > 0
    assert places["models"]["champion"] == "LogisticRegression"
    assert 0 < places["models"]["models"]["LogisticRegression"]["LogLoss"] < 2
    assert sum(place["ids"] for place in places.values()) > 0
    assert all(place["resumes_at"] == place["generation"] for place in places.values())


def test_damaged_or_missing_parts_are_named(kept: Kept, tmp_path: Path) -> None:
    for place in ("models", "layout-1/windows"):
        tables = (kept.state / place / "db").glob("*.sst")
        file = max(tables, key=lambda each: each.stat().st_size)
        content = file.read_bytes()
        file.write_bytes(bytes(len(content) // 2) + content[len(content) // 2 :])
        refused(kept.call("state", "state", "--verify"), "state is damaged", place)
        file.write_bytes(content)
        (kept.state / place).rename(tmp_path / "away")
        refused(kept.call("state", "state"), f"lacks its state partition {Path(place).name}")
        (tmp_path / "away").rename(kept.state / place)
    shutil.copy(kept.state / "models" / "ID", tmp_path / "name")
    (kept.state / "models" / "ID").write_text("somebody else")
    refused(kept.call("state", "state"), "models belongs to another state")
    shutil.copy(tmp_path / "name", kept.state / "models" / "ID")
    went_well(kept.call("state", "state", "--verify"))
    (kept.state / "recovery" / "part-0.sqlite3").write_bytes(b"")
    refused(kept.call("state", "state"), "recovery/part-0.sqlite3", "backup")


def test_other_directories_are_refused(call: Call, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    refused(call("state", "empty"), "empty is no state directory")
    refused(call("state", "nowhere"), "nowhere is no state directory")
    refused(call("state", "file"), "file")


def test_a_new_state_is_empty_and_undamaged(kept: Kept) -> None:
    shutil.rmtree(kept.state)
    shutil.rmtree(kept.directory / "bus")
    kept.publish([])
    went_well(kept.run())
    done = kept.call("state", "state", "--verify", "--json")
    went_well(done)
    told = json.loads(done.out)
    assert told["event_time_ms"] is None
    assert all(set(offsets.values()) == {0} for offsets in told["offsets"].values())
    went_well(kept.call("state", "state"))


def test_several_workers_and_unexpected_files(kept: Kept) -> None:
    went_well(kept.run("--processes", "2"))
    (kept.state / "input-0.bak").mkdir()
    (kept.state / "layout-2" / "windows-1.bak").mkdir()
    done = kept.call("state", "state", "--verify")
    went_well(done)
    assert "windows partitioned for 8 shards" in done.out
    names = [
        place["name"]
        for place in json.loads(kept.call("state", "state", "--json").out)["state_partitions"]
    ]
    assert names == [
        *(f"input-{number}" for number in range(PARTITIONS)),
        *(f"windows-{number}" for number in range(8)),
        "models",
    ]


def test_it_is_never_damaged_while_a_run_uses_it(kept: Kept) -> None:
    """The run is a separate process: two copies of SQLite in one break each other's locks."""
    shutil.rmtree(kept.state)
    kept.run_until(0)
    options = (
        "--bus",
        "sqlite:bus",
        "--state",
        "state",
        "--until-end",
        "--checkpoint-interval",
        "100ms",
    )
    looks, used = 0, False
    with Command(
        kept.directory, "run", "flow.py", *options, "--until-end", "--batch-size", "1"
    ) as command:
        while command.process.poll() is None:
            report = inspect(kept.state, verify=True)
            assert report.problems == []
            used |= report.process == command.process.pid
            looks += 1
        went_well(command.done())
    assert looks > 1
    assert used
