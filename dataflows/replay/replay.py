"""A whole replay: history through the steps, training rows out, and a state to go on from.

All or nothing: rows, dead letters and state get their names when everything is done. A replay that
is interrupted, or fails, leaves what was there before.

What a replay predicts is not published. So a run that goes on from its state publishes exactly one
prediction for each event behind the replay, and none for those in it.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from anabranch.dataflows.batch.results import Results
from anabranch.dataflows.bus import Bus, TopicPartition
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.recovery.resume_point import read_resume_point
from anabranch.dataflows.recovery.state_directory import StateDirectory
from anabranch.dataflows.replay.features_only import FeaturesOnly
from anabranch.dataflows.replay.source_offsets import ContinueAt, Origin, open_origin
from anabranch.dataflows.replay.training_file import RowFile, Workspace
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.sink.callback_sink import ResultsCallback
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics
from anabranch.state.errors import AnabranchError, InputError
from anabranch.state.store.atomic_files import sync_directory
from anabranch.state.store.lock import holder

_EPOCH_S = 10.0
_HOPELESS = 10_000  # events, when not one of them was of use


class InterruptedReplayError(AnabranchError):
    """The user has ended a replay; nothing was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySettings:
    """What to replay and where to write.

    Attributes:
        events, labels: a file or a topic each; without ``labels`` those of the pipeline's own topic
            belong to its events, and a file has none.
        rows: the Parquet file for the training rows.
        dead_letters: a JSONL file for what could not be used; None: only counted.
        state: a new directory for the state to go on from.
        continue_at: where a run goes on, of topics whose offsets are not known.
        features_only: rows without predictions; no model runs, and none can go on from it.
        batch, shards: as those of a run.
    """

    events: str
    labels: str | None = None
    rows: Path
    dead_letters: Path | None = None
    state: Path | None = None
    continue_at: ContinueAt | None = None
    features_only: bool = False
    batch: int = 8192
    shards: int = 8


@dataclass(slots=True)
class Replayed:
    """How far a replay is: messages of ``total`` (0: not known yet), rows, dead letters by reason.

    ``offsets`` are where a run would go on, when there is a state. ``first_dead`` is why the first
    event was refused.
    """

    total: int = 0
    events: int = 0
    labels: int = 0
    rows: int = 0
    labelled: int = 0
    dead: Counter[str] = field(default_factory=Counter)
    first_dead: str = ""
    offsets: dict[TopicPartition, int] = field(default_factory=dict)


def replay(
    pipeline: Pipeline,
    settings: ReplaySettings,
    bus: Bus | None = None,
    *,
    stop: threading.Event | None = None,
    metrics: WorkerMetrics | None = None,
    told: Replayed | None = None,
) -> Replayed:
    """Replay; ``bus`` is for topics and for a state. ``told`` is kept up to date meanwhile.

    Raises:
        InterruptedReplayError: ``stop`` was set.
        InputError: a file can't be used or written, or nothing in it can be.
        AnabranchError: what made it impossible, in one sentence.
    """
    stop = stop or threading.Event()
    metrics = metrics or WorkerMetrics(pipeline.name)
    found = told or Replayed()

    def check() -> None:
        if stop.is_set():
            raise InterruptedReplayError("interrupted: nothing was written")

    _check_targets(settings)
    if pipeline.candidates is not None:
        raise InputError(
            f"pipeline {pipeline.name!r} ranks candidates, and a replay has a row per event: run "
            "it over its topics instead, with --from earliest --until-end"
        )
    if settings.features_only:
        pipeline = FeaturesOnly(pipeline)
    origin = open_origin(
        pipeline,
        settings.events,
        settings.labels,
        bus,
        going_on=settings.state is not None,
        continue_at=settings.continue_at,
        check=check,
    )
    found.total = origin.total
    with ExitStack() as stack:
        workspace = stack.enter_context(Workspace(settings.rows))
        rows = RowFile(pipeline, workspace.path, dead_letters=settings.dead_letters is not None)
        stack.callback(rows.close)
        draft = None if settings.state is None else stack.enter_context(_Draft(settings.state))
        tally = _Tally(rows, found, metrics, settings.events)
        _run(pipeline, settings, origin, bus, draft, stop, metrics, tally)
        check()
        if not rows.rows:
            raise _useless(settings.events, found)
        if draft is not None:
            found.offsets = draft.offsets()
        rows.finish(settings.rows, settings.dead_letters, check)
        if draft is not None:
            draft.keep()
    return found


