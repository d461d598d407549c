"""Every checksum in RocksDB's files is verified, whichever byte is damaged."""

from __future__ import annotations

import random
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from anabranch.state.errors import StateError
from anabranch.state.store.delta import Delta, Rows
from anabranch.state.store.read_only import ReadOnlyStore
from anabranch.state.store.rocksdb_files import verify_files
from anabranch.state.store.store import Store


def delta(turn: int) -> Delta:
    """Some rows, and a large blob that RocksDB keeps in a file of blobs."""
    chance = np.random.default_rng(turn)
    rows = Rows(np.arange(200), {"row": chance.integers(0, 99, (200, 3))})
    return Delta(rows={"r": rows}, blobs={"large": chance.bytes(30_000), "small": b"x" * turn})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with tables and blob files that hold superseded records too, and a log."""
    path = tmp_path_factory.mktemp("made") / "db"
    for turn in range(1, 8):
        with Store(path, {"a": "b"}, retained=2) as store:
            store.commit(delta(2 * turn))
            store.commit(delta(2 * turn + 1))
            if turn == 7:
                shutil.copytree(path, path.with_name("killed"))  # its log has the last ones
    return path.with_name("killed")


@pytest.fixture
def database(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "db"))


def kinds(database: Path) -> dict[str, list[Path]]:
    return {
        kind: sorted(database.glob(pattern))
        for kind, pattern in (
            ("table", "*.sst"),
            ("blobs", "*.blob"),
            ("log", "*.log"),
            ("manifest", "MANIFEST-*"),
            ("current", "CURRENT"),
        )
    }


def test_undamaged_files_are_undamaged(database: Path) -> None:
    assert list(verify_files(database)) == []
    files = kinds(database)
    assert all(files.values())
    assert max(file.stat().st_size for file in files["table"]) > 1000


def image(database: Path) -> list[bytes]:
    """What the database holds."""
    whole = ReadOnlyStore(database).image()
    rows = [column.tobytes() for each in whole.rows.values() for column in each.columns.values()]
    return rows + [whole.blobs[name] for name in sorted(whole.blobs)]


@pytest.mark.parametrize("kind", ["table", "blobs", "log", "manifest", "current"])
def test_every_flip_is_found_or_changes_nothing(database: Path, kind: str) -> None:
    chance = random.Random(kind)
    before = image(database)
    harmless = 0
    for _ in range(150):
        file = chance.choice([file for file in kinds(database)[kind] if file.stat().st_size])
        content = file.read_bytes()
        at = chance.randrange(len(content))
        file.write_bytes(
            content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]
        )
        found = [path for path, _ in verify_files(database)]
        if found != [file]:
            harmless += 1
            with suppress(StateError):  # RocksDB itself finds it
                assert image(database) == before, (file, at)
        file.write_bytes(content)
    assert harmless <= 15, harmless
    assert kind in ("log", "current", "manifest") or harmless == 0


def test_a_flip_in_files_that_have_no_checksum_changes_nothing(database: Path) -> None:
    chance = random.Random(9)
    before = image(database)
    for pattern in ("OPTIONS-*", "IDENTITY", "rocksdict-config.json"):
        for _ in range(6):
            file = max(database.glob(pattern))
            content = bytearray(file.read_bytes())
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            file.write_bytes(content)
            with Store(database, {"a": "b"}, retained=2):
                pass
            assert image(database) == before
    assert list(verify_files(database)) == []


def test_truncated_and_missing_files_are_found(database: Path) -> None:
    for kind, files in kinds(database).items():
        file = files[-1]
        content = file.read_bytes()
        for size in {0, 7, len(content) // 2, len(content) - 1}:
            file.write_bytes(content[:size])
            found = list(verify_files(database))
            if kind in ("table", "blobs", "current"):
                assert [path for path, _ in found] == [file], (kind, size)
        file.write_bytes(content)
    assert list(verify_files(database)) == []
