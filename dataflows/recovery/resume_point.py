"""Where a run would go on from, as the engine's recovery store tells it.

The engine keeps one small SQLite file per recovery partition. It decides by itself where to resume;
this reads the same tables for those who ask beforehand: for a new layout of the windows, and for
``anabranch state``. But not in a process in which the engine is running: it brings its own SQLite,
and two of them in one process take each other's locks away.
"""

from __future__ import annotations

import pickle
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anabranch.dataflows.source.bus_source import PartitionState
from anabranch.state.errors import StateError

# As the engine does it (recovery.rs): the least of the frontiers that the workers of the last
# execution have come to, each at least the epoch at which that execution began.
_EXECUTIONS = "SELECT ex_num, worker_count, resume_epoch FROM exs"
_FRONTS = "SELECT ex_num, worker_index, worker_frontier FROM fronts"
_COMMITS = "SELECT commit_epoch FROM commits"
_SNAPS = """
SELECT step_id, state_key, ser_change, snap_epoch FROM snaps
WHERE snap_epoch < ? ORDER BY snap_epoch
"""
_UNCONFIRMED = "DELETE FROM snaps WHERE snap_epoch >= ?"
_PARTS = "SELECT part_index, part_count FROM parts"


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """The epoch at which the next run begins, and the states that its steps will be given.

    ``states`` are by step id and key, as the steps returned them from ``snapshot()``.
    """

    epoch: int
    states: dict[tuple[str, str], Any]

    def of_step(self, step: str) -> dict[str, Any]:
        """Key → state, of the step whose id ends in ``step``."""
        return {key: state for (name, key), state in self.states.items() if _is(name, step)}

    def partitions(self) -> list[tuple[int, PartitionState]]:
        """The states of the input partitions, by number."""
        found = [
            (int(key), state)
            for (_, key), state in self.states.items()
            if isinstance(state, PartitionState)
        ]
        return sorted(found, key=lambda each: each[0])


def read_resume_point(directory: Path) -> ResumePoint:
    """Read all recovery partitions of a directory; nothing is changed.

    Raises:
        StateError: there is none, or one can't be read.
    """
    files = recovery_files(directory)
    if not files:
        raise StateError(f"{directory} holds no recovery store")
    epoch = resume_epoch(files)
    states: dict[tuple[str, str], Any] = {}
    for file in files:
        for step, key, pickled, _ in _query(file, _SNAPS, epoch):
            states[step, key] = None if pickled is None else _load(file, pickled)
    return ResumePoint(epoch, states)


def check_alone(directory: Path) -> None:
    """Raise unless the only recovery partition of a single host is here.

    Raises:
        StateError: it is not, or others are, or it can't be read.
    """
    files = recovery_files(directory)
    if [row for file in files for row in _query(file, _PARTS)] != [(0, 1)]:
        raise StateError(
            f"the recovery store {directory} is not the one that was made here (it has "
            f"{', '.join(file.name for file in files) or 'no partition'}): restore it from a "
            "backup, or begin anew with another --state"
        )


def forget_unconfirmed(directory: Path) -> None:
    """Remove what a killed run has left of the epoch that it did not finish.

    The engine does not: it writes the states of an epoch first, and that it is finished
    afterwards. The next run begins that epoch anew; what it did not write anew by its end (a step
    that got nothing, a sink that wrote nothing) would later be taken from the killed run, as if it
    had been finished then. All recovery partitions must be here, and no run be going on.

    Raises:
        StateError: they can't be written.
    """
    files = recovery_files(directory)
    epoch = resume_epoch(files)
    for file in files:
        try:
            with closing(sqlite3.connect(file, timeout=10)) as connection, connection:
                connection.execute(_UNCONFIRMED, (epoch,))
        except sqlite3.Error as error:
            raise StateError(
                f"the recovery store {file} can't be written: {error}; make it writable"
            ) from None


def resume_epoch(files: list[Path]) -> int:
    """The epoch at which the next run begins; 1 when nothing was committed."""
    executions = [row for file in files for row in _query(file, _EXECUTIONS)]
    if not executions:
        return 1
    last, workers, began = max(executions)
    fronts = dict.fromkeys(range(workers), began)
    for execution, worker, front in (row for file in files for row in _query(file, _FRONTS)):
        if execution == last:
            fronts[worker] = max(front, fronts.get(worker, began))
    return int(min(fronts.values()))


def commits(files: list[Path]) -> int:
    """The last epoch that a partition here was told is no longer needed: at most one too small.

    On a cluster of several hosts each has only its part of the other tables.
    """
    return max((row[0] for file in files for row in _query(file, _COMMITS)), default=0)


def recovery_files(directory: Path) -> list[Path]:
    """The recovery partitions in a directory."""
    return sorted(directory.glob("part-*.sqlite3"))


def _query(file: Path, question: str, *values: int) -> list[tuple[Any, ...]]:
    try:
        with closing(sqlite3.connect(f"{_uri(file)}?mode=ro", uri=True, timeout=10)) as connection:
            return connection.execute(question, values).fetchall()
    except sqlite3.Error as error:
        raise StateError(
            f"the recovery store {file} can't be read ({error}): restore it from a backup, or "
            "begin anew with another --state"
        ) from None


def _load(file: Path, pickled: bytes) -> Any:
    """A state in a file that the engine has written on behalf of this program."""
    try:
        return pickle.loads(pickled)
    except Exception as error:
        raise StateError(
            f"the recovery store {file} is damaged ({error}): restore it "
            "from a backup, or begin anew with another --state"
        ) from None


def _uri(file: Path) -> str:
    return file.absolute().as_uri()  # its name may have a ? or a %


def _is(step_id: str, step: str) -> bool:
    return step in step_id.split(".")
