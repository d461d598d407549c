"""Where in a user's code an exception was raised, for a sentence about it."""

from __future__ import annotations

import os
import sysconfig
import traceback
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_OWN_FOLDERS = tuple(f"{_ROOT / name}{os.sep}" for name in ("dataflows", "models", "state"))
_LIBRARIES = tuple(
    os.path.realpath(sysconfig.get_path(name)) + os.sep for name in ("stdlib", "purelib", "platlib")
)
_LONGEST_TEXT = 300


def describe_error(error: BaseException) -> str:
    """An exception in one line, with the file and the line of the user's code that raised it.

    The user's code is what belongs neither to this program nor to an installed library; an
    exception that passed through none of it is placed where it was raised.

    >>> def share(x):
    ...     return 1 / x
    >>> try:
    ...     share(0)
    ... except ZeroDivisionError as error:
    ...     describe_error(error)  # doctest: +ELLIPSIS
    'ZeroDivisionError: division by zero (<doctest ...>, line 2, in share)'
    """
    frames = [
        each
        for each in traceback.extract_tb(error.__traceback__)
        if not os.path.realpath(each.filename).startswith(_OWN_FOLDERS)
    ]
    own = [each for each in frames if _is_users(each.filename)]
    text = " ".join(str(error).split())
    if len(text) > _LONGEST_TEXT:
        text = f"{text[:_LONGEST_TEXT]}…"
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if not (own or frames):
        return what
    place = (own or frames)[-1]
    return f"{what} ({place.filename}, line {place.lineno}, in {place.name})"


def _is_users(filename: str) -> bool:
    return filename.startswith("<doctest") or not (
        filename.startswith("<") or os.path.realpath(filename).startswith(_LIBRARIES)
    )
