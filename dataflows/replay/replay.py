"""Replays history through a pipeline into training rows and, on request, a state to run from.

A replay is all or nothing: rows, dead letters and state get their final names when everything is
complete. One that fails or is interrupted leaves what was there before.

Predictions of a replay are not published. A run that continues from its state publishes exactly one
prediction for each event after the replay, and none for the replayed events.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from anabranch.dataflows.batch.results import Results
from anabranch.dataflows.bus import Bus, TopicPartition
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.recovery.replayed_history import ReplayedHistory, write_replayed
from anabranch.dataflows.recovery.resume_point import read_resume_point
from anabranch.dataflows.recovery.state_directory import StateDirectory
from anabranch.dataflows.replay.features_only import FeaturesOnly
from anabranch.dataflows.replay.source_offsets import (
    ContinueAt,
    ReplaySource,
    is_file,
    open_source,
)
from anabranch.dataflows.replay.training_file import TrainingFile, Workspace
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics
from anabranch.state.errors import AnabranchError, InputError
from anabranch.state.store.atomic_files import sync_directory
from anabranch.state.store.lock import holder

_CHECKPOINT_S = 10.0
_GIVE_UP_AFTER = 10_000  # events of which none could be used


class InterruptedReplayError(AnabranchError):
    """A replay was interrupted; nothing was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySettings:
    """What to replay and where to write.

    Attributes:
        events, labels: a file or topic each; without ``events`` the pipeline's own topics; without
            ``labels`` its own labels topics belong to its own events topics, and there are none
            otherwise.
        rows: the Parquet file for the training rows.
        dead_letters: a JSONL file for messages that could not be used; None: they are counted only.
        state: a new state directory, from which a run can continue; None: none is written.
        continue_at: where that run starts on topics whose offsets are unknown.
        features_only: write rows without predictions; no model runs.
        batch_size, shards: as those of a run.
    """

    events: str | None
    labels: str | None = None
    rows: Path
    dead_letters: Path | None = None
    state: Path | None = None
    continue_at: ContinueAt | None = None
    features_only: bool = False
    batch_size: int = 8192
    shards: int = 8


@dataclass(slots=True)
class ReplayReport:
    """Progress and result of a replay.

    Attributes:
        total: upper bound of the number of messages; 0: not known yet.
        events, labels: messages read so far.
        rows, labelled: training rows so far, and how many of them have a label.
        dead_letters: number of dead letters by reason.
        first_rejected: why the first rejected event was rejected.
        offsets: where a run would continue, if a state was written.
    """

    total: int = 0
    events: int = 0
    labels: int = 0
    rows: int = 0
    labelled: int = 0
    dead_letters: Counter[str] = field(default_factory=Counter)
    first_rejected: str = ""
    offsets: dict[TopicPartition, int] = field(default_factory=dict)


def replay(
    pipeline: Pipeline,
    settings: ReplaySettings,
    bus: Bus | None = None,
    *,
    stop: threading.Event | None = None,
    metrics: WorkerMetrics | None = None,
    report: ReplayReport | None = None,
) -> ReplayReport:
    """Replay the history that ``settings`` name, and write what they ask for.

    Args:
        pipeline: the pipeline to run.
        settings: what to read and write.
        bus: needed for topics, and for a state.
        stop: interrupts the replay when it is set.
        metrics: counts what a run would count.
        report: kept up to date during the replay; a new one by default.

    Returns:
        The report.

    Raises:
        InterruptedReplayError: ``stop`` was set.
        InputError: a file can't be read or written, or no event can be used.
        AnabranchError: anything else that makes the replay impossible.
    """
    stop = stop or threading.Event()
    report = report or ReplayReport()

    def check() -> None:
        if stop.is_set():
            raise InterruptedReplayError("interrupted: nothing was written")

    _check_settings(pipeline, settings)
    if settings.features_only:
        pipeline = FeaturesOnly(pipeline)
    source = open_source(
        pipeline,
        settings.events,
        settings.labels,
        bus,
        resumable=settings.state is not None,
        continue_at=settings.continue_at,
        check=check,
    )
    report.total = source.total
    with ExitStack() as stack:
        workspace = stack.enter_context(Workspace(settings.rows))
        wants_dead_letters = settings.dead_letters is not None
        file = TrainingFile(pipeline, workspace.path, dead_letters=wants_dead_letters)
        stack.callback(file.close)
        draft = None if settings.state is None else stack.enter_context(_StateDraft(settings.state))
        metrics = metrics or WorkerMetrics(pipeline.name)
        events = settings.events or ", ".join(pipeline.topics.all_events)
        collector = _Collector(file, report, metrics, events, pipeline.topics.all_events)
        _run(pipeline, settings, source, bus, draft, stop, collector)
        check()
        if not file.rows:
            raise _no_usable_event(events, report)
        if draft is not None:
            report.offsets = draft.offsets()
            _record_history(pipeline, settings, source, draft.path, report.offsets)
        file.finish(settings.rows, settings.dead_letters, check)
        if draft is not None:
            draft.publish()
    return report


