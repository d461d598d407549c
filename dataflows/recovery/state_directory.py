"""The state directory of a pipeline: what a run keeps for the next one.

::

    manifest.json     which pipeline, versions, shards, partitions; the partitioning of windows
    recovery/         the engine's recovery store: epochs, and a token of each state partition
    layout-1/windows  the windows of all keys (one worker), or windows-0, windows-1 … by shard
    models            models, their metrics, predictions that wait for labels
    input-0 …         by input partition: the ids that were seen lately, and the start offsets
    registry          versions of the models, created when they are first wanted

The engine decides from which epoch everything resumes; each state partition is then opened at its
token.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from datetime import timedelta
from pathlib import Path
from types import TracebackType

import msgspec
from bytewax.recovery import RecoveryConfig, init_db_dir

from anabranch.dataflows.bus import Bus, OnOutOfRange, TopicPartition
from anabranch.dataflows.declaration.input_topics import (
    create_or_grow,
    partition_count,
    resolve_topics,
)
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.error_guard import ErrorGuard
from anabranch.dataflows.recovery.inspection import state_partitions
from anabranch.dataflows.recovery.manifest import (
    NAME,
    Manifest,
    check,
    describe,
    read_manifest,
    versions,
    write_manifest,
)
from anabranch.dataflows.recovery.rescale import rescale
from anabranch.dataflows.recovery.resume_point import (
    check_alone,
    commits,
    forget_checksums,
    forget_unconfirmed,
    read_resume_point,
    recovery_files,
    resume_epoch,
    write_checksums,
)
from anabranch.dataflows.recovery.sealed_json import seal
from anabranch.dataflows.recovery.start_offsets import START_OFFSETS
from anabranch.dataflows.recovery.state_partition import (
    INPUT,
    MODELS,
    WINDOWS,
    StatePartition,
    check_state_partition,
)
from anabranch.dataflows.recovery.tokens import Commit
from anabranch.dataflows.recovery.topic_identity import check_topics
from anabranch.dataflows.recovery.verification import check_recovery_store
from anabranch.models.learners.learner import Learner
from anabranch.models.learners.pickling import why_not_picklable
from anabranch.models.registry.registry import DIRECTORY, Registry
from anabranch.models.rollout.challenger import Challenger
from anabranch.state.errors import StateError
from anabranch.state.store.atomic_files import atomic_write, sync_directory
from anabranch.state.store.delta import Delta, decode
from anabranch.state.store.lock import hold, join

_log = logging.getLogger("anabranch.state")
_RECOVERY = "recovery"
# What an interrupted creation leaves behind, or what is there for other reasons.
_IGNORABLE = {"LOCK", "WORKERS", f"{NAME}.new", _RECOVERY, DIRECTORY, "lost+found"}


class StateDirectory:
    """An open state directory; a context manager. Created by `open` or `join`.

    Attributes:
        path: the directory.
        manifest: what it belongs to.
        guard: keeps the errors of its state partitions for the user.
        on_commit: called after each commit of a state partition.
    """

    def __init__(
        self, path: Path, manifest: Manifest, lock: AbstractContextManager[object]
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.guard: ErrorGuard | None = None
        self.on_commit: Callable[[Commit], None] | None = None
        self._partitions: dict[str, StatePartition] = {}
        self._stack = ExitStack()
        self._stack.push(lock)
        self._prepared_here = False

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
        on_recreated: OnOutOfRange = "stop",
        say: Callable[[str], None] = lambda line: None,
    ) -> StateDirectory:
        """Open or create it for this run alone, with windows partitioned for that many workers.

        ``hosts`` is how many state directories there are, one per host, and ``process`` which of
        them this is. ``on_recreated`` is what to do about topics that were deleted and created
        again since the last run: raise, or continue with those that are there now, from their
        first message on. ``say`` gets a line about that, and when something takes a while.

        Raises:
            StateError: it is in use, of something else, incomplete, or can't be written.
            BusError: the bus does not respond.
        """
        _check_picklable(pipeline)
        resolve_topics(pipeline, bus)
        with ExitStack() as stack:
            stack.enter_context(hold(path, say=say))
            manifest = read_manifest(path)
            if manifest is None:
                manifest = _create(path, pipeline, bus, shards, workers, process, hosts)
            _check(manifest, path, pipeline, bus, shards, hosts)
            check_recovery_store(path / _RECOVERY, manifest)
            forget_checksums(path / _RECOVERY)
            manifest = check_topics(manifest, path, pipeline, bus, on_recreated, say)
            manifest = _grow(manifest, path, pipeline, bus, say)
            manifest = _add_outputs(manifest, path, pipeline, bus)
            if hosts == 1:
                _check_state_partitions(path, manifest)
                forget_unconfirmed(path / _RECOVERY)
            if manifest.by_shard != (workers > 1):
                if hosts > 1:
                    raise StateError(
                        f"{path} holds the windows of a single worker: run it once with "
                        "--processes 2 on one machine, and copy the directory to the other hosts"
                    )
                say(f"repartitioning the windows in {path} for {workers} workers")
                manifest = rescale(path, path / _RECOVERY, pipeline, manifest)
            _remove_old_layouts(path, manifest)
            opened = cls(path, manifest, stack.pop_all())
            opened._prepared_here = True
            return opened

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
        resolve_topics(pipeline, bus)
        with ExitStack() as stack:
            stack.enter_context(join(path))
            manifest = read_manifest(path)
            if manifest is None or manifest.by_shard != (workers > 1):
                raise StateError(
                    f"{path} was not prepared for {workers} workers: start all of them again"
                )
            _check(manifest, path, pipeline, bus, shards, manifest.hosts)
            if manifest.hosts == 1:  # no engine starts before this worker connects
                forget_unconfirmed(path / _RECOVERY)
            return cls(path, manifest, stack.pop_all())

    def __enter__(self) -> StateDirectory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None and self._prepared_here:  # no engine is running any more
            try:
                write_checksums(self.path / _RECOVERY)
            except StateError as error:  # they are not needed
                _log.info("%s", error)
        self.close()

    def close(self) -> None:
        """Close all state partitions and release the directory; idempotent."""
        for partition in self._partitions.values():
            partition.close()
        self._partitions.clear()
        self._stack.close()

    def generation(self) -> int:
        """How many epochs were committed, over all runs; with several hosts it may lag by one."""
        files = recovery_files(self.path / _RECOVERY)
        return max(resume_epoch(files) - 1, commits(files))

    def lag(self, bus: Bus) -> int:
        """How many messages of the input topics lie behind the offsets a run would resume from.

        Raises:
            BusError: the bus does not respond.
        """
        partitions = read_resume_point(self.path / _RECOVERY).partitions()
        topics = bus.topics()
        recorded = {topic for _, part in partitions for topic in part.offsets if topic in topics}
        ends = {topic: bus.end_offsets(topic) for topic in recorded}
        started = [number for number, _ in partitions]
        added = sum(
            end - start
            for topic in recorded
            for number, (start, end) in enumerate(
                zip(bus.start_offsets(topic), ends[topic], strict=False)
            )
            if number >= self.manifest.first_partitions and number not in started
        )
        return added + sum(
            max(ends[topic][number] - offset, 0)
            for number, part in partitions
            for topic, offset in part.offsets.items()
            if topic in recorded
        )

    def windows(self, name: str) -> StatePartition:
        """A state partition of windows, by the name that `windows_partition` gives it."""
        return self._partition(layout_directory(self.path, self.manifest) / name)

    def models(self) -> StatePartition:
        """The state partition of models, metrics and pending predictions."""
        return self._partition(self.path / MODELS)

    def input_partition(self, number: int) -> StatePartition:
        """The state partition with the ids seen of an input partition."""
        return self._partition(self.path / f"{INPUT}-{number}")

    def write_start_offsets(self, partition: int, offsets: Mapping[str, int | None]) -> None:
        """Keep where the reading of an input partition starts, by topic; for lineage alone.

        None stands for history that is read in place of what lies before the offset.

        Raises:
            StateError: it can't be written.
        """
        path = self.path / f"{INPUT}-{partition}" / START_OFFSETS
        atomic_write(path, seal({"offsets": offsets}))

    def set_initial_model(self, reference: str) -> None:
        """Let learning start from this version of the registry; before anything is committed.

        Raises:
            StateError: it can't be written.
        """
        self.manifest = msgspec.structs.replace(self.manifest, model=reference)
        write_manifest(self.path, self.manifest)

    def initial_learner(self, pipeline: Pipeline) -> Learner | None:
        """The model that learning starts from; None: an untrained one.

        Raises:
            InputError, StateError: it is gone from the registry, or damaged.
        """
        if self.manifest.model is None:
            return None
        registry = Registry.of(self.path)
        version = registry.find(self.manifest.model)
        return pipeline.wrap(registry.learner(version, pipeline.columns, pipeline.task))

    def initial_distributions(self) -> Delta | None:
        """The reference distributions that were kept with the initial model; None: none were.

        Raises:
            InputError, StateError: it is gone from the registry, or damaged.
        """
        if self.manifest.model is None:
            return None
        registry = Registry.of(self.path)
        blob = registry.distributions(registry.find(self.manifest.model))
        if blob is None:
            return None
        return decode(msgspec.msgpack.decode(blob, type=dict[str, bytes]))

    def step_id(self, step: str) -> str:
        """The id of a step in the engine: another one for each layout, with tokens of its own."""
        return f"{step}_{self.manifest.layout}"

    def recovery_config(self) -> RecoveryConfig:
        """What the engine needs to commit epochs here, and to resume."""
        return RecoveryConfig(str(self.path / _RECOVERY), timedelta(0))  # type: ignore[no-untyped-call]

    def output_ends(self) -> dict[TopicPartition, int]:
        """The ends of the output topics when the directory was created."""
        return {
            TopicPartition(topic, partition): end
            for topic, ends in self.manifest.output_ends.items()
            for partition, end in enumerate(ends)
        }

    def not_before(self) -> dict[TopicPartition, int]:
        """Ends of outputs before which nothing is of the present inputs."""
        return {
            TopicPartition(topic, partition): end
            for topic, ends in self.manifest.not_before.items()
            for partition, end in enumerate(ends)
        }

    def _partition(self, directory: Path) -> StatePartition:
        return self._partitions.setdefault(
            str(directory), StatePartition(directory, self.guard, self.on_commit)
        )


def layout_directory(path: Path, manifest: Manifest) -> Path:
    """Where the windows are in the present layout."""
    return path / f"layout-{manifest.layout}"


def _create(
    path: Path,
    pipeline: Pipeline,
    bus: Bus,
    shards: int,
    workers: int,
    process: int,
    hosts: int,
) -> Manifest:
    unexpected = sorted(entry.name for entry in path.iterdir() if entry.name not in _IGNORABLE)
    if unexpected:
        raise StateError(
            f"{path} is no state directory and is not empty (it holds {unexpected[0]}): name "
            "another one with --state"
        )
    partitions = partition_count(pipeline, bus)
    outputs = pipeline.topics.outputs
    create_or_grow(bus, outputs, partitions)
    manifest = Manifest(
        pipeline=pipeline.name,
        declaration=describe(pipeline),
        versions=versions(),
        shards=shards,
        partitions=partitions,
        hosts=hosts,
        layout=1,
        by_shard=workers > 1,
        output_ends={topic: bus.end_offsets(topic) for topic in outputs},
    )
    try:
        _create_recovery_store(path / _RECOVERY, process, hosts)
    except OSError as error:
        raise StateError(f"{path} can't be written: {error.strerror}") from None
    write_manifest(path, manifest)
    return manifest


def _check_picklable(pipeline: Pipeline) -> None:
    """Raise unless all models of the pipeline can be stored and loaded again."""
    models = {"the model": pipeline.model}
    models |= {f"challenger {name!r}": model for name, model in pipeline.challengers.items()}
    if pipeline.on_drift is not None:
        models["the model of on_drift="] = pipeline.on_drift
    for what, model in models.items():
        reason = why_not_picklable(model.model if isinstance(model, Challenger) else model)
        if reason is not None:
            raise StateError(
                f"{what} of pipeline {pipeline.name!r} can't be stored: {reason}; change it, or "
                "run with --no-state"
            )


def _grow(
    manifest: Manifest, path: Path, pipeline: Pipeline, bus: Bus, say: Callable[[str], None]
) -> Manifest:
    """Take in the partitions that were added to the inputs, and add as many to the outputs.

    Windows and models belong to keys, not to partitions: nothing has to be repartitioned.
    """
    partitions = partition_count(pipeline, bus)
    if partitions == manifest.partitions:
        return manifest
    outputs = [topic for topic in manifest.output_ends if topic in pipeline.topics.outputs]
    create_or_grow(bus, outputs, partitions)
    output_ends = dict(manifest.output_ends)
    for topic in outputs:
        # Those partitions did not exist when the state was created: all on them is its own, even
        # if this state is a backup from before they were added.
        known = output_ends[topic]
        output_ends[topic] = known + [0] * (partitions - len(known))
    changed = msgspec.structs.replace(
        manifest,
        partitions=partitions,
        created_partitions=manifest.first_partitions,
        output_ends=output_ends,
    )
    write_manifest(path, changed)
    say(
        f"the topics of pipeline {pipeline.name!r} have {partitions} partitions now, and had "
        f"{manifest.partitions}: the new ones are read from their first message on"
    )
    return changed


def _add_outputs(manifest: Manifest, path: Path, pipeline: Pipeline, bus: Bus) -> Manifest:
    """Record the ends of outputs that the pipeline did not have when the state was created.

    What is on them already was published by something else.
    """
    new = [topic for topic in pipeline.topics.outputs if topic not in manifest.output_ends]
    if not new:
        return manifest
    create_or_grow(bus, new, manifest.partitions)
    ends = {**manifest.output_ends, **{topic: bus.end_offsets(topic) for topic in new}}
    manifest = msgspec.structs.replace(manifest, output_ends=ends)
    write_manifest(path, manifest)
    return manifest


def _create_recovery_store(directory: Path, process: int, hosts: int) -> None:
    """Create this host's partition of the engine's recovery store."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    init_db_dir(directory, hosts)  # type: ignore[no-untyped-call]
    for file in recovery_files(directory):
        if file.name != f"part-{process}.sqlite3":
            file.unlink()
    sync_directory(directory)


