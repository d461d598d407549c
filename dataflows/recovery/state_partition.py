"""One place of state: where a step, a shard or an input partition keeps what it remembers.

The engine keeps only a token of each place; the contents are in a database of its own, so that a
shard can be moved to another host by moving its directory::

    layout-1/windows-3/NAME    who this place is: the token must know it
                      /db      the generations (`state.store.store`)
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from anabranch.dataflows.error_guard import Guard
from anabranch.state.errors import StateError
from anabranch.state.store.atomic_files import atomic_write, check_free_space
from anabranch.state.store.delta import Delta
from anabranch.state.store.read_only import ReadOnlyStore
from anabranch.state.store.store import Store

_NAME, DATABASE = "NAME", "db"
# What a commit leaves to the engine, whose own failure to write its tokens would be a panic.
_LEAST_ROOM = 1 << 20
_AHEAD = 3  # generations that a place can be ahead of the engine's last commit
_RETAINED = 8


WINDOWS = "windows"
"""What the places of windows are called, or begin with."""


def windows_of(shard: int | None) -> str:
    """The name of the place of a shard's windows; None: of all keys."""
    return WINDOWS if shard is None else f"{WINDOWS}-{shard}"


@dataclass(frozen=True, slots=True)
class Token:
    """What the engine keeps of a place: its name, which one of that name, and how far it was."""

    place: str
    id: str
    generation: int


@dataclass(frozen=True, slots=True)
class Committed:
    """A commit of a place: how long it took, and the bytes that its files take now."""

    place: str
    seconds: float
    disk_bytes: int


class Place:
    """A directory with the state of one step; opened at a token, then committed to.

    ``guard`` keeps errors for the user, ``on_commit`` is told of each commit.
    """

    def __init__(
        self,
        directory: Path,
        guard: Guard | None = None,
        on_commit: Callable[[Committed], None] | None = None,
    ) -> None:
        self.name = directory.name
        self._directory = directory
        self._guard = guard
        self._on_commit = on_commit
        self._store: Store | None = None
        self._id = ""

    def open(self, token: Token | None) -> Delta:
        """Go back to what the token stands for, and return all of it; None: nothing was committed.

        Raises:
            StateError: the directory is not there, of another state, or damaged.
        """
        return self._guard.call(self._open, token) if self._guard else self._open(token)

    def commit(self, delta: Delta) -> Token:
        """Write a generation; the token that stands for it.

        Raises:
            StateError: the disk does not take it.
        """
        return self._guard.call(self._commit, delta) if self._guard else self._commit(delta)

    def begin_with(self, delta: Delta) -> None:
        """Write an image as what is there before anything is committed.

        Raises:
            StateError: the disk does not take it.
        """
        self._open(None)
        assert self._store is not None
        self._store.commit(delta)
        self._store.adopt()

    def adopt(self) -> None:
        """What is there now is what the engine knows nothing of: `open` without token finds it."""
        assert self._store is not None
        self._store.adopt()

    def close(self) -> None:
        """Let go of the database; idempotent."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def _open(self, token: Token | None) -> Delta:
        directory = self._directory
        if token is None:
            found = read_id(directory)
            if found is None:
                found = uuid.uuid4().hex
                _make(directory, found)
        else:
            found = _check_id(directory, token)
        self._id = found
        store = self._store = Store(directory / DATABASE, {"place": self.name}, retained=_RETAINED)
        if token is not None:
            return store.restore(token.generation)
        if store.generation > store.summary().adopted + _AHEAD:
            ahead = store.generation
            self.close()
            raise _unknown(directory, ahead)
        return store.restore(None)

    def _commit(self, delta: Delta) -> Token:
        assert self._store is not None
        check_free_space(self._directory, _LEAST_ROOM)
        began = time.perf_counter()
        token = Token(self.name, self._id, self._store.commit(delta))
        if self._on_commit is not None:
            seconds = time.perf_counter() - began
            self._on_commit(Committed(self.name, seconds, size_of(self._directory)))
        return token


def check_place(directory: Path, token: Token | None) -> None:
    """Raise if `Place.open` would refuse, or could not go back; nothing is changed.

    Asked for all places before the first one is opened: going back is for good.

    Raises:
        StateError: see `Place.open`.
    """
    if token is not None:
        _check_id(directory, token)
    elif not (directory / DATABASE).exists():
        return
    kept = ReadOnlyStore(directory / DATABASE).summary()
    if token is None:
        if kept.generation > kept.adopted + _AHEAD:
            raise _unknown(directory, kept.generation)
        return
    oldest = max(kept.generation - _RETAINED, kept.adopted)
    if token.generation != kept.adopted and not oldest <= token.generation <= kept.generation:
        older = directory if token.generation > kept.generation else "the recovery store"
        raise StateError(
            f"{directory} is at generation {kept.generation}, and the recovery store at "
            f"{token.generation} of it: {older} is from an older backup; restore both from one, or "
            "begin anew with another --state"
        )


def read_id(directory: Path) -> str | None:
    """Who the place in ``directory`` is; None when there is none.

    Raises:
        StateError: it can't be read.
    """
    try:
        return (directory / _NAME).read_text()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"{directory} can't be read: {error.strerror}") from None


def _check_id(directory: Path, token: Token) -> str:
    found = read_id(directory)
    if found is None or not (directory / DATABASE).exists():
        raise StateError(
            f"{directory} is not there, and the recovery store expects generation "
            f"{token.generation} of it: bring it back (in a cluster, from the host that had "
            "it), or begin anew with another --state"
        )
    if found != token.id:
        raise StateError(
            f"{directory} belongs to another state than the recovery store does: restore both "
            "from one backup, or begin anew with another --state"
        )
    return found


def _unknown(directory: Path, ahead: int) -> StateError:
    return StateError(
        f"{directory} holds {ahead} generations that the recovery store knows nothing of: "
        "restore both from one backup, or begin anew with another --state"
    )


def _make(directory: Path, found: str) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StateError(f"{directory} can't be made: {error.strerror}") from None
    atomic_write(directory / _NAME, found.encode())


def size_of(directory: Path) -> int:
    """Bytes of all files in it; what is gone meanwhile does not count."""
    total, left = 0, [str(directory)]
    while left:
        try:
            with os.scandir(left.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        left.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue
    return total
