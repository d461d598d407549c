"""The registry on disk: whole versions, numbers, bounds; beside others, and when it is damaged."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from river import linear_model

from anabranch.models.learners.learner import Task
from anabranch.models.registry.registry import Registry
from anabranch.models.registry.version import Span, Version, finite, parse_reference, seal, unseal
from anabranch.state.errors import InputError, StateError
from tests.support.registered_models import about, learned, references, river_of
from tests.support.small_disk import mounted

LOGREG = linear_model.LogisticRegression


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.of(tmp_path / "state")


def add(registry: Registry, times: int = 1, name: str = "m", keep: int = 100) -> Version:
    model = river_of(learned(LOGREG(), Task.BINARY))
    return [registry.add(model, about(model, name), keep) for _ in range(times)][-1]


def test_versions_are_numbered_by_name_and_listed(registry: Registry) -> None:
    assert registry.list() == []
    for name in ("b", "a", "b"):
        add(registry, name=name)
    assert references(registry.list()) == ["a@1", "b@1", "b@2"]
    assert references(registry.list("b")) == ["b@1", "b@2"]
    assert registry.get("b").version == 2
    assert registry.find("b@1") == registry.get("b", 1)
    told = registry.find("a")
    assert told.weights["a"] == pytest.approx(registry.load(told).weights["a"], abs=0)
    assert told.bytes == len(registry.pickle(told))
    assert registry.problems() == []


@pytest.mark.parametrize("reference", ["c", "a@2", "c@1"])
def test_a_missing_version_is_a_sentence_that_lists_the_others(
    registry: Registry, reference: str
) -> None:
    with pytest.raises(InputError, match="it has none; see `anabranch models snapshot --help`"):
        registry.find(reference)
    add(registry, name="a")
    with pytest.raises(InputError, match=f"there is no model '{reference}' in .*: it has a@1"):
        registry.find(reference)


@pytest.mark.parametrize("text", ["", "@1", "a@", "a@0", "a@x", "a b", "../a", "a/b@1", "a@1@2"])
def test_text_that_does_not_name_a_model_is_refused(text: str, registry: Registry) -> None:
    with pytest.raises(InputError, match="write NAME@VERSION"):
        parse_reference(text)
    if "@" not in text:
        with pytest.raises(InputError, match="can't be used"):
            add(registry, name=text)


def test_the_newest_and_the_pinned_versions_are_kept(registry: Registry) -> None:
    first = add(registry)
    registry.pin(first)
    add(registry, times=11, keep=4)
    add(registry, name="other")
    assert references(registry.list("m")) == ["m@1", "m@9", "m@10", "m@11", "m@12"]
    assert sorted(each.name for each in (registry.path / "m").iterdir()) == [
        "1", "10", "11", "12", "9",
    ]  # fmt: skip
    assert add(registry, keep=1).version == 13
    assert references(registry.list()) == ["m@1", "m@13", "other@1"]


def _add_many(path: Path, times: int, keep: int) -> None:
    for _ in range(times):
        add(Registry(path), keep=keep)


@pytest.mark.parametrize(("keep", "left"), [(100, 24), (3, 3)])
def test_two_processes_at_once_lose_nothing_and_stay_bounded(
    registry: Registry, keep: int, left: int
) -> None:
    context = multiprocessing.get_context("spawn")  # a fork would take locks of other threads along
    both = [context.Process(target=_add_many, args=(registry.path, 12, keep)) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()
        assert each.exitcode == 0
    found = registry.list()
    assert [each.version for each in found] == list(range(25 - left, 25))
    assert registry.problems() == []
    assert all(each.bytes == len(registry.pickle(each)) for each in found)


def test_a_reader_beside_a_writer_sees_complete_versions(registry: Registry) -> None:
    add(registry)
    done = threading.Event()

    def write() -> None:
        for _ in range(40):
            add(registry, keep=2)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    looks, refusals = 0, set[str]()
    while not done.is_set():
        assert registry.problems() == []
        newest = registry.get("m")
        try:
            assert len(registry.pickle(newest)) == newest.bytes
        except StateError as error:
            refusals.add(str(error)[-21:])
        looks += 1
    writer.join()
    assert looks > 5
    assert refusals <= {"was removed meanwhile"}


def test_a_reader_retries_when_all_versions_are_replaced(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(registry)
    read = registry._read

    def read_late(name: str, number: int) -> Version | None:
        if number == 1:
            add(registry, keep=1)  # which removes what is about to be read
        return read(name, number)

    monkeypatch.setattr(registry, "_read", read_late)
    assert registry.get("m").version == 2
    with pytest.raises(InputError, match="there is no model 'n'"):
        registry.get("n")


def test_leftovers_of_a_killed_writer_are_ignored_and_removed(registry: Registry) -> None:
    add(registry)
    home = registry.path / "m"
    shutil.copytree(home / "1", home / ".draft-dead")
    shutil.copytree(home / "1", home / ".draft-alive")
    shutil.copytree(home / "1", home / ".gone-dead")
    for each in home.glob(".*-dead"):
        os.utime(each, (time.time() - 7200,) * 2)
    assert references(registry.list()) == ["m@1"]
    assert registry.problems() == []
    add(registry)
    assert sorted(each.name for each in home.iterdir()) == [".draft-alive", "1", "2"]


def damaged(path: Path) -> list[bytes]:
    """Ways in which a file can be damaged."""
    content = path.read_bytes()
    half = len(content) // 2
    flipped = bytearray(content)
    flipped[half] ^= 1
    return [b"", content[:half], bytes(flipped), b"\x00" * len(content), content[:-2]]


def test_a_damaged_description_is_named_and_affects_no_other_version(registry: Registry) -> None:
    add(registry, times=3)
    path = registry.path / "m" / "2" / "about.json"
    whole = path.read_bytes()
    for content in damaged(path):
        path.write_bytes(content)
        with pytest.raises(StateError, match=r"m/2/about.json is damaged.*backup, or remove"):
            registry.find("m@2")
        assert references(registry.list()) == ["m@1", "m@3"]
        assert len(registry.problems()) == 1
    path.unlink()
    with pytest.raises(StateError, match="can't be read"):
        registry.find("m@2")
    path.write_bytes(whole)
    assert registry.problems() == []
    assert add(registry).version == 4


def test_any_change_of_a_description_is_detected(registry: Registry) -> None:
    path = registry.path / "m" / "1" / "about.json"
    add(registry)
    told = json.loads(path.read_bytes())
    for field, value in (("rows", 7), ("name", "x"), ("sha256", "0"), ("columns", ["b", "a"])):
        path.write_text(json.dumps({**told, "about": {**told["about"], field: value}}))
        with pytest.raises(StateError, match="its checksum does not match"):
            registry.get("m")
    path.write_text(json.dumps({**told, "format": 9}))
    with pytest.raises(StateError, match="of format 9"):
        registry.get("m")
    path.write_text(json.dumps(told))  # laid out otherwise, and the same
    assert registry.get("m").version == 1


def test_a_damaged_pickle_is_not_unpickled(registry: Registry) -> None:
    version = add(registry)
    path = registry.path / "m" / "1" / "model.pickle"
    for content in damaged(path):
        path.write_bytes(content)
        with pytest.raises(StateError, match=r"is damaged \(its checksum does not match\)"):
            registry.load(version)
    path.write_bytes(b"")
    assert "m/1/model.pickle is incomplete" in registry.problems()[0]
    path.unlink()
    with pytest.raises(StateError, match="can't be read"):
        registry.load(version)


def test_a_version_copied_without_the_registry_is_refused(registry: Registry) -> None:
    add(registry)
    shutil.copytree(registry.path / "m" / "1", registry.path / "m" / "5")
    with pytest.raises(StateError, match=r"describes m@1, not m@5"):
        registry.get("m")
    assert add(registry).version == 6


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_another_river_is_refused_before_anything_is_unpickled(
    registry: Registry, tmp_path: Path
) -> None:
    model = LOGREG()
    trap, told = pickle.dumps(Trap(tmp_path / "sprung")), about(model)
    others: list[dict[str, str]] = [{**told.versions, "river": "0.1.0"}, {}]
    for versions in others:
        version = registry.add_pickle(trap, msgspec.structs.replace(told, versions=versions))
        with pytest.raises(StateError, match=r"was written with river .*is installed: install"):
            registry.load(version)
        assert references(registry.list())[-1] == version.reference
    assert not (tmp_path / "sprung").exists()
    registry.load(registry.add_pickle(trap, told))
    assert (tmp_path / "sprung").exists()  # so the trap works


def test_a_version_is_copied_once_with_its_source(registry: Registry, tmp_path: Path) -> None:
    version = add(registry, times=2)
    other = Registry.of(tmp_path / "other")
    copied = other.copy(registry, version)
    assert (copied.reference, copied.made) == ("m@1", "copy")
    assert copied.source == f"m@2 of {registry.path}"
    assert other.pickle(copied) == registry.pickle(version)
    assert other.copy(registry, version) == copied


def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    with mounted(tmp_path / "disk", 64) as disk:
        registry = Registry.of(disk / "state")
        add(registry)
        model = LOGREG()
        with pytest.raises(StateError, match="can't be written: No space left"):
            registry.add_pickle(bytes(70 << 20), about(model))
        assert sorted(each.name for each in (registry.path / "m").iterdir()) == ["1"]
        assert add(registry).version == 2


TEXT = st.text(max_size=8)
NUMBER = st.floats(allow_nan=True, allow_infinity=True)


@given(
    st.dictionaries(TEXT, NUMBER, max_size=4),
    st.lists(st.builds(Span, TEXT, st.integers(0, 99), st.none() | st.integers(0, 2**62),
                       st.integers(0, 2**62)), max_size=3),
    st.none() | st.integers(0, 2**62),
    TEXT,
)  # fmt: skip
def test_unseal_reverses_seal(
    numbers: dict[str, float], spans: list[Span], rows: int | None, note: str
) -> None:
    told = about(LOGREG(), weights=finite(numbers), trained_on=spans, rows=rows, note=note)
    assert unseal(seal(told), "here") == told
