"""The embedded bus: a directory with one SQLite file per topic, no server.

Several processes may publish to and read from one topic at once; each topic has its own file, so
that writers of different topics do not wait for each other. `EmbeddedBus` opens a file only when
needed, and shares no connection with its publishers and readers: each of those belongs to one
thread, and none may be used across a fork.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from anabranch.dataflows.bus.embedded import claims, topic_file
from anabranch.dataflows.bus.embedded.publisher import MAX_BYTES, EmbeddedPublisher
from anabranch.dataflows.bus.embedded.reader import EmbeddedReader
from anabranch.dataflows.bus.embedded.retention import remove_old, retention_ms
from anabranch.dataflows.bus.embedded.verification import verify_topic
from anabranch.dataflows.bus.protocol import OnOutOfRange, TopicLimits, TopicPartition
from anabranch.dataflows.bus.topic_names import check_topic, check_topics, missing_topic
from anabranch.state.errors import BusError
from anabranch.state.store.permissions import make_private_directory

__all__ = ["EmbeddedBus"]

_SCAN = 100_000
_SYNCHRONOUS = ("normal", "full")


class EmbeddedBus:
    """Topics in the directory that ``sqlite:PATH`` or ``sqlite:PATH?synchronous=full`` names.

    What `Publisher.append` has stored survives any death of the process. A power failure or a crash
    of the operating system may lose the last appends with ``synchronous=normal`` (the default), but
    never damages the rest; with ``full`` every append is on disk when it returns.

    Raises:
        BusError: there is no path, or an unknown option.
    """

    def __init__(self, path: str, synchronous: str | None = None) -> None:
        name, _, query = path.partition("?")
        for option in filter(None, query.split("&")):
            key, _, value = option.partition("=")
            if key != "synchronous":
                raise BusError(f"sqlite:{path}: unknown option {key!r}; there is only synchronous")
            synchronous = synchronous or value
        synchronous = (synchronous or "normal").lower()
        if synchronous not in _SYNCHRONOUS:
            raise BusError(f"sqlite:{path}: synchronous is normal or full, not {synchronous!r}")
        if not name:
            raise BusError("sqlite: needs a directory: write sqlite:PATH")
        self.url = f"sqlite:{path}"
        self._directory = Path(name).absolute()
        self._synchronous = synchronous

    def create_topics(self, partitions: Mapping[str, int]) -> list[str]:
        """Create the topics that do not exist yet, and the directory; return their names.

        Raises:
            BusError: one exists with another partition count, or cannot be created.
        """
        check_topics(dict(partitions))
        existing = {t: len(self.end_offsets(t)) for t in partitions if self._path(t).exists()}
        for topic, count in existing.items():
            if count != partitions[topic]:
                raise _wrong_count(topic, count, partitions[topic])
        try:
            make_private_directory(self._directory)
        except OSError as error:
            raise BusError(f"can't create {self._directory}: {error.strerror}") from error
        created = []
        for topic in partitions.keys() - existing.keys():
            if topic_file.create(topic, self._path(topic), partitions[topic]):
                created.append(topic)
            elif (count := len(self.end_offsets(topic))) != partitions[
                topic
            ]:  # another process was faster
                raise _wrong_count(topic, count, partitions[topic])
        return sorted(created)

    def add_partitions(self, topic: str, count: int) -> None:
        """Raise the partition count of a topic to ``count``; does nothing if it has that.

        Raises:
            BusError: the topic does not exist, has more, or its file can't be written.
        """
        present, path = len(self.end_offsets(topic)), self.existing(topic)
        if present > count:
            raise BusError(f"topic {topic} has {present} partitions, more than {count}")
        with (
            topic_file.bus_errors(topic, path),
            closing(topic_file.connect(topic, path)) as connection,
        ):
            connection.execute(topic_file.ADD_PARTITIONS, (count,))

    def delete_topics(self, names: Sequence[str]) -> None:
        """Delete topics with all their messages; who reads or writes them is told at once.

        Raises:
            BusError: one does not exist, in which case none is deleted, or it can't be.
        """
        for path in [self.existing(name) for name in names]:
            try:
                for suffix in ("", "-wal", "-shm"):
                    path.with_name(path.name + suffix).unlink(missing_ok=True)
                path.with_suffix(claims.SUFFIX).unlink(missing_ok=True)
            except OSError as error:
                raise BusError(f"can't delete {path}: {error.strerror}") from error

    def claim_outputs(
        self, topics: Sequence[str], pipeline: str, run: str, say: Callable[[str], None]
    ) -> claims.EmbeddedClaims:
        """Claim topics, which exist, for a run of a pipeline, until the block or process ends.

        Raises:
            BusError: another pipeline, or another run, writes one of them.
        """
        return claims.EmbeddedClaims(self._claim_files(topics), pipeline, run)

    def release_outputs(self, topics: Sequence[str]) -> None:
        """Let other pipelines claim these topics.

        Raises:
            BusError: a run is writing one of them; then none is released.
        """
        claims.release(self._claim_files(topics))

    def _claim_files(self, topics: Sequence[str]) -> dict[str, Path]:
        return {topic: self.existing(topic).with_suffix(claims.SUFFIX) for topic in topics}

    def topics(self) -> dict[str, int]:
        """Every topic and its partition count."""
        names = [path.name.removesuffix(topic_file.SUFFIX) for path in self._files()]
        return {name: len(self.end_offsets(name)) for name in names}

    def topic_ids(self, topics: Collection[str]) -> dict[str, str]:
        """The id of each of these topics that exists; it is in the topic's file, so a copy has it.

        Raises:
            BusError: a file can't be read.
        """
        ids = {}
        for topic in topics:
            path = self._path(topic)
            if not path.exists():
                continue
            with (
                topic_file.bus_errors(topic, path),
                closing(topic_file.connect(topic, path)) as connection,
            ):
                found = topic_file.read_setting(connection, path, topic_file.ID)
            if found is not None:
                ids[topic] = found
        return ids

    def start_offsets(self, topic: str) -> list[int]:
        """The first offset still kept, by partition.

        Raises:
            BusError: the topic does not exist, or its file can't be read.
        """
        return self._offsets(topic, topic_file.STARTS)

    def end_offsets(self, topic: str) -> list[int]:
        """The offset after the last message, by partition.

        Raises:
            BusError: the topic does not exist, or its file can't be read.
        """
        return self._offsets(topic, topic_file.ENDS)

    def offsets_at(self, topic: str, time_ms: int) -> list[int]:
        """The first offset whose message was published at ``time_ms`` or later, by partition.

        The end of a partition that has none. Reads the topic up to there.

        Raises:
            BusError: the topic does not exist, or its file can't be read.
        """
        starts, ends = self.start_offsets(topic), self.end_offsets(topic)
        positions = {TopicPartition(topic, number): at for number, at in enumerate(starts)}
        found = dict(enumerate(ends))
        reader = self.reader(positions)
        try:
            while positions:
                slices = reader.poll(_SCAN)
                for piece in slices:
                    at = TopicPartition(topic, piece.partition)
                    later = np.flatnonzero(piece.times >= time_ms)
                    if at in positions and len(later):
                        found[at.partition] = int(piece.offsets[later[0]])
                        reader.pause([at])
                        del positions[at]
                if not slices:
                    break
        finally:
            reader.close()
        return [found[number] for number in range(len(ends))]

    def open_transactions(self, topic: str) -> dict[int, int]:
        """None: what is appended here is stored at once."""
        return {}

    def limits(self, topic: str) -> TopicLimits:
        """What a topic takes, the same for all of them, and how long it keeps that.

        Raises:
            BusError: the topic does not exist, or its file can't be read.
        """
        path = self.existing(topic)
        with (
            topic_file.bus_errors(topic, path),
            closing(topic_file.connect(topic, path)) as connection,
        ):
            return TopicLimits(MAX_BYTES, retention_ms(connection, path))

    def set_retention(self, topic: str, kept_ms: int | None) -> None:
        """Keep messages for that long after their time, None: forever; remove older ones.

        Raises:
            BusError: the topic does not exist, or its file can't be written.
        """
        path = self.existing(topic)
        with (
            topic_file.bus_errors(topic, path),
            closing(topic_file.connect(topic, path)) as connection,
        ):
            connection.execute("BEGIN IMMEDIATE")
            if kept_ms is None:
                topic_file.remove_setting(connection, topic_file.RETENTION)
            else:
                topic_file.write_setting(connection, topic_file.RETENTION, str(kept_ms))
                remove_old(connection, path, time.time_ns() // 1_000_000)
            connection.execute("COMMIT")

    def verify(self) -> Iterator[tuple[Path, str]]:
        """Read all of every topic, and verify every checksum: what is damaged, and how.

        Raises:
            BusError: a file can't be read now.
        """
        for path in self._files():
            for problem in verify_topic(path.name.removesuffix(topic_file.SUFFIX), path):
                yield path, problem

    def publisher(self, stop: threading.Event | None = None) -> EmbeddedPublisher:
        """A new publisher; close it when done. ``stop`` ends waits for locks."""
        return EmbeddedPublisher(self.existing, self._synchronous, self.url, stop)

    def reader(
        self,
        positions: Mapping[TopicPartition, int],
        group: str | None = None,
        on_out_of_range: OnOutOfRange = "stop",
        headers: bool = False,
    ) -> EmbeddedReader:
        """A reader of these partitions from these offsets; ``group`` is not kept anywhere.

        Raises:
            BusError: a topic or partition does not exist, an offset is past the end, or it is
                no longer kept and ``on_out_of_range`` is ``stop``.
        """
        return EmbeddedReader(self.existing, positions, on_out_of_range, self.url, headers)

    def close(self) -> None:
        """Nothing is held open: publishers and readers have their own connections."""

    def existing(self, topic: str) -> Path:
        """The file of a topic.

        Raises:
            BusError: the topic does not exist.
        """
        check_topic(topic)
        path = self._path(topic)
        if not path.exists():
            raise missing_topic(topic, self.url)
        return path

    def _files(self) -> list[Path]:
        try:
            return sorted(self._directory.glob(f"*{topic_file.SUFFIX}"))
        except OSError as error:
            raise BusError(f"can't list {self._directory}: {error.strerror}") from error

    def _path(self, topic: str) -> Path:
        return self._directory / f"{topic}{topic_file.SUFFIX}"

    def _offsets(self, topic: str, query: str) -> list[int]:
        path = self.existing(topic)
        with (
            topic_file.bus_errors(topic, path),
            closing(topic_file.connect(topic, path)) as connection,
        ):
            return [row[0] for row in connection.execute(query)]


def _wrong_count(topic: str, count: int, wanted: int) -> BusError:
    return BusError(
        f"topic {topic} exists with {count} partitions, not {wanted}; "
        f"ask for {count}, or use another name"
    )
