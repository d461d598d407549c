"""Pickles of models, and the versions of the libraries that a pickle depends on.

A pickle runs code when it is read. So `loads` is for what this program wrote into a state
directory, and for a file that the user has named; never for anything that arrived on a topic.
"""

from __future__ import annotations

import gc
import importlib.metadata
import pickle
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from anabranch.state.errors import StateError

_LIBRARIES = ("anabranch", "river", "numpy")


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the garbage collector, which would visit millions of objects again and again."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def dumps(what: str, model: Any) -> bytes:
    """A model as a pickle; ``what`` names it in an error.

    Raises:
        StateError: it can't be pickled.
    """
    try:
        with uncollected():
            return pickle.dumps(model, protocol=5)
    except Exception as error:
        raise StateError(
            f"{what} can't be pickled: {error}; use named functions of a module in it"
        ) from error


def loads(what: str, blob: bytes) -> Any:
    """What `dumps` wrote. It is unpickled, which may run code.

    Raises:
        StateError: it can't be unpickled here.
    """
    try:
        with uncollected():
            return pickle.loads(blob)
    except Exception as error:
        raise StateError(
            f"{what} can't be unpickled ({error}): it is damaged, no "
            "pickle, or needs code that is not here"
        ) from error


def library_versions() -> dict[str, str]:
    """The versions of Python and of the libraries whose objects are in a pickle of a model."""
    found = {"python": platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in _LIBRARIES}


def check_river(what: str, river: str | None) -> None:
    """Refuse what another version of River wrote.

    Raises:
        StateError: it did.

    >>> check_river("m.pickle", "0.1")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    state.errors.StateError: m.pickle was written with river 0.1, and ... is installed: install \
river==0.1, or train it anew
    """
    here = importlib.metadata.version("river")
    if river != here:
        raise StateError(
            f"{what} was written with river {river}, and {here} is installed: install "
            f"river=={river}, or train it anew"
        )
