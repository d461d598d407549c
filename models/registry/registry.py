"""The registry: versions of models in a directory, each with its lineage.

::

    STATE/registry/NAME/3/about.json     its description (`models.registry.version`)
                         /model.pickle   the River object
                         /distributions  the state of its distribution monitors, if it has any
                         /PINNED         if it must never be removed

A version appears complete, when its directory is renamed, and never changes. So the registry is
read without a lock, beside a running pipeline and beside writers. Of two writers that try to take
the same number one succeeds, and the other takes the next.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from anabranch.models.learners.compiled import learner_for
from anabranch.models.learners.learner import Learner, Task
from anabranch.models.learners.pickling import check_river, dumps, loads
from anabranch.models.registry.version import Version, check_name, parse_reference, seal, unseal
from anabranch.state.errors import InputError, StateError
from anabranch.state.store.atomic_files import atomic_write, sync_directory
from anabranch.state.store.permissions import make_private_directory

DIRECTORY = "registry"
"""The name of the registry in a state directory."""

KEEP = 20
"""Versions of a name that are kept by default."""

_ABOUT, _MODEL, _PINNED = "about.json", "model.pickle", "PINNED"
_DISTRIBUTIONS = "distributions"
_DRAFT, _GONE = ".draft-", ".gone-"
_ABANDONED_S = 3600.0
_TAKEN = {errno.ENOTEMPTY, errno.EEXIST}


class Registry:
    """Versions of models in a directory.

    Args:
        path: the directory; it is created with the first version.

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
        """The description of a version, by default the newest.

        Raises:
            InputError: there is no such version.
            StateError: it can't be read.
        """
        tried: Sequence[int] | None = None
        while (numbers := [version] if version else self._numbers(name)) != tried:
            tried = numbers  # a writer may remove all of them while they are read
            for number in reversed(numbers):
                about = self._read(name, number)
                if about is not None:
                    return about
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
        """The River object of a version: a new copy, unpickled.

        Raises:
            StateError: another River wrote it, or it is damaged.
        """
        return loads(f"model {version.reference}", self.pickle(version))

    def pickle(self, version: Version) -> bytes:
        """The pickle of a version, after checking its checksum and the version of River.

        Raises:
            StateError: another River wrote it, or it is damaged.
        """
        check_river(f"model {version.reference}", version.river)
        return self._checked(version, _MODEL, version.sha256)

    def distributions(self, version: Version) -> bytes | None:
        """The state of a version's distribution monitors; None if it has none.

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
                raise StateError(
                    f"model {version.reference} was removed while it was read"
                ) from None
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
        """A learner that continues a version; its `version` is the labels learned so far.

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
        """Add a model as the next version of its name.

        Args:
            model: a River object.
            about: its description; number, size and checksums are set here.
            keep: older versions of that name than the newest so many are removed, apart from those
                that are pinned.
            distributions: the state of its distribution monitors, if it has any.

        Returns:
            The complete description.

        Raises:
            InputError: the name can't be used.
            StateError: the model can't be pickled, or the disk can't be written; nothing changed.
        """
        blob = dumps(f"model {about.name!r}", model)
        return self.add_pickle(blob, about, keep, distributions)

    def add_pickle(
        self, blob: bytes, about: Version, keep: int = KEEP, distributions: bytes | None = None
    ) -> Version:
        """`add`, for a River object that is pickled already."""
        check_name(about.name)
        sha256 = hashlib.sha256(blob).hexdigest()
        monitors = "" if distributions is None else hashlib.sha256(distributions).hexdigest()
        about = msgspec.structs.replace(
            about, bytes=len(blob), sha256=sha256, distributions_sha256=monitors
        )
        home = self.path / about.name
        draft = home / f"{_DRAFT}{uuid.uuid4().hex}"
        try:
            for directory in (self.path.parent, self.path, home, draft):
                make_private_directory(directory)
            sync_directory(self.path)
            atomic_write(draft / _MODEL, blob)
            if distributions is not None:
                atomic_write(draft / _DISTRIBUTIONS, distributions)
            added = self._assign_number(draft, about)
            sync_directory(home)
        except OSError as error:
            raise StateError(f"{home} can't be written: {error.strerror}") from None
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        self._prune(about.name, keep)
        return added

    def copy(self, other: Registry, version: Version) -> Version:
        """Copy a version from another registry, unless the same model is here already.

        Raises:
            StateError: it can't be read there, or not be written here.
        """
        for own in self.list(version.name):
            if own.sha256 == version.sha256 and own.columns == version.columns:
                return own
        source = f"{version.reference} of {other.path}"
        about = msgspec.structs.replace(
            version, made="copy", made_ms=time.time_ns() // 1_000_000, source=source, parent=None
        )
        distributions = other.distributions(version)
        return self.add_pickle(other.pickle(version), about, distributions=distributions)

    def pin(self, version: Version) -> None:
        """Never remove this version, because a state was started from it.

        Raises:
            StateError: the disk can't be written.
        """
        atomic_write(self._directory(version.name, version.version) / _PINNED, b"")

    def problems(self) -> Sequence[str]:
        """What is wrong with versions, as sentences; of pickles only the size is checked."""
        problems = []
        for name, number in self._all():
            try:
                about = self._read(name, number)
                path = self._directory(name, number)
                if about is not None and about.bytes != self._size(about) and path.exists():
                    problems.append(f"{path / _MODEL} is incomplete: restore it, or remove {path}")
            except StateError as error:
                problems.append(str(error))
        return problems

    def verify(self) -> Iterator[tuple[Path, str]]:
        """Each damaged file, and what is wrong with it; pickles are read, not unpickled."""
        for name, number in self._all():
            directory = self._directory(name, number)
            try:
                about = self._read(name, number)
            except StateError as error:
                yield directory / _ABOUT, str(error)
                continue
            if about is None:
                continue
            for file, sha256 in (
                (_MODEL, about.sha256),
                (_DISTRIBUTIONS, about.distributions_sha256),
            ):
                try:
                    if sha256:
                        self._checked(about, file, sha256)
                except StateError as error:
                    if directory.exists():
                        yield directory / file, str(error)

    def list(self, name: str | None = None) -> Sequence[Version]:
        """All versions that can be read, or those of one name, by name and number.

        See `problems` for the others.
        """
        versions = []
        for each, number in self._all():
            if name in (None, each):
                try:
                    about = self._read(each, number)
                except StateError:
                    continue
                if about is not None:
                    versions.append(about)
        return versions

    def _all(self) -> Sequence[tuple[str, int]]:
        try:
            names = sorted(each.name for each in self.path.iterdir() if each.is_dir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StateError(f"{self.path} can't be read: {error.strerror}") from None
        return [(name, number) for name in names for number in self._numbers(name)]

    def _numbers(self, name: str) -> Sequence[int]:
        """The versions of a name, ascending."""
        try:
            entries = [each.name for each in (self.path / name).iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StateError(f"{self.path / name} can't be read: {error.strerror}") from None
        return sorted(int(each) for each in entries if each.isascii() and each.isdigit())

    def _read(self, name: str, number: int) -> Version | None:
        """The description of a version; None if there is none, or none any more."""
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
                f"{path} describes {about.reference}, not {name}@{number}: it was copied there "
                "without the registry; remove it and use `anabranch models import`"
            )
        return about

    def _assign_number(self, draft: Path, about: Version) -> Version:
        """Rename a draft to the next free number."""
        number = max(self._numbers(about.name), default=0) + 1
        while True:
            numbered = msgspec.structs.replace(about, version=number)
            atomic_write(draft / _ABOUT, seal(numbered))
            try:
                draft.rename(self._directory(about.name, number))
                return numbered
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
            number += 1

    def _prune(self, name: str, keep: int) -> None:
        """Remove old versions, and the leftovers of writers that were killed."""
        home = self.path / name
        for number in self._numbers(name)[: -max(keep, 1)]:
            old, gone = self._directory(name, number), home / f"{_GONE}{uuid.uuid4().hex}"
            try:
                if not (old / _PINNED).exists():
                    old.rename(gone)  # so that a reader sees all of it, or nothing
            except FileNotFoundError:  # another writer was faster
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
