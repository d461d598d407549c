"""River models in local files: a plain pickle, and a description beside it.

``model.pickle`` can be read wherever River is installed: ``pickle.load(open("model.pickle",
"rb"))`` returns the model. ``model.pickle.json`` describes its lineage and the River that wrote it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anabranch.models.learners.pickling import check_river, loads
from anabranch.models.registry.version import Version, seal, unseal
from anabranch.state.errors import InputError, StateError
from anabranch.state.store.atomic_files import atomic_write
from anabranch.state.store.permissions import make_ordinary

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


@dataclass(frozen=True, slots=True)
class RiverFile:
    """A file that was read and checked, but not unpickled yet.

    Attributes:
        path: of the pickle.
        blob: its content.
        about: the description beside it; None if there is none.
    """

    path: Path
    blob: bytes
    about: Version | None

    @property
    def sha256(self) -> str:
        """Checksum of the content."""
        return hashlib.sha256(self.blob).hexdigest()

    def unpickle(self) -> Any:
        """The object in the pickle. This runs any code that is in the file.

        Raises:
            InputError: it can't be unpickled.
        """
        try:
            return loads(str(self.path), self.blob)
        except StateError as error:
            raise InputError(str(error)) from None


def write_river_file(path: Path, blob: bytes, about: Version) -> None:
    """Write a pickle of a River object and its description beside it, replacing both.

    Raises:
        InputError: they can't be written.
    """
    try:
        atomic_write(path, blob)
        atomic_write(description_path(path), seal(about))
        for written in (path, description_path(path)):
            make_ordinary(written)
    except (StateError, OSError) as error:
        raise InputError(str(error)) from None


def read_river_file(path: Path, river: str | None = None) -> RiverFile:
    """Read a pickle and its description, and check that the River installed here wrote it.

    Args:
        path: a local file.
        river: the version of River that wrote it; needed where there is no description.

    Raises:
        InputError: there is no such file, or it is not known which River wrote it.
        StateError: another River wrote it, or the description is damaged or of another file.
    """
    if _ADDRESS.match(str(path)):
        raise InputError(f"{path} is not a local file: download it first and name the copy")
    try:
        blob = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}; name a pickle file") from None
    description = description_path(path)
    about = _read_description(description)
    file = RiverFile(path, blob, about)
    if about is None:
        if river is None:
            raise InputError(
                f"there is no {description.name} beside {path}, so it is not known which "
                "River wrote it: add --river VERSION (river.__version__ where it was trained)"
            )
        check_river(str(path), river)
        return file
    if about.sha256 != file.sha256:
        raise StateError(
            f"{path} is damaged, or {description.name} belongs to another file (the checksum does "
            "not match): export it again"
        )
    if river is not None and river != about.river:
        raise InputError(
            f"--river {river} contradicts {description}, which names {about.river}: leave it out"
        )
    check_river(str(path), about.river)
    return file


def description_path(path: Path) -> Path:
    """The path of the description of a pickle."""
    return path.with_name(f"{path.name}.json")


def _read_description(description: Path) -> Version | None:
    try:
        return unseal(description.read_bytes(), description)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{description} can't be read: {error.strerror}") from None
