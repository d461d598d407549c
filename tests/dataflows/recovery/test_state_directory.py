"""A state directory that is of something else, damaged or in use: one sentence, nothing harmed."""

from __future__ import annotations

import json
import os
import pickletools
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from anabranch.dataflows.recovery.resume_point import CHECKSUMS
from anabranch.state.store.lock import hold
from tests.support.checkpoint_pipeline import Json, Kept, check_once, refused, trades, went_well
from tests.support.commands import Call, caller
from tests.support.small_disk import make_read_only, make_writable, mounted

MESSAGES = trades(120)
RECOVERY = "state/recovery/part-0.sqlite3"


@pytest.fixture
def call(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    return caller(tmp_path, capfd)


@pytest.fixture(scope="module")
def at_half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bus with all messages, and a state that has come through half of them."""
    return tmp_path_factory.mktemp("half")


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """The outputs of a run that nothing happened to, filled in by the first test that has them."""
    return {}


@pytest.fixture
def kept(at_half: Path, tmp_path: Path, call: Call, capfd: pytest.CaptureFixture[str]) -> Kept:
    """A copy of it."""
    made = Kept(at_half, caller(at_half, capfd))
    if not made.state.exists():
        made.declare()
        made.publish(MESSAGES)
        assert made.run_until(30)
    return made.copy(tmp_path, call)


def check_resumes(kept: Kept, expected: dict[str, Any]) -> None:
    """It runs to the end, and gives what it should: nothing lost, nothing doubled."""
    went_well(kept.run(epoch="5s"))
    outputs = kept.outputs()
    check_once(outputs)
    if not expected:
        state = kept.directory / "without"
        shutil.rmtree(kept.directory / "bus")
        kept.publish(MESSAGES)
        went_well(kept.run(state=state, epoch="5s"))
        expected.update(kept.outputs())
    for topic, rows in expected.items():
        assert rows
        assert outputs[topic] == rows, topic


DECLARED = {
    "event fields": ("    amount: float", "    amount: bool"),
    "features": ('over="10m"', 'over="11m"'),
    "label": ('timeout="2h"', 'timeout="3h"'),
    "model": ("LogisticRegression()", "LogisticRegression(l2=0.1)"),
    "times": ('allowed_lateness="5m"', 'allowed_lateness="6m"'),
}


def test_another_declaration_is_refused_and_harms_nothing(kept: Kept, expected: Any) -> None:
    for part, (old, new) in DECLARED.items():
        kept.declare(old, new)
        refused(kept.run(), f"the {part} of pipeline 'trades' changed", "--state")
    kept.declare()
    refused(kept.run("--shards", "4"), "created for 8 shards", "--shards 8")
    check_resumes(kept, expected)


UNREAD = [
    ("    amount: float", "    amount: float\n    more: int = 0"),
    ("    amount: float", "    amount: float\n    others: list[str] | None = None"),
]


@pytest.mark.parametrize(("old", "new"), UNREAD)
def test_fields_that_no_feature_uses_are_no_part_of_the_state(
    kept: Kept, expected: Any, old: str, new: str
) -> None:
    kept.declare(old, new)
    check_resumes(kept, expected)


def test_the_state_of_another_pipeline_is_refused(kept: Kept, expected: Any) -> None:
    with changed(kept.state / "manifest.json", pipeline="clicks"):
        refused(kept.run(), "is the state of pipeline 'clicks', not of 'trades'")
    check_resumes(kept, expected)


@contextmanager
def changed(path: Path, **fields: Any) -> Iterator[None]:
    """A JSON file with other fields and without its checksum, in the block."""
    before = path.read_bytes()
    plain = {name: value for name, value in json.loads(before).items() if name != "sha256"}
    path.write_text(json.dumps(plain | fields))
    yield
    path.write_bytes(before)


@contextmanager
def replaced(path: Path, content: bytes | None) -> Iterator[None]:
    """A file with other content, or without it, in the block."""
    before = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    yield
    path.write_bytes(before)


def test_another_version_or_layout_of_the_manifest_is_refused(kept: Kept, expected: Any) -> None:
    manifest = kept.state / "manifest.json"
    versions = json.loads(manifest.read_bytes())["versions"]
    cases: list[tuple[Json, str]] = [
        ({"versions": versions | {"river": "0.1"}}, "was written with river 0.1"),
        ({"versions": {}}, "was written with river None"),
        ({"format": 99}, "format 99"),
        ({"partitions": 5}, "was last used with 5"),
        ({"hosts": 2}, "was created for 2 hosts"),
        ({"layout": "x"}, "is damaged"),
    ]
    for fields, words in cases:
        with changed(manifest, **fields):
            refused(kept.run(), words)
    for content in (b"", b"{", b"[]", b"\xff\x00", b"null", manifest.read_bytes()[:40]):
        with replaced(manifest, content):
            refused(kept.run(), "manifest.json is damaged", "backup")
    with replaced(manifest, None):
        refused(kept.run(), "is no state directory and is not empty", "--state")
    check_resumes(kept, expected)


def test_a_directory_of_format_1_is_refused_with_the_command_that_replays(
    kept: Kept, expected: Any
) -> None:
    """Its manifest had another name, and the engine's store names classes that are gone."""
    manifest = kept.state / "manifest.json"
    before = manifest.read_bytes()
    old = {"format": 1, "pipeline": "trades", "layout": 1, "by_shard": False, "since": {}}
    (kept.state / "identity.json").write_text(json.dumps(old))
    manifest.unlink()
    words = ("format 1", "anabranch replay PIPELINE --from trades.events", "--state NEW")
    for done in (kept.run(), kept.run("--processes", "2"), kept.call("state", "state")):
        refused(done, *words)
    refused(kept.call("models", "snapshot", "state"), *words)
    (kept.state / "identity.json").write_bytes(b"torn")
    refused(kept.run(), "anabranch replay PIPELINE --from PIPELINE.events")
    (kept.state / "identity.json").unlink()
    manifest.write_bytes(before)
    check_resumes(kept, expected)


@pytest.mark.parametrize("processes", [1, 2])
def test_what_the_engine_stores_names_no_class(kept: Kept, processes: int) -> None:
    """So a module can move, and a state directory is still readable."""
    went_well(kept.run("--processes", processes, epoch="5s"))
    with closing(sqlite3.connect(kept.directory / RECOVERY)) as store:
        states = store.execute("SELECT step_id, ser_change FROM snaps").fetchall()
    steps = {step.split(".")[1] for step, _ in states}
    assert steps >= {"source", "sink"}
    assert steps & {"windows_and_models_1", "models_2"}
    for step, pickled in states:
        opcodes = {opcode.name for opcode, _, _ in pickletools.genops(pickled or b"N.")}
        assert not opcodes & {"GLOBAL", "STACK_GLOBAL", "INST", "REDUCE"}, step


def test_a_recovery_store_that_is_gone_or_damaged_is_refused(kept: Kept, expected: Any) -> None:
    store = kept.directory / RECOVERY
    content = store.read_bytes()
    with replaced(store, None):
        refused(kept.run(), "recovery", "is missing", "backup")
    for damaged in (b"", b"\x07garbage" * 5000, content[:4096], content[: len(content) // 2]):
        with replaced(store, damaged):
            refused(kept.run(), RECOVERY, "backup")
    shutil.copy(store, store.with_name("part-1.sqlite3"))
    refused(kept.run(), "is not the one that was created here")
    store.with_name("part-1.sqlite3").unlink()
    with closing(sqlite3.connect(store)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = store.read_bytes()
    with closing(sqlite3.connect(store)) as connection, connection:
        connection.execute("UPDATE snaps SET ser_change = x'00112233'")
    refused(kept.run(), "is damaged", "backup")
    store.write_bytes(content)
    check_resumes(kept, expected)


def other_run(kept: Kept, at: Path, epoch: str = "1ms") -> Path:
    """A state directory of the same pipeline that went another way."""
    other = Kept(at, kept.call)
    shutil.copytree(kept.directory / "bus", at / "bus")
    other.declare()
    went_well(kept.run("--bus", f"sqlite:{at / 'bus'}", state=at / "state", epoch=epoch))
    return at / "state"


def test_a_recovery_store_or_places_of_another_run_are_refused(
    kept: Kept, expected: Any, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = other_run(kept, tmp_path / "other")
    places = ("recovery", "models", "input-0", "layout-1/windows")
    for place in places:
        with swapped(kept.state / place, other / place):
            refused(kept.run(), "belongs to another state", "backup")
    with swapped(kept.state / "input-0", kept.state / "input-2"):
        refused(kept.run(), "belongs to another state")
    for place in places[1:]:
        kept.state.joinpath(place).rename(tmp_path / "away")
        refused(kept.run(), f"{place} is missing", "bring it back")
        (tmp_path / "away").rename(kept.state / place)
        (kept.state / place / "db").rename(tmp_path / "away")
        refused(kept.run(), f"{place} is missing", "bring it back")
        (tmp_path / "away").rename(kept.state / place / "db")
    check_resumes(kept, expected)


@contextmanager
def swapped(one: Path, other: Path) -> Iterator[None]:
    """The two change places in the block."""
    exchange(one, other)
    yield
    exchange(one, other)


def exchange(one: Path, other: Path) -> None:
    between = one.with_name("between")
    one.rename(between)
    other.rename(one)
    between.rename(other)


def test_backups_of_different_times_are_refused_and_harm_nothing(
    kept: Kept, expected: Any, tmp_path: Path
) -> None:
    """An idle partition could still go back, and must not before another one has refused."""
    old = tmp_path / "old"
    shutil.copytree(kept.state, old)
    went_well(kept.run("--batch-size", "2"))  # more epochs than one can go back
    for place in ("recovery", "models", "layout-1/windows"):
        with swapped(kept.state / place, old / place):
            refused(kept.run(), "is from an older backup", "restore both from one")
    check_resumes(kept, expected)
    shutil.rmtree(kept.state)
    old.rename(kept.state)  # all of it from one backup is well: the outputs are known
    check_resumes(kept, expected)


def test_damaged_databases_are_refused(kept: Kept, expected: Any) -> None:
    for place in ("models/db", "layout-1/windows/db"):
        database = kept.state / place
        for name, content in (("CURRENT", b"MANIFEST-999999\n"), ("CURRENT", b"")):
            with replaced(database / name, content):
                refused(kept.run(), place)
        with replaced(next(database.glob("MANIFEST-*")), b"x" * 100):
            refused(kept.run(), place, "damaged")
        table = max(database.glob("*.sst"), key=lambda each: each.stat().st_size)
        half = table.stat().st_size // 2
        for content in (table.read_bytes()[:half], bytes(half) + table.read_bytes()[half:]):
            with replaced(table, content):
                refused(kept.run(), place, "damaged")
        with replaced(table, None):
            refused(kept.run(), place, "damaged")
    check_resumes(kept, expected)


def test_a_directory_that_can_not_be_one_is_refused(kept: Kept, expected: Any) -> None:
    place = kept.directory / "place"
    place.write_text("a file")
    refused(kept.run(state=place), "a file of that name is there")
    refused(kept.run(state=place / "below"), "can't be used")
    assert place.read_text() == "a file"
    place.unlink()
    place.mkdir()
    (place / "letter.txt").write_text("dear")
    refused(kept.run(state=place), "is not empty", "letter.txt")
    assert (place / "letter.txt").read_text() == "dear"
    check_resumes(kept, expected)


def test_a_directory_that_can_not_be_written_is_refused(kept: Kept, expected: Any) -> None:
    if os.geteuid() != 0:
        kept.state.chmod(0o500)
        refused(kept.run(), "make it writable")
        kept.state.chmod(0o700)
    else:  # who may write anywhere but on a disk that can't be written
        with mounted(kept.directory / "disk", 64) as disk:
            shutil.move(kept.state, disk / "state")
            make_read_only(disk)
            refused(kept.run(state="disk/state"), "make it writable")
            make_writable(disk)
            shutil.move(disk / "state", kept.state)
    check_resumes(kept, expected)


def test_a_second_run_is_refused_and_the_state_can_be_looked_at(kept: Kept, expected: Any) -> None:
    with hold(kept.state):
        refused(kept.run(), f"(process {os.getpid()})", "--state")
        assert kept.call("state", "state").code == 0
    check_resumes(kept, expected)


@pytest.mark.parametrize("name", ["a b", "späte zahlung?x=1#y %20"])
def test_the_path_may_have_any_characters(kept: Kept, expected: Any, name: str) -> None:
    kept.state.rename(kept.directory / name)
    went_well(kept.run(state=name, epoch="5s"))
    assert kept.call("state", name, "--verify").code == 0
    (kept.directory / name).rename(kept.state)
    check_resumes(kept, expected)


def steps_of_making(state: Path) -> list[Callable[[Path], None]]:
    """What an interrupted creation has left, after each of its steps."""
    files = ["LOCK", "WORKERS", "recovery", RECOVERY.removeprefix("state/"), "manifest.json.new"]

    def left(count: int) -> Callable[[Path], None]:
        def leave(directory: Path) -> None:
            directory.mkdir()
            for name in files[:count]:
                if (state / name).is_dir():
                    (directory / name).mkdir()
                else:
                    (directory / name).write_bytes(b"torn")

        return leave

    return [left(count) for count in range(len(files) + 1)]


def test_an_interrupted_making_is_made_again(kept: Kept, expected: Any) -> None:
    whole = kept.directory / "whole"
    kept.state.rename(whole)
    for leave in steps_of_making(whole):
        shutil.rmtree(kept.state, ignore_errors=True)
        leave(kept.state)
        went_well(kept.run("--start-offset", "latest", epoch="5s"))
    shutil.rmtree(kept.state)
    whole.rename(kept.state)
    check_resumes(kept, expected)


def test_places_whose_making_was_interrupted_are_made_again(kept: Kept, expected: Any) -> None:
    """Before the first epoch: a name without database, a draft of one, an empty one."""
    shutil.rmtree(kept.state)
    shutil.rmtree(kept.directory / "bus")
    kept.publish(MESSAGES)
    assert kept.run_until(0)
    with closing(sqlite3.connect(kept.directory / RECOVERY)) as store, store:
        for table in ("exs", "fronts", "commits", "snaps"):
            store.execute(f"DELETE FROM {table}")
    (kept.state / "recovery" / CHECKSUMS).unlink()
    shutil.rmtree(kept.state / "input-0" / "db")
    (kept.state / "input-0" / ".db.new").mkdir()
    (kept.state / "input-1" / "ID").rename(kept.state / "input-1" / "ID.new")
    shutil.rmtree(kept.state / "input-2")
    (kept.state / "models").mkdir()
    assert kept.call("state", "state", "--verify").code == 0
    check_resumes(kept, expected)