def _check(
    manifest: Manifest, path: Path, pipeline: Pipeline, bus: Bus, shards: int, hosts: int
) -> None:
    check(manifest, pipeline, path, shards)
    if not recovery_files(path / _RECOVERY):
        raise StateError(
            f"the recovery store {path / _RECOVERY} is missing, and only it says where to resume: "
            "restore it from a backup, or start from scratch with another --state"
        )
    partitions = partition_count(pipeline, bus)
    if partitions < manifest.partitions:
        raise StateError(
            f"the topics of pipeline {pipeline.name!r} have {partitions} partitions, and {path} "
            f"was last used with {manifest.partitions}: topics never lose partitions, so these are "
            "others; start from scratch with another --state"
        )
    if hosts != manifest.hosts:
        raise StateError(
            f"{path} was created for {manifest.hosts} hosts, and this run names {hosts}: bring all "
            "recovery partitions together, or start from scratch with another --state"
        )


def _check_state_partitions(path: Path, manifest: Manifest) -> None:
    """Raise unless they belong to the recovery store; all of them are on this host."""
    check_alone(path / _RECOVERY)
    tokens = read_resume_point(path / _RECOVERY).tokens(manifest.layout)
    directories = {directory.name: directory for directory in state_partitions(path, manifest)}
    layout = layout_directory(path, manifest)
    for name in tokens.keys() - directories.keys():
        directories[name] = (layout if name.startswith(WINDOWS) else path) / name
    for name in sorted(directories):
        check_state_partition(directories[name], tokens.get(name))


def _remove_old_layouts(path: Path, manifest: Manifest) -> None:
    """Remove layouts that are no longer used, or were never finished."""
    for directory in path.glob("layout-*"):
        if directory != layout_directory(path, manifest):
            shutil.rmtree(directory, ignore_errors=True)
