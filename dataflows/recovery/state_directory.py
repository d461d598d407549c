"""The state directory of a pipeline: what a run remembers when it begins again.

::

    identity.json     which pipeline, versions, shards, partitions; how the windows are laid out
    recovery/         the engine's recovery store: epochs, and a token of each place
    layout-1/windows  the windows of all keys (one worker), or windows-0, windows-1 … by shard
    models            models, their metrics, predictions that wait for labels
    intake-0 …        by input partition: the ids that were seen lately, and where reading began
    registry          versions of the models, made when somebody asks for them

The engine decides at which epoch everything goes on; each place is then opened at its token.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from datetime import timedelta
from pathlib import Path
from types import TracebackType

import msgspec
from bytewax.recovery import RecoveryConfig, init_db_dir

from anabranch.dataflows.bus import Bus, TopicPartition
from anabranch.dataflows.declaration.input_topics import partition_count
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.error_guard import Guard
from anabranch.dataflows.recovery.inspection import place_directories, tokens_by_place
from anabranch.dataflows.recovery.manifest import (
    Identity,
    check,
    describe,
    read_identity,
    versions,
    write_identity,
)
from anabranch.dataflows.recovery.rescale import lay_out_anew
from anabranch.dataflows.recovery.resume_point import (
    check_alone,
    commits,
    forget_unconfirmed,
    read_resume_point,
    recovery_files,
    resume_epoch,
)
from anabranch.dataflows.recovery.state_partition import WINDOWS, Committed, Place, check_place
from anabranch.models.learners.durable import why_not_durable
from anabranch.models.learners.learner import Learner
from anabranch.models.registry.registry import DIRECTORY, Registry
from anabranch.models.rollout.challenger import Challenger
from anabranch.state.errors import StateError
from anabranch.state.store.atomic_files import sync_directory, write_whole
from anabranch.state.store.delta import Delta, decode
from anabranch.state.store.lock import hold, join

BEGAN = "BEGAN"
"""The file in the place of an input partition that tells where its reading began."""

_RECOVERY = "recovery"
# Left behind when making it was interrupted, or there for other reasons.
_HARMLESS = {"LOCK", "WORKERS", "identity.json.new", _RECOVERY, DIRECTORY, "lost+found"}


class StateDirectory:
    """An open state directory; a context manager. Made by `open` or `join`.

    Attributes:
        path: the directory.
        identity: what it belongs to.
    """

    def __init__(
        self, path: Path, identity: Identity, lock: AbstractContextManager[object]
    ) -> None:
        self.path = path
        self.identity = identity
        self.guard: Guard | None = None
        self.on_commit: Callable[[Committed], None] | None = None
        self._places: dict[str, Place] = {}
        self._stack = ExitStack()
        self._stack.push(lock)

    @classmethod
    def open(
        cls,
        path: Path,
        pipeline: Pipeline,
        bus: Bus,
        *,
        shards: int = 8,
        workers: int = 1,
        process: int = 0,
        hosts: int = 1,
        say: Callable[[str], None] = lambda line: None,
    ) -> StateDirectory:
        """Open or make it for this run alone, and lay the windows out for that many workers.

        ``hosts`` is how many state directories there are, one per host, and ``process`` which of
        them this is. ``say`` is told when it takes a while.

        Raises:
            StateError: it is in use, of something else, incomplete, or can't be written.
            BusError: the bus does not answer.
        """
        _check_durable(pipeline)
        with ExitStack() as stack:
            stack.enter_context(hold(path, say=say))
            identity = read_identity(path)
            if identity is None:
                identity = _make(path, pipeline, bus, shards, workers, process, hosts)
            _check(identity, path, pipeline, bus, shards, hosts)
            identity = _know_outputs(identity, path, pipeline, bus)
            if hosts == 1:
                _check_places(path, identity)
                forget_unconfirmed(path / _RECOVERY)
            if identity.by_shard != (workers > 1):
                if hosts > 1:
                    raise StateError(
                        f"{path} holds the windows of a single worker: run it once with "
                        "--processes 2 on one machine, and copy the directory to the other hosts"
                    )
                say(f"laying the windows in {path} out for {workers} workers")
                identity = lay_out_anew(path, path / _RECOVERY, pipeline, identity)
            _remove_old_layouts(path, identity)
            return cls(path, identity, stack.pop_all())

    @classmethod
    def join(
        cls,
        path: Path,
        pipeline: Pipeline,
        bus: Bus,
        *,
        shards: int = 8,
        workers: int = 2,
    ) -> StateDirectory:
        """Open what a launcher has prepared, as one of its workers.

        Raises:
            StateError: it is of something else or was not prepared for that many workers.
        """
        with ExitStack() as stack:
            stack.enter_context(join(path))
            identity = read_identity(path)
            if identity is None or identity.by_shard != (workers > 1):
                raise StateError(f"{path} was not prepared for {workers} workers")
            _check(identity, path, pipeline, bus, shards, identity.hosts)
            if identity.hosts == 1:  # before this worker connects, the engine of none has begun
                forget_unconfirmed(path / _RECOVERY)
            return cls(path, identity, stack.pop_all())

    def __enter__(self) -> StateDirectory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all places and let go of the directory; idempotent."""
        for place in self._places.values():
            place.close()
        self._places.clear()
        self._stack.close()

    def generation(self) -> int:
        """How many epochs were committed, over all runs; with several hosts it may lag by one."""
        files = recovery_files(self.path / _RECOVERY)
        return max(resume_epoch(files) - 1, commits(files))

    def behind(self, bus: Bus) -> int:
        """Messages on the input topics behind the offsets that a run would go on from.

        Raises:
            BusError: the bus does not answer.
        """
        parts, there = read_resume_point(self.path / _RECOVERY).partitions(), bus.topics()
        known = {topic for _, part in parts for topic in part.offsets if topic in there}
        ends = {topic: bus.end_offsets(topic) for topic in known}
        return sum(
            max(ends[topic][number] - offset, 0)
            for number, part in parts
            for topic, offset in part.offsets.items()
            if topic in known
        )

    def windows(self, name: str) -> Place:
        """The place of windows, by the name that `windows_of` gives it."""
        return self._place(layout_directory(self.path, self.identity) / name)

    def models(self) -> Place:
        """The place of models, metrics and waiting predictions."""
        return self._place(self.path / "models")

    def intake(self, partition: int) -> Place:
        """The place of what was seen of an input partition."""
        return self._place(self.path / f"intake-{partition}")

    def begins(self, partition: int, offsets: Mapping[str, int | None]) -> None:
        """Note where the reading of an input partition begins, by topic; for lineage alone.

        None stands for history that is read in place of what lies before the offset.
        """
        write_whole(self.path / f"intake-{partition}" / BEGAN, msgspec.json.encode(offsets))

    def begin_with(self, model: str) -> None:
        """Let learning begin with this version of the registry; before anything is committed.

        Raises:
            StateError: the disk does not take it.
        """
        self.identity = msgspec.structs.replace(self.identity, model=model)
        write_identity(self.path, self.identity)

    def first_learner(self, pipeline: Pipeline) -> Learner | None:
        """What learning begins with, when it is not a fresh model.

        Raises:
            InputError, StateError: it is gone from the registry, or damaged.
        """
        if self.identity.model is None:
            return None
        registry = Registry.of(self.path)
        version = registry.find(self.identity.model)
        return pipeline.wrap(registry.learner(version, pipeline.columns, pipeline.task))

    def first_distributions(self) -> Delta | None:
        """How the data were distributed of what learning begins with, where that was watched.

        Raises:
            InputError, StateError: it is gone from the registry, or damaged.
        """
        if self.identity.model is None:
            return None
        registry = Registry.of(self.path)
        blob = registry.distributions(registry.find(self.identity.model))
        if blob is None:
            return None
        return decode(msgspec.msgpack.decode(blob, type=dict[str, bytes]))

    def step_id(self, step: str) -> str:
        """The id of a step in the engine: another one after each new layout, with new tokens."""
        return f"{step}_{self.identity.layout}"

    def recovery_config(self) -> RecoveryConfig:
        """What the engine needs to commit epochs here, and to resume."""
        return RecoveryConfig(str(self.path / _RECOVERY), timedelta(0))  # type: ignore[no-untyped-call]

    def since(self) -> dict[TopicPartition, int]:
        """The ends of the output topics when the directory was made."""
        return {
            TopicPartition(topic, partition): end
            for topic, ends in self.identity.since.items()
            for partition, end in enumerate(ends)
        }

    def _place(self, directory: Path) -> Place:
        return self._places.setdefault(str(directory), Place(directory, self.guard, self.on_commit))


