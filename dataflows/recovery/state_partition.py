"""One state partition: the durable state of a step, of one shard of it, or of an input partition.

The engine keeps only a token of each state partition; the contents are in a database of its own, so
that a shard moves to another host by moving its directory::

    layout-1/windows-3/ID    distinguishes it from another one of the same name
                      /db    the generations (`state.store.store`)
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from anabranch.dataflows.error_guard import ErrorGuard
from anabranch.dataflows.recovery.sealed_json import damaged
from anabranch.dataflows.recovery.tokens import Commit, Token
from anabranch.state.errors import StateError
from anabranch.state.store.atomic_files import atomic_write, check_free_space
from anabranch.state.store.delta import Delta
from anabranch.state.store.permissions import make_private_directory
from anabranch.state.store.read_only import ReadOnlyStore
from anabranch.state.store.store import Store

DATABASE = "db"
INPUT = "input"
"""What the state partitions of input partitions are called: ``input-0`` and so on."""

MODELS = "models"
"""The name of the state partition of models, their metrics and pending predictions."""

WINDOWS = "windows"
"""The name of the state partition of all windows, and what those of single shards begin with."""

_ID = "ID"
# Disk space that a commit leaves to the engine, which panics if it can't write its tokens.
_RESERVED_BYTES = 1 << 20
_MAX_AHEAD = 3  # generations that a state partition can be ahead of the engine's last commit
_RETAINED = 8


def windows_partition(shard: int | None) -> str:
    """The name of the state partition with a shard's windows; None: with those of all keys."""
    return WINDOWS if shard is None else f"{WINDOWS}-{shard}"


class StatePartition:
    """A directory with the state of one step: opened at a token, then committed to.

    Args:
        directory: created when it is opened without a token.
        guard: keeps errors for the user.
        on_commit: called after each commit.
    """

    def __init__(
        self,
        directory: Path,
        guard: ErrorGuard | None = None,
        on_commit: Callable[[Commit], None] | None = None,
    ) -> None:
        self.name = directory.name
        self._directory = directory
        self._guard = guard
        self._on_commit = on_commit
        self._store: Store | None = None
        self._id = ""

    def open(self, token: Token | None) -> Delta:
        """Roll back to the token's generation and return all of it.

        Without a token nothing was committed yet: the result is empty, or what `initialize` wrote.

        Raises:
            StateError: the directory is missing, belongs to another state, or is damaged.
        """
        return self._guard.call(self._open, token) if self._guard else self._open(token)

    def commit(self, delta: Delta) -> Token:
        """Write the next generation and return its token.

        Raises:
            StateError: it can't be written.
        """
        return self._guard.call(self._commit, delta) if self._guard else self._commit(delta)

    def initialize(self, image: Delta) -> None:
        """Write what `open` returns without a token; before anything is committed.

        Raises:
            StateError: it can't be written.
        """
        self._open(None)
        assert self._store is not None
        self._store.commit(image)
        self._store.adopt()

    def adopt(self) -> None:
        """Make the current generation the one that `open` returns without a token."""
        assert self._store is not None
        self._store.adopt()

    def close(self) -> None:
        """Close the database; idempotent."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def _open(self, token: Token | None) -> Delta:
        directory = self._directory
        if token is not None:
            own_id = _check_id(directory, token)
        else:
            own_id = read_id(directory) or _create(directory)
        self._id = own_id
        store = self._store = Store(
            directory / DATABASE, {"partition": self.name}, retained=_RETAINED
        )
        if token is not None:
            return store.restore(token.generation)
        if store.generation > store.summary().adopted + _MAX_AHEAD:
            ahead = store.generation
            self.close()
            raise _unknown_generations(directory, ahead)
        return store.restore(None)

    def _commit(self, delta: Delta) -> Token:
        assert self._store is not None
        check_free_space(self._directory, _RESERVED_BYTES)
        started = time.perf_counter()
        token = Token(self.name, self._id, self._store.commit(delta))
        if self._on_commit is not None:
            seconds = time.perf_counter() - started
            self._on_commit(Commit(self.name, seconds, size_of(self._directory)))
        return token


def check_state_partition(directory: Path, token: Token | None) -> None:
    """Raise if `StatePartition.open` would refuse, or could not roll back; nothing is changed.

    Checked for all of them before the first is opened, since a rollback can't be undone.

    Raises:
        StateError: see `StatePartition.open`.
    """
    if token is not None:
        _check_id(directory, token)
    elif not (directory / DATABASE).exists():
        return
    stored = ReadOnlyStore(directory / DATABASE).summary()
    if token is None:
        if stored.generation > stored.adopted + _MAX_AHEAD:
            raise _unknown_generations(directory, stored.generation)
        return
    oldest = max(stored.generation - _RETAINED, stored.adopted)
    in_reach = oldest <= token.generation <= stored.generation
    if token.generation != stored.adopted and not in_reach:
        older = directory if token.generation > stored.generation else "the recovery store"
        raise StateError(
            f"{directory} is at generation {stored.generation}, and the recovery store expects "
            f"generation {token.generation} of it: {older} is from an older backup; restore both "
            "from one backup, or start from scratch with another --state"
        )


def read_id(directory: Path) -> str | None:
    """The id of the state partition in ``directory``; None when there is none.

    Raises:
        StateError: it can't be read.
    """
    try:
        return (directory / _ID).read_text("utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise damaged(directory / _ID, "it is not text") from None
    except OSError as error:
        raise StateError(f"{directory} can't be read: {error.strerror}") from None


def _check_id(directory: Path, token: Token) -> str:
    own_id = read_id(directory)
    if own_id is None or not (directory / DATABASE).exists():
        raise StateError(
            f"{directory} is missing, and the recovery store expects generation "
            f"{token.generation} of it: bring it back (in a cluster, from the host that had "
            "it), or start from scratch with another --state"
        )
    if own_id != token.id:
        raise StateError(
            f"{directory} belongs to another state than the recovery store does: restore both "
            "from one backup, or start from scratch with another --state"
        )
    return own_id


def _unknown_generations(directory: Path, ahead: int) -> StateError:
    return StateError(
        f"{directory} holds {ahead} generations that the recovery store does not know: restore "
        "both from one backup, or start from scratch with another --state"
    )


def _create(directory: Path) -> str:
    """Make the directory with a new id."""
    own_id = uuid.uuid4().hex
    try:
        make_private_directory(directory)
    except OSError as error:
        raise StateError(f"{directory} can't be created: {error.strerror}") from None
    atomic_write(directory / _ID, own_id.encode())
    return own_id


def size_of(directory: Path) -> int:
    """Bytes of all files below a directory; files that disappear meanwhile are not counted."""
    total, pending = 0, [str(directory)]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue
    return total
