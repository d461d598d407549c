"""Who may read the files of state, buses and registries: their owner alone, unless told.

The environment variable ``ANABRANCH_UMASK`` says in octal what is taken from others, as the umask
of a shell does: 077 (the default) leaves everything to the owner, 027 lets the group read. Modes of
what exists already are never changed.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from anabranch.state.errors import InputError

VARIABLE: Final = "ANABRANCH_UMASK"
_PRIVATE: Final = 0o077

# What the user's own umask was before `restrict_process`.
_user_umask: int | None = None


def umask() -> int:
    """The umask for files of state, buses and registries.

    Raises:
        InputError: the variable is not an octal number up to 777.
    """
    text = os.environ.get(VARIABLE, "")
    if not text:
        return _PRIVATE
    try:
        value = int(text, 8)
    except ValueError:
        value = -1
    if not 0 <= value <= 0o777:
        raise InputError(f"{VARIABLE} is {text!r}: write an octal number such as 077 or 027")
    return value


def restrict_process() -> None:
    """Let everything that this process writes from now on have these modes.

    RocksDB and the engine take the modes of their files from the process. A umask of the user that
    takes more stays as it is, unless the variable is set.
    """
    global _user_umask
    wanted = umask()
    before = os.umask(wanted)
    if _user_umask is None:
        _user_umask = before
    if not os.environ.get(VARIABLE):
        os.umask(wanted | before)


def make_private_directory(path: Path) -> None:
    """Create a directory and its parents; the directory itself is for its owner."""
    path.mkdir(mode=0o777 & ~umask(), parents=True, exist_ok=True)


def make_private(path: Path) -> None:
    """Give a new file its mode, where the file system has modes."""
    with suppress(PermissionError):
        path.chmod(0o666 & ~umask())


def make_ordinary(path: Path) -> None:
    """Give a file that the user has named for an export the mode that it would have had."""
    if _user_umask is not None:
        with suppress(PermissionError):
            path.chmod(0o666 & ~_user_umask)


def make_ordinary_directory(path: Path) -> None:
    """Give a new directory of an export the mode that it would have had."""
    if _user_umask is not None:
        with suppress(PermissionError):
            path.chmod(0o777 & ~_user_umask)
