"""Read-only access to a store that another process may be writing."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from anabranch.state.errors import StateError
from anabranch.state.store.database import checked, no_temporary_files, open_read_only
from anabranch.state.store.delta import Delta
from anabranch.state.store.generations import Contents, StoreSummary

_ATTEMPTS = 3
T = TypeVar("T")


class ReadOnlyStore:
    """A store for reading. Each call opens the database, and closes it afterwards.

    Raises:
        StateError: there is no state, or it can't be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    @property
    def generation(self) -> int:
        """The last committed generation; 0 when nothing is committed."""
        return self.summary().generation

    def summary(self) -> StoreSummary:
        """Generations, sizes and identity."""
        return self._read(Contents.summary)

    def verify(self) -> list[str]:
        """Verify everything; a sentence for each problem."""
        return self._read(Contents.problems)

    def image(self, generation: int | None = None) -> Delta:
        """The complete state at a generation that is kept, or at the last one."""

        def read(contents: Contents) -> Delta:
            root = contents.root()
            wanted = root.generation if generation is None else generation
            segments = contents.segments(root)
            if wanted not in {root.adopted, *(segment.last for segment in segments)}:
                raise StateError(
                    f"the state at {self.path} no longer has generation {wanted}: name another one"
                )
            return contents.image([segment for segment in segments if segment.last <= wanted])

        return self._read(read)

    def _read(self, read: Callable[[Contents], T]) -> T:
        """The result of ``read``, tried again if the writer removes a file meanwhile."""
        for _ in range(_ATTEMPTS - 1):
            try:
                result = self._read_once(read)
            except StateError:
                continue
            if not isinstance(result, list) or not result:
                return result
        return self._read_once(read)

    def _read_once(self, read: Callable[[Contents], T]) -> T:
        with _temporary_directory() as directory:
            view = directory / self.path.name
            database = open_read_only(self.path, view)
            try:
                return read(Contents(self.path, checked(self.path, database.get, view)))
            finally:
                database.close()


@contextmanager
def _temporary_directory() -> Iterator[Path]:
    """For what is written whenever a database is opened."""
    try:
        directory = Path(tempfile.mkdtemp(prefix="anabranch-"))
    except OSError as error:
        raise no_temporary_files(Path(tempfile.gettempdir()), str(error.strerror)) from None
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
