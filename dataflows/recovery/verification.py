"""Reads every file of a state directory, and verifies every checksum; nothing is changed."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from anabranch.dataflows.recovery.manifest import NAME, Manifest, is_state_directory, read_manifest
from anabranch.dataflows.recovery.resume_point import (
    read_resume_point,
    verify_recovery_store,
)
from anabranch.dataflows.recovery.start_offsets import START_OFFSETS, read_start_offsets
from anabranch.dataflows.recovery.state_partition import (
    DATABASE,
    INPUT,
    MODELS,
    WINDOWS,
    read_id,
)
from anabranch.dataflows.recovery.tokens import Token
from anabranch.models.registry.registry import Registry
from anabranch.state.errors import StateError, UnreadableError
from anabranch.state.store.lock import holder
from anabranch.state.store.read_only import ReadOnlyStore
from anabranch.state.store.rocksdb_files import verify_files

RECOVERY = "recovery"
"""The directory of the engine's recovery store in a state directory."""

_NAMES = re.compile(rf"{INPUT}-\d+|{WINDOWS}(-\d+)?|{MODELS}")
_ID = re.compile(r"[0-9a-f]{32}")
_ATTEMPTS, _PAUSE_S = 5, 0.5

Found = Iterator[tuple[Path, str]]


@dataclass(frozen=True, slots=True)
class Damage:
    """A damaged file, by its path within the state directory, and what is wrong with it."""

    file: str
    problem: str


def check_recovery_store(directory: Path, manifest: Manifest) -> None:
    """Raise unless a run can resume from the recovery store; before anything is published.

    Raises:
        StateError: it is damaged, or can't be read.
    """
    for file, why in verify_recovery_store(directory, manifest.layout, _partitions(manifest)):
        raise StateError(
            f"the recovery store {file} is damaged ({why}): restore {directory} from a backup, or "
            "start from scratch with another --state"
        )


def verify_state(path: Path) -> list[Damage]:
    """All damaged files of the state directory ``path``.

    A run may be using it: a file that it is just writing is looked at again.

    Raises:
        StateError: there is none, or a file can't be read.
    """
    if not is_state_directory(path):
        return []
    found = [*_settled(path, lambda: _manifest(path))]
    layout, partitions = 1, 0
    if not found:
        manifest = read_manifest(path)
        assert manifest is not None
        layout, partitions = manifest.layout, _partitions(manifest)
    damaged = _settled(path, lambda: _recovery(path / RECOVERY, layout, partitions))
    found += damaged

    def tokens() -> dict[str, Token]:
        return {} if damaged else read_resume_point(path / RECOVERY).tokens(layout)

    for directory in sorted([*path.glob("*"), *path.glob("layout-*/*")]):
        if _NAMES.fullmatch(directory.name):
            found += _settled(path, partial(_state_partition, directory, tokens))
    found += _settled(path, lambda: Registry.of(path).verify())
    return [Damage(str(file.relative_to(path)), why) for file, why in dict(found).items()]


def _settled(path: Path, verify: Callable[[], Found]) -> list[tuple[Path, str]]:
    """What ``verify`` finds, and finds again while a run may be writing there."""
    found = list(verify())
    for _ in range(_ATTEMPTS):
        if not found or holder(path) is None:
            break
        time.sleep(_PAUSE_S)
        found = list(verify())
    return found


def _manifest(path: Path) -> Found:
    try:
        read_manifest(path)
    except StateError as error:
        yield path / NAME, str(error)


def _partitions(manifest: Manifest) -> int:
    """How many input partitions must have a state here; with several hosts, it is unknown."""
    return manifest.first_partitions if manifest.hosts == 1 else 0


def _recovery(directory: Path, layout: int, partitions: int) -> Found:
    try:
        yield from verify_recovery_store(directory, layout, partitions)
    except UnreadableError:
        raise
    except StateError as error:
        yield directory, str(error)


def _state_partition(directory: Path, tokens: Callable[[], dict[str, Token]]) -> Found:
    try:
        own_id, token = read_id(directory), tokens().get(directory.name)
        if own_id is not None and not _ID.fullmatch(own_id):
            yield directory / "ID", "it is not an id"
        elif own_id is not None and token is not None and own_id != token.id:
            yield directory / "ID", "it is not the id that the recovery store has"
    except StateError as error:
        yield directory / "ID", str(error)
    try:
        read_start_offsets(directory / START_OFFSETS)
    except StateError as error:
        yield directory / START_OFFSETS, str(error)
    database = directory / DATABASE
    if not database.is_dir():
        return
    damaged = list(verify_files(database))
    yield from damaged
    if not damaged:
        try:
            yield from ((database, problem) for problem in ReadOnlyStore(database).verify())
        except UnreadableError:
            raise
        except StateError as error:
            yield database, str(error)
