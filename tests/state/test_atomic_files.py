"""A nearly full disk is reported before a write fails."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from anabranch.dataflows.recovery.state_partition import StatePartition
from anabranch.state.errors import StateError
from anabranch.state.store.atomic_files import check_free_space
from anabranch.state.store.delta import Delta
from anabranch.state.store.read_only import ReadOnlyStore


def disk(free: int, blocks: int = 1000) -> SimpleNamespace:
    """A disk with ``free`` blocks of a kilobyte, all of them reserved for root."""
    return SimpleNamespace(f_frsize=1024, f_blocks=blocks, f_bfree=free, f_bavail=0)


def test_free_space_is_compared(tmp_path: Path) -> None:
    check_free_space(tmp_path, 1)
    with pytest.raises(
        StateError, match=r"the disk is full: [\d,]+ bytes are left; free some space"
    ):
        check_free_space(tmp_path, 1 << 62)


def test_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="gone can't be read: No such file"):
        check_free_space(tmp_path / "gone", 1)


def test_blocks_reserved_for_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: disk(free=100))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    check_free_space(tmp_path, 1024)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(StateError, match="0 bytes are left"):
        check_free_space(tmp_path, 1024)


def test_a_disk_that_reports_no_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: disk(free=0, blocks=0))
    check_free_space(tmp_path, 1024)


def test_a_commit_leaves_space_for_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = StatePartition(tmp_path / "models")
    place.open(None)
    token = place.commit(Delta(blobs={"a": b"1"}))
    monkeypatch.setattr(os, "statvfs", lambda _: disk(free=1023))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(StateError, match="the disk is full: 1,047,552 bytes are left"):
        place.commit(Delta(blobs={"a": b"2"}))
    monkeypatch.undo()
    assert place.commit(Delta(blobs={"a": b"3"})).generation == token.generation + 1
    place.close()
    assert ReadOnlyStore(tmp_path / "models" / "db").image().blobs["a"] == b"3"
