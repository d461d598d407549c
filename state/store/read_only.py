"""A place read beside the process that may be writing it: for `anabranch state`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from anabranch.state.errors import StateError
from anabranch.state.store.database import checked, open_read_only
from anabranch.state.store.delta import Delta
from anabranch.state.store.generations import Contents, StoreSummary

_LOOKS = 3
T = TypeVar("T")


class StateView:
    """A place as it stands. Each call looks anew, and holds nothing afterwards.

    Raises:
        StateError: there is no state, or it can't be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    @property
    def generation(self) -> int:
        """The last committed; 0 when nothing is."""
        return self.summary().generation

    def summary(self) -> StoreSummary:
        """What is kept."""
        return self._look(Contents.summary)

    def verify(self) -> list[str]:
        """Read everything; sentences of what is wrong, none if whole."""
        return self._look(Contents.problems)

    def image(self, generation: int | None = None) -> Delta:
        """The whole state at a generation that is kept, or at the last one."""

        def read(contents: Contents) -> Delta:
            root = contents.root()
            wanted = root.generation if generation is None else generation
            segments = contents.segments(root)
            if wanted not in {root.adopted, *(segment.last for segment in segments)}:
                raise StateError(f"the state at {self.path} does not keep generation {wanted}")
            return contents.image([segment for segment in segments if segment.last <= wanted])

        return self._look(read)

    def _look(self, read: Callable[[Contents], T]) -> T:
        """What ``read`` finds. The writer may remove a file meanwhile: then look again."""
        for _ in range(_LOOKS - 1):
            try:
                found = self._look_once(read)
            except StateError:
                continue
            if not isinstance(found, list) or not found:
                return found
        return self._look_once(read)

    def _look_once(self, read: Callable[[Contents], T]) -> T:
        with tempfile.TemporaryDirectory() as logs:
            database = open_read_only(self.path, Path(logs))
            try:
                return read(Contents(self.path, checked(self.path, database.get)))
            finally:
                database.close()


def look(path: Path) -> StateView:
    """A read-only view of the state at ``path``, for use beside a running process."""
    return StateView(path)
