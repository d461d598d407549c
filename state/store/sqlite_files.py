"""SQLite files that are read without changing anything: no lock is kept, nothing is created."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

_WAL = "-wal"
# Errors that say nothing of the file: it is locked, the disk is full or not allowed to be used.
_UNREADABLE = {
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_AUTH,
}
_LOOKS, _PAUSE_S = 3, 0.05
_NO_ACCESS = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}


@contextmanager
def open_read_only(path: Path, timeout_s: float) -> Iterator[sqlite3.Connection]:
    """Open a file that another process may be writing.

    A file with a write-ahead log can't be read without a file beside it that SQLite makes; where
    that is not allowed, a copy is read.

    Raises:
        sqlite3.Error: it can't be read.
        OSError: it can't be copied.
    """
    if not _has_log(path):  # no process has it open
        with closing(_connect(path, "mode=ro&immutable=1", timeout_s)) as connection:
            yield connection
        return
    with closing(_connect(path, "mode=ro", timeout_s)) as connection:
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in _NO_ACCESS:
                raise
        else:
            yield connection
            return
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / path.name
        for suffix in ("", _WAL):
            shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
        with closing(_connect(copy, "mode=rw", timeout_s)) as connection:
            yield connection


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error says that the file is damaged, rather than that it can't be read now."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and (
        code & 0xFF not in _UNREADABLE or code == sqlite3.SQLITE_IOERR_SHORT_READ
    )


def verify_pages(connection: sqlite3.Connection) -> str | None:
    """What is wrong with the structure of a file: pages, indexes, types; None if nothing is.

    Bytes within a value can be verified only by who knows what they mean.
    """
    try:
        (first,), *_ = connection.execute("PRAGMA integrity_check(1)").fetchall()
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        first = str(error)
    return None if first == "ok" else " ".join(str(first).split())


def verify_log(path: Path) -> str | None:
    """What is wrong with the write-ahead log of a file; None if nothing is, or there is none.

    A log that another process is writing is looked at again before it is called damaged.

    SQLite stops at the first frame whose checksum does not match, since a power failure can leave
    one. If others of the same log follow it, it was damaged later, and they would be lost.
    """
    problem = _verify_log(path)
    for _ in range(_LOOKS):
        if problem is None:
            break
        time.sleep(_PAUSE_S)
        problem = _verify_log(path)
    return problem


def _verify_log(path: Path) -> str | None:
    try:
        content = Path(f"{path}{_WAL}").read_bytes()
    except FileNotFoundError:
        return None
    if len(content) < 32:
        return None
    order = "big" if content[3] & 1 else "little"
    page = int.from_bytes(content[8:12], "big")
    if int.from_bytes(content[:4], "big") & ~1 != 0x377F0682 or not 512 <= page <= 65536:
        return "its header is not that of a write-ahead log"
    sums = _checksum(content[:24], order, (0, 0))
    if content[24:32] != b"".join(each.to_bytes(4, "big") for each in sums):
        return "the checksum of its header does not match"
    salts, broken = content[16:24], None
    for at in range(32, len(content) - page - 23, page + 24):
        if content[at + 8 : at + 16] != salts:
            continue  # of an earlier log, which this one has not overwritten yet
        if broken is not None:
            return f"the checksum of the frame at byte {broken} does not match"
        sums = _checksum(content[at : at + 8], order, sums)
        sums = _checksum(content[at + 24 : at + 24 + page], order, sums)
        if content[at + 16 : at + 24] != b"".join(each.to_bytes(4, "big") for each in sums):
            broken = at
    return None


def _checksum(data: bytes, order: str, sums: tuple[int, int]) -> tuple[int, int]:
    """SQLite's own, continued: two sums, each of which enters into the other."""
    first, second = sums
    words = memoryview(data).cast("I")
    if order != "little":
        words = memoryview(bytes(b"".join(data[i : i + 4][::-1] for i in range(0, len(data), 4))))
        words = words.cast("I")
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second


def _has_log(path: Path) -> bool:
    try:
        return Path(f"{path}{_WAL}").stat().st_size > 0
    except FileNotFoundError:
        return False


def _connect(path: Path, query: str, timeout_s: float) -> sqlite3.Connection:
    # A ? or % in its name is no part of the query.
    uri = f"file:{quote(str(path.absolute()))}?{query}"
    return sqlite3.connect(uri, uri=True, timeout=timeout_s, isolation_level=None)
