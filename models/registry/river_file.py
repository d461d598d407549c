"""River objects in local files: a plain pickle, and beside it what is told of the model.

``model.pickle`` is for anyone who has River: ``pickle.load(open("model.pickle", "rb"))`` gives the
model. ``model.pickle.json`` tells where it comes from, and which River wrote it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anabranch.models.learners.pickling import check_river, load_model
from anabranch.models.registry.version import Version, seal, unseal
from anabranch.state.errors import InputError, StateError
from anabranch.state.store.atomic_files import write_whole

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


@dataclass(frozen=True, slots=True)
class RiverFile:
    """A file that was read and checked, and not unpickled yet.

    Attributes:
        path: of the pickle.
        blob: its content.
        about: what is told of it beside it; None when there is nothing.
    """

    path: Path
    blob: bytes
    about: Version | None

    @property
    def sha256(self) -> str:
        """Of the content."""
        return hashlib.sha256(self.blob).hexdigest()

    def unpickle(self) -> Any:
        """The object. This may run any code that is in the file.

        Raises:
            InputError: it can't be unpickled.
        """
        try:
            return load_model(str(self.path), self.blob)
        except StateError as error:
            raise InputError(str(error)) from None


def write_river_file(path: Path, blob: bytes, about: Version) -> None:
    """Write a pickle of a River object, and what is told of it beside it; both are replaced.

    Raises:
        InputError: they can't be written.
    """
    try:
        write_whole(path, blob)
        write_whole(beside(path), seal(about))
    except (StateError, OSError) as error:
        raise InputError(str(error)) from None


def read_river_file(path: Path, river: str | None = None) -> RiverFile:
    """Read a pickle and what is beside it, and check that this River may unpickle it.

    Args:
        path: a local file.
        river: the version that wrote it, said by the user; needed where nothing is beside it.

    Raises:
        InputError: there is no such file, or nobody knows which River wrote it.
        StateError: another River wrote it, or what is beside it is damaged or of another file.
    """
    if _ADDRESS.match(str(path)):
        raise InputError(f"{path} is no local file, and models are read from local files alone")
    try:
        blob = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}; name a pickle file") from None
    about = _read_beside(path)
    found = RiverFile(path, blob, about)
    if about is None:
        if river is None:
            raise InputError(
                f"there is no {beside(path).name} beside {path}, so nobody knows which River wrote "
                "it: say so with --river VERSION (river.__version__, where it was trained)"
            )
        check_river(str(path), river)
        return found
    if about.sha256 != found.sha256:
        raise StateError(
            f"{path} is damaged, or {beside(path).name} belongs to another file (the checksum does "
            "not match): export it again"
        )
    if river is not None and river != about.river:
        raise InputError(
            f"--river {river} contradicts {beside(path)}, which says {about.river}: leave it out"
        )
    check_river(str(path), about.river)
    return found


def beside(path: Path) -> Path:
    """Where it is told what a pickle is."""
    return path.with_name(f"{path.name}.json")


def _read_beside(path: Path) -> Version | None:
    told = beside(path)
    try:
        return unseal(told.read_bytes(), told)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{told} can't be read: {error.strerror}") from None
