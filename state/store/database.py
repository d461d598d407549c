"""The RocksDB database of a state partition: options, creation, and error messages.

Values are in RocksDB's blob files, so that its own compaction moves keys alone: `compaction`
decides what is rewritten. A database is created beside its path and renamed, so that a kill leaves
a complete one or none.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rocksdict import (
    AccessType,
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    DBRecoveryMode,
    Options,
    Rdict,
    WriteBufferManager,
    WriteOptions,
)

from anabranch.state.errors import StateError, UnreadableError
from anabranch.state.store.atomic_files import sync_directory
from anabranch.state.store.permissions import make_private_directory

WRITE_BUFFER = 8 << 20
_BUFFERS_OF_PROCESS = 128 << 20
_LOG_BYTES = 256 << 10
_CURRENT = "CURRENT"  # RocksDB's own: a directory with it is a database
# Only `set_options` accepts these. Values below 4 KiB stay with the keys.
_BLOB_OPTIONS = {
    "enable_blob_files": "true",
    "min_blob_size": "4096",
    "blob_compression_type": "kLZ4Compression",
}
# Shared by all databases of the process.
_cache = Cache(16 << 20)
_buffers = WriteBufferManager(_BUFFERS_OF_PROCESS, False)

SYNCED = WriteOptions()
SYNCED.sync = True
UNSYNCED = WriteOptions()


def open_database(path: Path) -> Rdict:
    """Open the database at ``path`` for this process alone.

    Raises:
        StateError: there is none, it is in use, damaged or unreadable.
    """
    with disk_errors(path, "opened"):
        database = Rdict(str(path), _options())
        database.set_options(_BLOB_OPTIONS)
        return database


def open_read_only(path: Path, view: Path) -> Rdict:
    """Open a snapshot of the database at ``path``, which another process may be writing.

    Nothing is written there: rocksdict writes a file into a directory whenever it opens it, and
    would leave that empty if the disk is full. So ``view``, which does not exist yet, becomes a
    directory with links to the files, and is what is opened.
    """
    if not (path / _CURRENT).is_file():
        raise StateError(f"there is no state at {path}: check the path")
    with disk_errors(path, "read", view):
        view.mkdir()
        # The manifest first: what it refers to later is not there yet.
        manifest = (path / _CURRENT).read_text().strip()
        for name in (_CURRENT, manifest):
            shutil.copyfile(path / name, view / name)
        for file in path.iterdir():
            if file.suffix in (".sst", ".blob", ".log"):
                (view / file.name).symlink_to(file.absolute())
        return Rdict(str(view), _options(), access_type=AccessType.read_only(False))


def create_database(path: Path, root: tuple[bytes, bytes]) -> None:
    """Create a database that contains ``root`` at ``path``, unless there is one.

    Raises:
        StateError: something else is there, or it can't be written.
    """
    if (path / _CURRENT).is_file():
        return
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise StateError(
            f"{path} is not a state, or is damaged: it has no file {_CURRENT}; "
            "name another directory, or remove this one to start from scratch"
        )
    with disk_errors(path, "created"):
        make_private_directory(path.parent)
        with _exclusive(path.parent):
            if not (path / _CURRENT).is_file():
                _create(path, root)


def _create(path: Path, root: tuple[bytes, bytes]) -> None:
    draft = path.with_name(f".{path.name}.new")
    shutil.rmtree(draft, ignore_errors=True)  # left by a killed process
    options = _options()
    options.create_if_missing(True)
    database = Rdict(str(draft), options)
    try:
        database.put(*root, write_opt=SYNCED)
    finally:
        database.close()
    draft.replace(path)
    sync_directory(path.parent)


@contextmanager
def _exclusive(directory: Path) -> Iterator[None]:
    """Only one process at a time creates a database in a directory."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _options() -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(False)
    options.set_paranoid_checks(True)
    options.set_wal_recovery_mode(DBRecoveryMode.point_in_time())
    options.set_compression_type(DBCompressionType.lz4())
    options.set_write_buffer_size(WRITE_BUFFER)
    options.set_max_write_buffer_number(4)  # so a commit does not wait for a merge to be flushed
    options.set_write_buffer_manager(_buffers)
    options.set_level_zero_file_num_compaction_trigger(2)
    options.set_max_background_jobs(2)
    options.set_max_open_files(20)  # RocksDB's minimum; a process has 1,024
    options.set_max_manifest_file_size(1 << 20)
    options.set_manifest_preallocation_size(64 << 10)
    options.set_keep_log_file_num(1)
    options.set_max_log_file_size(_LOG_BYTES)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    blocks = BlockBasedOptions()
    blocks.set_block_cache(_cache)
    options.set_block_based_table_factory(blocks)
    return options


@contextmanager
def disk_errors(path: Path, action: str, view: Path | None = None) -> Iterator[None]:
    """Turn errors of the disk and of RocksDB into a StateError that says "can't be <action>".

    ``view`` is what `open_read_only` has opened for ``path``.
    """
    try:
        yield
    except StateError:
        raise
    except Exception as error:  # rocksdict raises plain Exception
        reason = " ".join(str(error).split())
        if view is not None and _is_full(reason):  # nothing is written to the state itself
            raise no_temporary_files(view.parent, "the disk is full") from error
        raise _error(path, action, reason.replace(str(view or path), str(path))) from error


def no_temporary_files(directory: Path, reason: str) -> UnreadableError:
    """The error for a directory where what is needed for reading can't be written."""
    return UnreadableError(
        f"a state can't be read, as temporary files can't be written in {directory} ({reason}): "
        "make room there, or name another directory in TMPDIR"
    )


def _is_full(reason: str) -> bool:
    return "No space left" in reason or "File too large" in reason or "quota" in reason


def checked(
    path: Path, get: Callable[[bytes], bytes | None], view: Path | None = None
) -> Callable[[bytes], bytes | None]:
    """``get``, with errors turned into StateErrors."""

    def read(key: bytes) -> bytes | None:
        with disk_errors(path, "read", view):
            return get(key)

    return read


def _error(path: Path, action: str, reason: str) -> StateError:
    if "lock file" in reason or "lock hold" in reason:
        return UnreadableError(f"the state at {path} is in use by another process; stop it first")
    if reason.startswith("Corruption") or "No such file" in reason:
        return StateError(
            f"the state at {path} is damaged: {reason}; "
            "restore a copy of it, or remove it to start from scratch"
        )
    if _is_full(reason):
        return UnreadableError(
            f"the state at {path} can't be {action}, the disk is full: {reason}; "
            "free some space there"
        )
    return UnreadableError(
        f"the state at {path} can't be {action}: {reason}; check the disk and its permissions"
    )
