"""The record in a state directory of the history from which a replay made it.

A run that continues from such a state knows events that its topics do not hold. What recomputes its
features, as `skew` does, has to read those as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from anabranch.state.errors import StateError
from anabranch.state.store.atomic_files import atomic_write

NAME = "replayed.json"


class ReplayedHistory(msgspec.Struct, kw_only=True):
    """What a replay read.

    Attributes:
        events: the file (as an absolute path) or the topic.
        labels: likewise; None: there were none.
        ends: of a topic that was read, the offset after its last message, by partition.
        offsets: where the first run continued: topic of the pipeline → offset by partition.
    """

    events: str
    labels: str | None
    ends: dict[str, list[int]]
    offsets: dict[str, dict[int, int]]

    def offset(self, topic: str) -> Mapping[int, int]:
        """Where the first run continued on a topic, by partition."""
        return self.offsets.get(topic, {})


def write_replayed(directory: Path, history: ReplayedHistory) -> None:
    """Record it in a state directory.

    Raises:
        StateError: it can't be written.
    """
    atomic_write(directory / NAME, msgspec.json.format(msgspec.json.encode(history)))


def read_replayed(directory: Path) -> ReplayedHistory | None:
    """The record of a state directory; None if no replay has made it.

    Raises:
        StateError: the record is damaged.
    """
    path = directory / NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=ReplayedHistory)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"{path} can't be read: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise StateError(f"{path} is damaged ({error}): restore it from a backup") from None