def layout_directory(path: Path, identity: Identity) -> Path:
    """Where the windows are, in their present layout."""
    return path / f"layout-{identity.layout}"


def _make(
    path: Path,
    pipeline: Pipeline,
    bus: Bus,
    shards: int,
    workers: int,
    process: int,
    hosts: int,
) -> Identity:
    strangers = sorted(entry.name for entry in path.iterdir() if entry.name not in _HARMLESS)
    if strangers:
        raise StateError(
            f"{path} is no state directory and is not empty (it holds {strangers[0]}): name "
            "another one with --state"
        )
    partitions = partition_count(pipeline, bus)
    outputs = pipeline.topics.outputs
    bus.create_topics(dict.fromkeys(outputs, partitions))
    identity = Identity(
        pipeline=pipeline.name,
        declaration=describe(pipeline),
        versions=versions(),
        shards=shards,
        partitions=partitions,
        hosts=hosts,
        layout=1,
        by_shard=workers > 1,
        since={topic: bus.end_offsets(topic) for topic in outputs},
    )
    try:
        _make_recovery_store(path / _RECOVERY, process, hosts)
    except OSError as error:
        raise StateError(f"{path} can't be written: {error.strerror}") from None
    write_identity(path, identity)
    return identity


def _check_durable(pipeline: Pipeline) -> None:
    """Raise unless all models can be written down and taken up again."""
    models = {"the model": pipeline.model}
    models |= {f"challenger {name!r}": model for name, model in pipeline.challengers.items()}
    if pipeline.on_drift is not None:
        models["the model of on_drift="] = pipeline.on_drift
    for what, model in models.items():
        reason = why_not_durable(model.model if isinstance(model, Challenger) else model)
        if reason is not None:
            raise StateError(
                f"{what} of pipeline {pipeline.name!r} can't be kept: {reason}; change it, or "
                "run with --no-state"
            )


