"""The models of a pipeline by name and version, on disk, each with its lineage.

::

    STATE/registry/NAME/3/about.json     what is told of it (`models.registry.version`)
                         /model.pickle   the River object
                         /distributions  how its data were distributed, where that was watched
                         /PINNED         if it is never to be removed

A version appears whole, by the renaming of its directory, and never changes. So the registry is
read without a lock, beside a running pipeline and beside writers. Two writers that want the same
number both try to give it: one gets it, the other takes the next.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from anabranch.models.learners.learner import Learner, Task
from anabranch.models.learners.linear import learner_for
from anabranch.models.learners.pickling import check_river, dumps, loads
from anabranch.models.registry.version import Version, check_name, parse_reference, seal, unseal
from anabranch.state.errors import InputError, StateError
from anabranch.state.store.atomic_files import sync_directory, write_whole

DIRECTORY = "registry"
"""What it is called in a state directory."""

KEEP = 20
"""Versions of a name that are kept, unless told otherwise."""

_ABOUT, _MODEL, _PINNED = "about.json", "model.pickle", "PINNED"
_DISTRIBUTIONS = "distributions"
_DRAFT, _GONE = ".draft-", ".gone-"
_ABANDONED_S = 3600.0
_TAKEN = {errno.ENOTEMPTY, errno.EEXIST}


class Registry:
    """A directory of models.

    Args:
        path: it need not be there yet.

    >>> import tempfile
    >>> from river import linear_model
    >>> from anabranch.models.registry.version import Version
    >>> registry = Registry(Path(tempfile.mkdtemp()))
    >>> about = Version(name="champion", made="import", made_ms=0, source="here", pipeline="p",
    ...     task="regression", model="LinearRegression", declaration="", parameters={},
    ...     columns=["a"], features="", versions={"river": "0.1"})
    >>> registry.add(linear_model.LinearRegression(), about).reference
    'champion@1'
    >>> registry.get("champion").columns
    ['a']
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    @classmethod
    def of(cls, state: Path) -> Registry:
        """The registry in a state directory."""
        return cls(Path(state) / DIRECTORY)

    def get(self, name: str, version: int | None = None) -> Version:
        """What is told of a version; of the newest without a number.

        Raises:
            InputError: there is none.
            StateError: it can't be read.
        """
        wanted = version
        looked: Sequence[int] | None = None
        while (numbers := [wanted] if wanted else self._numbers(name)) != looked:
            looked = numbers  # a writer may take all of them away while they are read
            for number in reversed(numbers):
                found = self._read(name, number)
                if found is not None:
                    return found
        have = ", ".join(f"{each}@{number}" for each, number in self._all())
        what = name if version is None else f"{name}@{version}"
        raise InputError(
            f"there is no model {what!r} in {self.path}: "
            + (f"it has {have}" if have else "it has none; see `anabranch models snapshot --help`")
        )

    def find(self, reference: str) -> Version:
        """`get`, by ``NAME@VERSION`` or ``NAME``."""
        return self.get(*parse_reference(reference))

    def load(self, version: Version) -> Any:
        """The River object of a version: a copy, that nobody else has. It is unpickled.

        Raises:
            StateError: another River wrote it, or it is damaged.
        """
        return loads(f"model {version.reference}", self.pickle(version))

    def pickle(self, version: Version) -> bytes:
        """The pickle of a version, checked.

        Raises:
            StateError: another River wrote it, or it is damaged.
        """
        check_river(f"model {version.reference}", version.river)
        return self._checked(version, _MODEL, version.sha256)

    def distributions(self, version: Version) -> bytes | None:
        """How the data of a version were distributed; None where that was not watched.

        Raises:
            StateError: it is damaged.
        """
        if not version.distributions_sha256:
            return None
        return self._checked(version, _DISTRIBUTIONS, version.distributions_sha256)

    def _checked(self, version: Version, name: str, sha256: str) -> bytes:
        path = self._directory(version.name, version.version) / name
        try:
            blob = path.read_bytes()
        except OSError as error:
            if not path.parent.exists():
                raise StateError(f"model {version.reference} was removed meanwhile") from None
            raise StateError(
                f"{path} can't be read ({error.strerror}): restore it from a backup, or remove "
                f"{path.parent}"
            ) from None
        if hashlib.sha256(blob).hexdigest() != sha256:
            raise StateError(
                f"{path} is damaged (its checksum does not match): restore it from a backup, or "
                f"remove {path.parent}"
            )
        return blob

    def learner(self, version: Version, columns: Sequence[str], task: Task) -> Learner:
        """The model of a version, ready to go on; its version is the rows that it has learned.

        Raises:
            StateError: see `load`.
            DeclarationError: it can't do the task.
        """
        learner = learner_for(self.load(version), columns, task)
        learner.version = version.rows or 0
        return learner

    def add(
        self, model: Any, about: Version, keep: int = KEEP, distributions: bytes | None = None
    ) -> Version:
        """Make ``model``, a River object, the next version of ``about.name``.

        ``distributions`` are kept beside it. Then only the newest ``keep`` of that name stay, and
        those that are pinned.

        Raises:
            InputError: the name can't be used.
            StateError: the model can't be pickled, or the disk does not take it; nothing changed.
        """
        blob = dumps(f"model {about.name!r}", model)
        return self.add_pickle(blob, about, keep, distributions)

    def add_pickle(
        self, blob: bytes, about: Version, keep: int = KEEP, distributions: bytes | None = None
    ) -> Version:
        """`add`, for a pickle that is one of a River object."""
        check_name(about.name)
        sha256 = hashlib.sha256(blob).hexdigest()
        beside = "" if distributions is None else hashlib.sha256(distributions).hexdigest()
        about = msgspec.structs.replace(
            about, bytes=len(blob), sha256=sha256, distributions_sha256=beside
        )
        home = self.path / about.name
        draft = home / f"{_DRAFT}{uuid.uuid4().hex}"
        try:
            draft.mkdir(parents=True)
            sync_directory(self.path)
            write_whole(draft / _MODEL, blob)
            if distributions is not None:
                write_whole(draft / _DISTRIBUTIONS, distributions)
            made = self._give_number(draft, about)
            sync_directory(home)
        except OSError as error:
            raise StateError(f"{home} can't be written: {error.strerror}") from None
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        self._prune(about.name, keep)
        return made

    def copy(self, other: Registry, version: Version) -> Version:
        """Take a version over from another registry; one that is here already is not taken twice.

        Raises:
            StateError: it can't be read there, or not be written here.
        """
        for found in self.list(version.name):
            if found.sha256 == version.sha256 and found.columns == version.columns:
                return found
        source = f"{version.reference} of {other.path}"
        about = msgspec.structs.replace(
            version, made="copy", made_ms=time.time_ns() // 1_000_000, source=source, parent=None
        )
        distributions = other.distributions(version)
        return self.add_pickle(other.pickle(version), about, distributions=distributions)

    def pin(self, version: Version) -> None:
        """Never remove this one: a state begins with it.

        Raises:
            StateError: the disk does not take it.
        """
        write_whole(self._directory(version.name, version.version) / _PINNED, b"")

    def problems(self) -> Sequence[str]:
        """What is wrong with versions, in sentences; pickles are measured, and not read."""
        found = []
        for name, number in self._all():
            try:
                about = self._read(name, number)
                path = self._directory(name, number)
                if about is not None and about.bytes != self._size(about) and path.exists():
                    found.append(f"{path / _MODEL} is not whole: restore it, or remove {path}")
            except StateError as error:
                found.append(str(error))
        return found

    def list(self, name: str | None = None) -> Sequence[Version]:
        """All whole versions, or those of one name: by name, then number. See `problems`."""
        found = []
        for each, number in self._all():
            if name in (None, each):
                try:
                    about = self._read(each, number)
                except StateError:
                    continue
                if about is not None:
                    found.append(about)
        return found

    def _all(self) -> Sequence[tuple[str, int]]:
        try:
            names = sorted(each.name for each in self.path.iterdir() if each.is_dir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StateError(f"{self.path} can't be read: {error.strerror}") from None
        return [(name, number) for name in names for number in self._numbers(name)]

    def _numbers(self, name: str) -> Sequence[int]:
        """The versions of a name, rising."""
        try:
            entries = [each.name for each in (self.path / name).iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StateError(f"{self.path / name} can't be read: {error.strerror}") from None
        return sorted(int(each) for each in entries if each.isascii() and each.isdigit())

    def _read(self, name: str, number: int) -> Version | None:
        """What is told of a version; None when it is not there (any more)."""
        directory = self._directory(name, number)
        path = directory / _ABOUT
        try:
            about = unseal(path.read_bytes(), path)
        except OSError as error:
            if not directory.exists():
                return None
            raise StateError(
                f"{path} can't be read ({error.strerror}): restore it from a backup, or remove "
                f"{directory}"
            ) from None
        if (about.name, about.version) != (name, number):
            raise StateError(
                f"{path} is of {about.reference}, not of {name}@{number}: it was copied there by "
                "hand; bring it in with `anabranch models import`"
            )
        return about

    def _give_number(self, draft: Path, about: Version) -> Version:
        """Rename a draft to the next number that is free."""
        number = max(self._numbers(about.name), default=0) + 1
        while True:
            made = msgspec.structs.replace(about, version=number)
            write_whole(draft / _ABOUT, seal(made))
            try:
                draft.rename(self._directory(about.name, number))
                return made
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
            number += 1

    def _prune(self, name: str, keep: int) -> None:
        """Remove old versions, and what killed writers have left."""
        home = self.path / name
        for number in self._numbers(name)[: -max(keep, 1)]:
            old, gone = self._directory(name, number), home / f"{_GONE}{uuid.uuid4().hex}"
            try:
                if not (old / _PINNED).exists():
                    old.rename(gone)  # so that a reader finds all of it, or nothing
            except FileNotFoundError:  # another writer was quicker
                continue
            shutil.rmtree(gone, ignore_errors=True)
        for left in [*home.glob(f"{_DRAFT}*"), *home.glob(f"{_GONE}*")]:
            try:
                abandoned = time.time() - left.stat().st_mtime > _ABANDONED_S
            except FileNotFoundError:
                continue
            if abandoned:
                shutil.rmtree(left, ignore_errors=True)

    def _size(self, about: Version) -> int:
        try:
            return os.stat(self._directory(about.name, about.version) / _MODEL).st_size
        except OSError:
            return -1

    def _directory(self, name: str, number: int) -> Path:
        return self.path / name / str(number)
