"""The point from which a run would resume, according to the engine's recovery store.

The engine keeps one small SQLite file per recovery partition, and decides by itself where to
resume; this reads the same tables for those who ask beforehand: for rescaling, and for
``anabranch state``. Not in a process in which the engine is running: it brings its own SQLite, and
two of them in one process release each other's file locks.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from anabranch.dataflows.recovery.sealed_json import seal, unseal
from anabranch.dataflows.recovery.tokens import (
    BY_SHARD,
    MODELS_STEP,
    SINK,
    SOURCE,
    TOGETHER,
    PartitionState,
    Token,
    decode_partition,
    decode_sink,
    decode_token,
    decode_tokens,
)
from anabranch.state.errors import StateError, UnreadableError
from anabranch.state.store.atomic_files import atomic_write
from anabranch.state.store.sqlite_files import (
    is_damage,
    open_read_only,
    verify_log,
    verify_pages,
)

CHECKSUMS = "checksums.json"
"""The file with the checksums of the recovery store, while no run uses it."""

Decoded = TypeVar("Decoded")

# As the engine does it (recovery.rs): the least of the frontiers that the workers of the last
# execution have reached, each at least the epoch at which that execution started.
_EXECUTIONS = "SELECT ex_num, worker_count, resume_epoch FROM exs"
_FRONTS = "SELECT ex_num, worker_index, worker_frontier FROM fronts"
_COMMITS = "SELECT commit_epoch FROM commits"
_SNAPS = """
SELECT step_id, state_key, ser_change, snap_epoch FROM snaps
WHERE snap_epoch < ? ORDER BY snap_epoch
"""
_UNCONFIRMED = "DELETE FROM snaps WHERE snap_epoch >= ?"
_PARTS = "SELECT part_index, part_count FROM parts"
_TIMEOUT_S = 60  # for a lock that another process has for a moment, on a busy machine too


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """The epoch at which the next run starts, and the states that its steps will be given.

    Attributes:
        directory: of the recovery store.
        epoch: 1 when nothing was committed.
        states: by step id and key, as the steps returned them from ``snapshot()``.
    """

    directory: Path
    epoch: int
    states: dict[tuple[str, str], Any]

    def of_step(self, step: str) -> dict[str, Any]:
        """Key → state, of the step that was given this id in the dataflow."""
        # The engine's ids are FLOW.STEP, and FLOW.STEP.OPERATOR for operators made of others.
        return {
            key: state
            for (step_id, key), state in self.states.items()
            if step_id.split(".")[1:2] == [step]
        }

    def partitions(self) -> list[tuple[int, PartitionState]]:
        """The states of the input partitions, by number.

        Raises:
            StateError: the recovery store is damaged.
        """
        states = [
            (self._decode(int, key), self._decode(decode_partition, state))
            for key, state in self.of_step(SOURCE).items()
        ]
        return sorted(
            ((number, state) for number, state in states if state is not None),
            key=lambda each: each[0],
        )

    def tokens(self, layout: int) -> dict[str, Token]:
        """The token of each state partition that the next run resumes from, by its name.

        Raises:
            StateError: the recovery store is damaged.
        """
        tokens = [state.token for _, state in self.partitions()]
        for step in (BY_SHARD, MODELS_STEP):
            states = self.of_step(f"{step}_{layout}").values()
            tokens += [self._decode(decode_token, state) for state in states]
        for state in self.of_step(f"{TOGETHER}_{layout}").values():
            tokens += self._decode(decode_tokens, state)
        return {token.partition: token for token in tokens if token is not None}

    def verify(self, layout: int) -> None:
        """Decode all of it.

        Raises:
            StateError: the recovery store is damaged.
        """
        self.tokens(layout)
        for state in self.of_step(SINK).values():
            self._decode(decode_sink, state)

    def _decode(self, decode: Callable[[Any], Decoded], state: Any) -> Decoded:
        try:
            return decode(state)
        except (msgspec.MsgspecError, TypeError, ValueError) as error:
            raise _damaged(self.directory, error) from None


def read_resume_point(directory: Path) -> ResumePoint:
    """Read all recovery partitions of a directory; nothing is changed.

    Raises:
        StateError: there is none, or one can't be read.
    """
    files = recovery_files(directory)
    if not files:
        raise StateError(
            f"{directory} holds no recovery store: restore it from a backup, or start from "
            "scratch with another --state"
        )
    epoch = resume_epoch(files)
    states: dict[tuple[str, str], Any] = {}
    for file in files:
        for step, key, pickled, _ in _query(file, _SNAPS, epoch):
            states[step, key] = None if pickled is None else _load(file, pickled)
    return ResumePoint(directory, epoch, states)


def check_alone(directory: Path) -> None:
    """Raise unless the recovery store is the only partition of a single host.

    Raises:
        StateError: it is missing, or others are there, or it can't be read.
    """
    files = recovery_files(directory)
    if [row for file in files for row in _query(file, _PARTS)] != [(0, 1)]:
        raise StateError(
            f"the recovery store {directory} is not the one that was created here (it has "
            f"{', '.join(file.name for file in files) or 'no partition'}): restore it from a "
            "backup, or start from scratch with another --state"
        )


def forget_unconfirmed(directory: Path) -> None:
    """Remove what a killed run has left of the epoch that it did not finish.

    The engine does not: it writes the states of an epoch first, and that it is finished
    afterwards. The next run starts that epoch again; a state that it does not overwrite by its end
    (of a step that got nothing, a sink that wrote nothing) would later be taken from the killed
    run, as if it had been finished then. All recovery partitions must be here, and no run active.

    Raises:
        StateError: they can't be written.
    """
    files = recovery_files(directory)
    epoch = resume_epoch(files)
    for file in files:
        try:
            with closing(sqlite3.connect(file, timeout=_TIMEOUT_S)) as connection, connection:
                connection.execute(_UNCONFIRMED, (epoch,))
        except sqlite3.Error as error:
            raise StateError(
                f"the recovery store {file} can't be written: {error}; make it writable"
            ) from None


def resume_epoch(files: list[Path]) -> int:
    """The epoch at which the next run starts; 1 when nothing was committed."""
    executions = [row for file in files for row in _query(file, _EXECUTIONS)]
    if not executions:
        return 1
    last, workers, start = max(executions)
    frontiers = dict.fromkeys(range(workers), start)
    for execution, worker, frontier in (row for file in files for row in _query(file, _FRONTS)):
        if execution == last:
            frontiers[worker] = max(frontier, frontiers.get(worker, start))
    return int(min(frontiers.values()))


def commits(files: list[Path]) -> int:
    """The last epoch that these partitions know to be no longer needed; it may lag by one.

    On a cluster of several hosts each has only its part of the other tables.
    """
    return max((row[0] for file in files for row in _query(file, _COMMITS)), default=0)


def recovery_files(directory: Path) -> list[Path]:
    """The recovery partitions in a directory."""
    return sorted(directory.glob("part-*.sqlite3"))


def verify_recovery_store(
    directory: Path, layout: int, partitions: int = 0
) -> Iterator[tuple[Path, str]]:
    """Each damaged file of the recovery store, and what is wrong with it.

    All states of at least so many input ``partitions`` must be there, unless none are.

    Raises:
        StateError: there is none, or it can't be read now.
    """
    files, found = recovery_files(directory), False
    checksums = _read_checksums(directory)
    for file in files:
        why = _wrong(file, checksums)
        if why is not None:
            found = True
            yield file, why
    if found:
        return
    point = read_resume_point(directory)
    point.verify(layout)
    recorded = len(point.partitions())
    if 0 < recorded < partitions:
        yield directory, f"it has {recorded} of {partitions} input partitions"


def _wrong(file: Path, checksums: dict[str, Any]) -> str | None:
    """What is wrong with a file; None if nothing is."""
    with _reading(file) as connection:
        why = verify_pages(connection) or verify_log(file)
    if why is None and not _log_of(file).exists():
        expected = checksums.get(file.name)
        if expected is not None and expected != _sha256(file):
            why = "it is not as the last run has left it"
    return why


def write_checksums(directory: Path) -> None:
    """Record the recovery store as a run leaves it: SQLite has no checksums of its own.

    Raises:
        StateError: it can't be written.
    """
    files = recovery_files(directory)
    sums = {file.name: _sha256(file) for file in files if not _log_of(file).exists()}
    atomic_write(directory / CHECKSUMS, seal(sums))


def forget_checksums(directory: Path) -> None:
    """Before the recovery store is written to.

    Raises:
        StateError: the directory can't be written.
    """
    try:
        (directory / CHECKSUMS).unlink(missing_ok=True)
    except OSError as error:
        raise StateError(f"{directory} can't be written: {error.strerror}") from None


def _read_checksums(directory: Path) -> dict[str, Any]:
    """By file name; empty while a run uses it, or when the last one was killed."""
    path = directory / CHECKSUMS
    try:
        return unseal(path.read_bytes(), path)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StateError(f"{path} can't be read: {error.strerror}") from None


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _log_of(file: Path) -> Path:
    """The write-ahead log, whose contents whoever opens the file next may move into it."""
    return file.with_name(f"{file.name}-wal")


class _PlainUnpickler(pickle.Unpickler):
    """Loads values of plain types alone: steps hand nothing else to the engine."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _query(file: Path, query: str, *values: int) -> list[tuple[Any, ...]]:
    with _reading(file) as connection:
        return connection.execute(query, values).fetchall()


@contextmanager
def _reading(file: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a recovery partition; errors are those of the user."""
    try:
        with open_read_only(file, _TIMEOUT_S) as connection:
            yield connection
    except sqlite3.Error as error:
        if is_damage(error):
            raise _damaged(file, error) from None
        raise UnreadableError(
            f"the recovery store {file} can't be read now ({error}): check that the disk is not "
            "full, its permissions, and that no other process has locked it"
        ) from None
    except OSError as error:
        raise UnreadableError(
            f"the recovery store {file} can't be read: {error.strerror}"
        ) from None


def _load(file: Path, pickled: bytes) -> Any:
    try:
        return _PlainUnpickler(io.BytesIO(pickled)).load()
    except Exception as error:
        raise _damaged(file, error) from None


def _damaged(path: Path, error: Exception) -> StateError:
    return StateError(
        f"the recovery store {path} is damaged ({error}): restore it from a backup, or start from "
        "scratch with another --state"
    )