def _know_outputs(identity: Identity, path: Path, pipeline: Pipeline, bus: Bus) -> Identity:
    """Note where outputs end that the pipeline did not have when the state was made.

    What is on them is somebody else's: of this state nothing was published there.
    """
    new = [topic for topic in pipeline.topics.outputs if topic not in identity.since]
    if not new:
        return identity
    bus.create_topics(dict.fromkeys(new, identity.partitions))
    since = {**identity.since, **{topic: bus.end_offsets(topic) for topic in new}}
    identity = msgspec.structs.replace(identity, since=since)
    write_identity(path, identity)
    return identity


def _make_recovery_store(directory: Path, process: int, hosts: int) -> None:
    """This host's partition of the engine's recovery store."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    init_db_dir(directory, hosts)  # type: ignore[no-untyped-call]
    for file in recovery_files(directory):
        if file.name != f"part-{process}.sqlite3":
            file.unlink()
    sync_directory(directory)


def _check(
    identity: Identity, path: Path, pipeline: Pipeline, bus: Bus, shards: int, hosts: int
) -> None:
    check(identity, pipeline, path, shards)
    if not recovery_files(path / _RECOVERY):
        raise StateError(
            f"the recovery store {path / _RECOVERY} is gone, and without it nobody knows where to "
            "go on: restore it from a backup, or begin anew with another --state"
        )
    partitions = partition_count(pipeline, bus)
    if partitions != identity.partitions:
        raise StateError(
            f"the topics of pipeline {pipeline.name!r} have {partitions} partitions, and {path} "
            f"was made for {identity.partitions}: keys have moved between partitions, so begin "
            "anew with another --state"
        )
    if hosts != identity.hosts:
        raise StateError(
            f"{path} was made for {identity.hosts} hosts, and this run names {hosts}: bring all "
            "recovery partitions together, or begin anew with another --state"
        )


def _check_places(path: Path, identity: Identity) -> None:
    """Raise unless recovery store and places belong together; all of them are on this host."""
    check_alone(path / _RECOVERY)
    tokens = tokens_by_place(read_resume_point(path / _RECOVERY), identity)
    places = {directory.name: directory for directory in place_directories(path, identity)}
    layout = layout_directory(path, identity)
    for name in tokens.keys() - places.keys():
        places[name] = (layout if name.startswith(WINDOWS) else path) / name
    for name in sorted(places):
        check_place(places[name], tokens.get(name))


def _remove_old_layouts(path: Path, identity: Identity) -> None:
    """Remove layouts that are no longer used, or were never finished."""
    for directory in path.glob("layout-*"):
        if directory != layout_directory(path, identity):
            shutil.rmtree(directory, ignore_errors=True)