def _check_targets(settings: ReplaySettings) -> None:
    """Raise now for what would only be found when everything is done."""
    if settings.features_only and settings.state is not None:
        raise InputError(
            "--features-only leaves no state, for no model has learned: leave out one of "
            "--features-only and --state"
        )
    for path in (settings.rows, settings.dead_letters):
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            why = "it is a directory" if path.is_dir() else "its directory does not exist"
            raise InputError(f"{path} can't be written: {why}; name another file, or make that")


def _run(
    pipeline: Pipeline,
    settings: ReplaySettings,
    origin: Origin,
    bus: Bus | None,
    draft: _Draft | None,
    stop: threading.Event,
    metrics: WorkerMetrics,
    outlet: ResultsCallback,
) -> None:
    """Run the flow over the history, to its end or until ``stop`` is set."""
    options = SourceOptions(
        limit=settings.batch,
        until_end=True,
        idle_timeout_s=float("inf"),
        recorded_offsets=origin.places,
        stop=stop,
    )
    with ExitStack() as stack:
        state = None
        if draft is not None and bus is not None:
            opened = StateDirectory.open(draft.path, pipeline, bus, shards=settings.shards)
            state = stack.enter_context(opened)
        run_worker(
            pipeline,
            origin.bus,
            options,
            metrics=metrics,
            checkpoint_interval_s=_EPOCH_S,
            shards=settings.shards,
            state=state,
            callback=outlet,
        )


class _Tally:
    """Takes results, and counts what they are made of."""

    def __init__(self, rows: RowFile, found: Replayed, metrics: WorkerMetrics, events: str) -> None:
        self._rows = rows
        self._found = found
        self._metrics = metrics
        self._events = events

    def __call__(self, results: Results) -> None:
        found, batch, rows = self._found, results.batch, self._rows
        found.events += len(batch.raw.events)
        found.labels += len(batch.raw.labels)
        for letter in (*batch.dead_letters, *results.dead_letters):
            found.dead[letter.reason] += 1
            if not found.first_dead and letter.topic == batch.raw.events.topic:
                found.first_dead = f"{letter.reason}, {letter.detail}"
        rows.add(results)
        found.rows, found.labelled = rows.rows, rows.labelled
        if not rows.rows and found.events >= _HOPELESS:
            raise _useless(self._events, found)
        self._metrics.flush_if_due()


class _Draft:
    """A state directory under another name, until everything is done; a context manager.

    Raises:
        InputError: there is something under its name already.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self.path = target.with_name(f".{target.name}.replaying")

    def __enter__(self) -> _Draft:
        target = self._target
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise InputError(
                f"{target} is there already, and a replay makes a new state: name another "
                "directory with --state, or remove that one"
            )
        if (owner := holder(self.path)) is not None:
            raise InputError(
                f"another replay (process {owner}) is making {target}: wait for its end"
            )
        self._remove()
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def offsets(self) -> dict[TopicPartition, int]:
        """Where a run would go on."""
        parts = read_resume_point(self.path / "recovery").partitions()
        return {
            TopicPartition(topic, number): offset
            for number, part in parts
            for topic, offset in part.offsets.items()
        }

    def keep(self) -> None:
        """Give it its name."""
        try:
            os.replace(self.path, self._target)
            sync_directory(self._target.parent)
        except OSError as error:
            raise InputError(f"{self._target} can't be made: {error.strerror}") from None

    def _remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def _useless(events: str, found: Replayed) -> InputError:
    if not found.events:
        return InputError(f"{events} holds no events: there is nothing to replay")
    return InputError(
        f"none of the first {found.events:,} events of {events} could be used; the first one: "
        f"{found.first_dead}"
    )
