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

from anabranch.state.errors import StateError
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


def open_read_only(path: Path, log_directory: Path) -> Rdict:
    """Open a snapshot of the database at ``path``, which another process may be writing."""
    if not (path / _CURRENT).is_file():
        raise StateError(f"there is no state at {path}: check the path")
    options = _options()
    options.set_db_log_dir(str(log_directory))
    with disk_errors(path, "read"):
        return Rdict(str(path), options, access_type=AccessType.read_only(False))


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
def disk_errors(path: Path, action: str) -> Iterator[None]:
    """Turn errors of the disk and of RocksDB into a StateError that says "can't be <action>"."""
    try:
        yield
    except StateError:
        raise
    except Exception as error:  # rocksdict raises plain Exception
        raise StateError(_sentence(path, action, " ".join(str(error).split()))) from error


def checked(path: Path, get: Callable[[bytes], bytes | None]) -> Callable[[bytes], bytes | None]:
    """``get``, with errors turned into StateErrors."""

    def read(key: bytes) -> bytes | None:
        with disk_errors(path, "read"):
            return get(key)

    return read


def _sentence(path: Path, action: str, reason: str) -> str:
    if "lock file" in reason or "lock hold" in reason:
        return f"the state at {path} is in use by another process; stop it first"
    if reason.startswith("Corruption") or "No such file" in reason:
        return (
            f"the state at {path} is damaged: {reason}; "
            "restore a copy of it, or remove it to start from scratch"
        )
    if "No space left" in reason or "File too large" in reason or "quota" in reason:
        return (
            f"the state at {path} can't be {action}, the disk is full: {reason}; "
            "free some space there"
        )
    return f"the state at {path} can't be {action}: {reason}; check the disk and its permissions"