def _record_history(
    pipeline: Pipeline,
    settings: ReplaySettings,
    source: ReplaySource,
    state: Path,
    offsets: Mapping[TopicPartition, int],
) -> None:
    """Record in the new state what was read, unless all of it is on the pipeline's own topics."""
    topics = pipeline.topics
    own = (topics.events, topics.labels if pipeline.has_label_topic else None)
    events, labels = settings.events or topics.events, settings.labels
    if labels is None and events == topics.events:
        labels = own[1]
    if (events, labels) == own:
        return
    continued: dict[str, dict[int, int]] = {}
    for at, offset in offsets.items():
        continued.setdefault(at.topic, {})[at.partition] = offset
    named = {events: topics.events, **({labels: topics.labels} if labels else {})}
    write_replayed(
        state,
        ReplayedHistory(
            events=_name(events),
            labels=None if labels is None else _name(labels),
            ends={
                name: source.bus.end_offsets(topic)
                for name, topic in named.items()
                if not is_file(name)
            },
            offsets=continued,
        ),
    )


def _topics_of_files(pipeline: Pipeline, settings: ReplaySettings) -> list[str]:
    """The pipeline's topics that files stand for."""
    topics = pipeline.topics
    given = {topics.events: settings.events, topics.labels: settings.labels}
    return [topic for topic, name in given.items() if name is not None and is_file(name)]


def _name(source: str) -> str:
    return str(Path(source).absolute()) if is_file(source) else source


def _check_settings(pipeline: Pipeline, settings: ReplaySettings) -> None:
    """Raise now for problems that would otherwise only show at the end."""
    if pipeline.candidates is not None:
        raise InputError(
            f"pipeline {pipeline.name!r} ranks candidates, and a replay writes one row per event: "
            "run it over its topics instead, with --start-offset earliest --until-end"
        )
    if pipeline.shares_topics and (settings.labels or is_file(settings.events or "")):
        raise InputError(
            f"the events and labels of pipeline {pipeline.name!r} are on one topic: replay that, "
            "with --from TOPIC and without --labels"
        )
    if settings.features_only and settings.state is not None:
        raise InputError(
            "--features-only trains no model, so it can't write a state: leave out one of "
            "--features-only and --state"
        )
    for path in (settings.rows, settings.dead_letters):
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            why = "it is a directory" if path.is_dir() else "its directory does not exist"
            raise InputError(
                f"{path} can't be written: {why}; name a file in an existing directory"
            )


def _run(
    pipeline: Pipeline,
    settings: ReplaySettings,
    source: ReplaySource,
    bus: Bus | None,
    draft: _StateDraft | None,
    stop: threading.Event,
    collector: _Collector,
) -> None:
    """Run the dataflow over the history, to its end or until ``stop`` is set."""
    options = SourceOptions(
        limit=settings.batch_size,
        until_end=True,
        idle_timeout_s=float("inf"),
        recorded_offsets=source.start_offsets,
        of_files=_topics_of_files(pipeline, settings),
        stop=stop,
    )
    with ExitStack() as stack:
        state = None
        if draft is not None and bus is not None:
            opened = StateDirectory.open(draft.path, pipeline, bus, shards=settings.shards)
            state = stack.enter_context(opened)
        run_worker(
            pipeline,
            source.bus,
            options,
            metrics=collector.metrics,
            checkpoint_interval_s=_CHECKPOINT_S,
            shards=settings.shards,
            state=state,
            callback=collector,
        )


class _Collector:
    """Receives the results of the model step: writes rows, and updates the report and metrics."""

    def __init__(
        self,
        file: TrainingFile,
        report: ReplayReport,
        metrics: WorkerMetrics,
        events: str,
        topics: Sequence[str],
    ) -> None:
        self.metrics = metrics
        self._file = file
        self._report = report
        self._events = events
        self._topics = topics

    def __call__(self, results: Results) -> None:
        report, batch, file = self._report, results.batch, self._file
        report.events += len(batch.raw.events)
        report.labels += len(batch.raw.labels)
        for letter in (*batch.dead_letters, *results.dead_letters):
            report.dead_letters[letter.reason] += 1
            if not report.first_rejected and letter.topic in self._topics:
                report.first_rejected = f"{letter.reason}, {letter.detail}"
        file.add(results)
        report.rows, report.labelled = file.rows, file.labelled
        if not file.rows and report.events >= _GIVE_UP_AFTER:
            raise _no_usable_event(self._events, report)
        self.metrics.flush_if_due()


class _StateDraft:
    """A state directory under a temporary name, until the replay is complete; a context manager.

    Raises:
        InputError: there is something under the final name already.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self.path = target.with_name(f".{target.name}.replaying")

    def __enter__(self) -> _StateDraft:
        target = self._target
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise InputError(
                f"{target} exists already, and a replay writes a new state: name another directory "
                "with --state, or remove this one"
            )
        if (owner := holder(self.path)) is not None:
            raise InputError(
                f"another replay (process {owner}) is writing {target}: wait until it has ended"
            )
        self._remove()
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def offsets(self) -> dict[TopicPartition, int]:
        """Where a run would continue."""
        parts = read_resume_point(self.path / "recovery").partitions()
        return {
            TopicPartition(topic, number): offset
            for number, part in parts
            for topic, offset in part.offsets.items()
        }

    def publish(self) -> None:
        """Rename the directory to its final name."""
        try:
            os.replace(self.path, self._target)
            sync_directory(self._target.parent)
        except OSError as error:
            raise InputError(f"{self._target} can't be created: {error.strerror}") from None

    def _remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def _no_usable_event(events: str, report: ReplayReport) -> InputError:
    if not report.events:
        return InputError(f"{events} holds no events: there is nothing to replay")
    return InputError(
        f"none of the first {report.events:,} events of {events} could be used; the first one: "
        f"{report.first_rejected}"
    )
