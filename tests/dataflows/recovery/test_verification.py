"""A flipped bit anywhere in a state directory is found, or changes nothing."""

from __future__ import annotations

import dataclasses
import random
import shutil
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from anabranch.dataflows.pipelines.loader import load_pipeline
from anabranch.dataflows.recovery.inspection import StateReport, inspect
from anabranch.dataflows.recovery.resume_point import CHECKSUMS, read_resume_point
from anabranch.dataflows.recovery.state_directory import StateDirectory
from anabranch.dataflows.recovery.verification import verify_state
from anabranch.models.registry.registry import Registry
from anabranch.state.errors import UnreadableError
from tests.support.checkpoint_pipeline import Kept, refused, trades, went_well
from tests.support.commands import caller
from tests.support.small_disk import make_read_only, make_writable, mounted


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a bus, a pipeline, its state, and a version in its registry."""
    directory = tmp_path_factory.mktemp("made")

    def call(*_: object) -> object:
        raise AssertionError

    kept = Kept(directory, call)  # type: ignore[arg-type]
    kept.declare()
    kept.publish(trades(120))
    kept.run_until(3, batch=20)
    assert not kept.run_until(10_000, batch=20)
    add_version(kept.state)
    return directory


def add_version(state: Path) -> None:
    from river import linear_model

    from anabranch.models.registry.version import Version

    about = Version(
        name="models",  # as a state partition is called
        made="import",
        made_ms=0,
        source="here",
        pipeline="p",
        task="regression",
        model="LinearRegression",
        declaration="",
        parameters={},
        columns=["a"],
        features="",
        versions={"river": "0.1"},
    )
    Registry.of(state).add(linear_model.LinearRegression(), about, distributions=b"x" * 500)


@pytest.fixture
def kept(made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Kept:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return Kept(tmp_path, caller(tmp_path, capfd))


def flipped(file: Path, chance: random.Random) -> int:
    """Flip a bit; returns the offset of its byte."""
    content = bytearray(file.read_bytes())
    at = chance.randrange(len(content))
    content[at] ^= 1 << chance.randrange(8)
    file.write_bytes(content)
    return at


def contents(state: Path) -> dict[str, object]:
    """What a run would resume from, and what is told of it."""
    report: StateReport = inspect(state)
    assert report.problems == []
    point = read_resume_point(state / "recovery")
    partitions = [msgspec.to_builtins(each) for _, each in point.partitions()]
    return {**dataclasses.asdict(report), "partitions": partitions, "states": point.states}


KINDS = {
    "recovery": "recovery/*.sqlite3",
    "checksums": f"recovery/{CHECKSUMS}",
    "manifest": "manifest.json",
    "id": "*/ID",
    "start offsets": "input-*/start_offsets.json",
    "windows": "layout-1/windows/db/*.[bs][ls][to]*",
    "description": "registry/*/1/about.json",
    "pickle": "registry/*/1/model.pickle",
    "distributions": "registry/*/1/distributions",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_found_or_changes_nothing(kept: Kept, kind: str) -> None:
    state, chance = kept.state, random.Random(kind)
    assert verify_state(state) == []
    before = contents(state)
    files = sorted(file for file in state.glob(KINDS[kind]) if file.stat().st_size)
    found = 0
    for _ in range(40):
        file = chance.choice(files)
        content = file.read_bytes()
        at = flipped(file, chance)
        damage = verify_state(state)
        if damage:
            found += 1
            if kind != "checksums":
                assert [each.file for each in damage] == [str(file.relative_to(state))], at
        else:
            assert contents(state) == before, (file, at)
        file.write_bytes(content)
    assert found >= 30
    assert verify_state(state) == []


def test_after_a_kill_a_flip_in_the_recovery_store_is_found_or_changes_nothing(kept: Kept) -> None:
    state, chance = kept.state, random.Random(3)
    (state / "recovery" / CHECKSUMS).unlink()
    before = contents(state)
    (file,) = (state / "recovery").glob("*.sqlite3")
    content = file.read_bytes()
    found = 0
    for _ in range(60):
        at = flipped(file, chance)
        if verify_state(state):
            found += 1
        else:
            assert contents(state) == before, at
        file.write_bytes(content)
    assert found


def test_all_that_is_damaged_is_listed(kept: Kept) -> None:
    chance = random.Random(1)
    files = [
        kept.state / "models" / "ID",
        kept.state / "registry" / "models" / "1" / "model.pickle",
        next((kept.state / "recovery").glob("*.sqlite3")),
        max((kept.state / "models" / "db").glob("*.sst"), key=lambda file: file.stat().st_size),
    ]
    files[0].write_bytes(b"\xff\xfe")
    for file in files[1:]:
        flipped(file, chance)
    done = kept.call("state", "state", "--verify")
    sentence = refused(done, "state is damaged", "and 1 more files")
    assert "restore all of it from one backup" in sentence
    for file in files:
        assert str(file.relative_to(kept.state)) in done.out
    done = kept.call("state", "state", "--verify", "--json")
    assert {each["file"] for each in msgspec.json.decode(done.out)["damage"]} == {
        str(file.relative_to(kept.state)) for file in files
    }


def test_a_run_refuses_a_damaged_recovery_store_before_it_publishes(kept: Kept) -> None:
    kept.publish(trades(150)[-60:])
    before = kept.outputs()
    chance = random.Random(7)
    (file,) = (kept.state / "recovery").glob("*.sqlite3")
    content = file.read_bytes()
    for _ in range(4):
        flipped(file, chance)
        refused(kept.run(), "recovery store", "is damaged", "backup")
        assert kept.outputs() == before
        file.write_bytes(content)
    went_well(kept.run())
    assert kept.outputs() != before
    assert verify_state(kept.state) == []


@pytest.mark.parametrize("place", ["models", "layout-1/windows", "input-1"])
def test_a_run_refuses_a_damaged_state_partition_before_it_publishes(
    kept: Kept, place: str
) -> None:
    kept.publish(trades(150)[-60:])
    before = kept.outputs()
    for file in (kept.state / place / "db").iterdir():
        if file.suffix in (".sst", ".blob", ".log") and file.stat().st_size:
            content = file.read_bytes()
            file.write_bytes(content[: len(content) // 2] + bytes(1) * (len(content) // 2))
    refused(kept.run(), place, "is damaged")
    assert kept.outputs() == before


@pytest.mark.parametrize(
    "name", ["manifest.json", "models/ID", "input-0/ID", "layout-1/windows/ID"]
)
def test_identity_that_is_not_text_is_one_sentence(kept: Kept, name: str) -> None:
    (kept.state / name).write_bytes(b"\xff\xfe\x00\xd8")
    for command in (("state", "state"), ("state", "state", "--verify")):
        refused(kept.call(*command), name, "damaged")
    refused(kept.run(), name, "damaged")


def test_nothing_is_written(kept: Kept, tmp_path: Path) -> None:
    """On a read-only file system, after a run that was killed too."""
    pipeline, bus = load_pipeline(str(kept.directory / "flow.py")), kept.open_bus()
    with StateDirectory.open(kept.state, pipeline, bus) as opened:
        token = read_resume_point(kept.state / "recovery").tokens(1)["models"]
        opened.models().open(token)
        shutil.copytree(kept.state, tmp_path / "killed")
    bus.close()
    with mounted(tmp_path / "disk", 64) as disk:
        for name in ("state", "killed"):
            shutil.copytree(tmp_path / name, disk / name)
        make_read_only(disk)
        try:
            for name in ("state", "killed"):
                assert verify_state(disk / name) == []
                assert inspect(disk / name).problems == []
                flipped_copy(disk / name, tmp_path / f"{name}-flipped")
                assert verify_state(tmp_path / f"{name}-flipped") != []
        finally:
            make_writable(disk)


def flipped_copy(state: Path, copy: Path) -> None:
    shutil.copytree(state, copy)
    flipped(max((copy / "models" / "db").glob("*.sst")), random.Random(5))


def test_a_full_disk_is_no_damage(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mounted(tmp_path / "disk", 8) as disk:
        shutil.copytree(kept.state, disk / "state")
        with suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
            while file.write(bytes(4096)) == 4096:
                pass
        monkeypatch.setattr("tempfile.tempdir", str(disk))
        with pytest.raises(UnreadableError) as refusal:
            inspect(disk / "state", verify=True)
        assert "restore" not in str(refusal.value)
        assert "make room" in str(refusal.value)
