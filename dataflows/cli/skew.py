"""``anabranch skew``: checks for training-serving skew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anabranch.dataflows.cli.display.errors import errors_as_exit_code
from anabranch.dataflows.cli.display.progress import progress_display
from anabranch.dataflows.cli.options import (
    DEFAULT_BUS,
    BusConfig,
    BusSettings,
    BusUrl,
    Json,
    PipelineName,
    bus_of,
)
from anabranch.state.errors import InputError

if TYPE_CHECKING:
    from anabranch.dataflows.bus import Bus
    from anabranch.dataflows.declaration.pipeline import Pipeline
    from anabranch.dataflows.recovery.replayed_history import ReplayedHistory
    from anabranch.dataflows.skew.arrival_order import ArrivedEvents
    from anabranch.dataflows.skew.message_reader import Messages
    from anabranch.dataflows.skew.progress import OnProgress
    from anabranch.dataflows.skew.served_features import ServedFeatures

EXIT_SKEW = 1


def skew(
    pipeline: PipelineName,
    events: Annotated[
        str | None,
        typer.Option(
            "--events",
            metavar="FILE|TOPIC",
            help="The events in order of arrival: a Parquet, JSONL or CSV file, or a topic. "
            "Default: the pipeline's events topic.",
        ),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            "--features",
            metavar="FILE|TOPIC",
            help="The served features: predictions that include them (a topic or a JSONL file), or "
            "training rows of `replay` (Parquet). Default: the pipeline's predictions topic.",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="FILE|TOPIC",
            help="The labels in order of arrival, if the pipeline has windows over labels. "
            "Default: the pipeline's labels topic.",
        ),
    ] = None,
    training: Annotated[
        Path | None,
        typer.Option(
            "--training",
            metavar="FILE",
            help="Instead of recomputing features, compare the distribution of each feature in "
            "this training set with that of the served ones.",
        ),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance",
            metavar="X",
            min=0.0,
            help="Two values match if they differ by at most X · (1 + |value|).",
        ),
    ] = 1e-9,
    max_mismatch: Annotated[
        float,
        typer.Option(
            "--max-mismatch",
            metavar="SHARE",
            min=0.0,
            max=1.0,
            help="Tolerated share of mismatching rows per feature, and of missing rows.",
        ),
    ] = 0.0,
    warm_up: Annotated[
        str | None,
        typer.Option(
            "--warm-up",
            metavar="DURATION",
            help="Skip this much event time at the start, where earlier events may be missing. "
            "Default: 0s; where earlier events are missing (retention has deleted them, or the "
            "pipeline continued from a replay of them), as far as each feature looks back.",
        ),
    ] = None,
    warmup_from: Annotated[
        str | None,
        typer.Option(
            "--warmup-from",
            metavar="FILE|TOPIC",
            help="Events that the pipeline had processed before those of --events, such as a "
            "replayed history: its windows hold them, and they are not compared. Default: the "
            "history from which the state was replayed, if it was.",
        ),
    ] = None,
    warmup_labels: Annotated[
        str | None,
        typer.Option(
            "--warmup-labels",
            metavar="FILE|TOPIC",
            help="The labels of --warmup-from, if the pipeline has windows over labels.",
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            metavar="DIR",
            help="The state directory of the run, which says from which history it was replayed.",
            show_default="data/state/PIPELINE",
        ),
    ] = None,
    order_tolerance: Annotated[
        str,
        typer.Option(
            "--order-tolerance",
            metavar="DURATION",
            help="An event and a label of the same key published less than this apart may have "
            "been read in either order, so a mismatch that depends on it is not counted. A replay "
            "reads in a fixed order: use 0s.",
        ),
    ] = "1s",
    max_psi: Annotated[
        float,
        typer.Option(
            "--max-psi",
            metavar="X",
            min=0.0,
            help="With --training: features with a larger population stability index have shifted.",
        ),
    ] = 0.25,
    bins: Annotated[
        int,
        typer.Option(
            "--bins", metavar="N", min=2, help="With --training: number of quantile bins."
        ),
    ] = 10,
    json: Json = False,
    bus: BusUrl = DEFAULT_BUS,
    bus_set: BusSettings = None,
    bus_config: BusConfig = None,
) -> None:
    """Check for training-serving skew: recompute the served features and report mismatches.

    Every feature is recomputed for each event, from the events that had arrived by then, by an
    independent implementation. With --training, distributions are compared instead.

    Exit codes: 0 everything matches; 1 more rows mismatch than tolerated; 2 an input can't be read.

    Examples:

        anabranch skew fraud.py

        anabranch skew fraud.py --events payments.parquet --features training.parquet --json

        anabranch skew fraud.py --training training.parquet --features fraud.predictions
    """
    if training is not None and (events or labels):
        raise typer.BadParameter(
            "--training compares distributions: leave out --events and --labels"
        )
    if warmup_labels is not None and warmup_from is None:
        raise typer.BadParameter("--warmup-labels needs --warmup-from, the events before")
    with errors_as_exit_code():
        from anabranch.dataflows.pipelines.loader import load_pipeline

        declared = load_pipeline(pipeline)
        if events is None and training is None:
            events = declared.topics.of_role("events")
        events = events or declared.topics.events
        features = features or declared.topics.predictions
        if declared.candidates is not None:
            raise InputError(
                f"pipeline {declared.name!r} ranks candidates, whose features can't be recomputed"
            )
        if declared.has_label_topic and declared.label_windows:
            labels = labels or declared.topics.labels
        elif labels is not None:
            raise InputError(
                f"pipeline {declared.name!r} has no windows over labels of a topic: leave out "
                "--labels"
            )
        names = [features] if training else [events, features, *([labels] if labels else [])]
        names += [name for name in (warmup_from, warmup_labels) if name is not None]
        with bus_of(names, bus, bus_set, bus_config, declared) as opened:
            check = _Check(declared, opened)
            if training is None:
                if warmup_from is not None or warmup_labels is not None:
                    check.history = _History(warmup_from, warmup_labels)
                elif (events, features) == (declared.topics.events, declared.topics.predictions):
                    check.use_record(state or Path("data", "state", declared.name))
                limits = _Limits(tolerance, max_mismatch, warm_up, order_tolerance)
                matches = check.rows(events, labels, features, limits, json)
            else:
                matches = check.distributions(training, features, max_psi, bins, json)
    if not matches:
        raise typer.Exit(EXIT_SKEW)


@dataclass(frozen=True, slots=True)
class _Limits:
    """The tolerances of a row-by-row check; durations are still text."""

    tolerance: float
    max_mismatch: float
    warm_up: str | None
    order_tolerance: str


@dataclass(frozen=True, slots=True)
class _History:
    """What the pipeline had processed before: named by the user, or recorded in its state."""

    events: str | None
    labels: str | None
    recorded: ReplayedHistory | None = None


class _Check:
    """The checks of one pipeline; ``bus`` is None if only files are read.

    Attributes:
        history: what to read before the events; None: nothing.
        missing: why a history can't be read although there was one, as a sentence.
        known: whether it is known what the pipeline had processed before.
    """

    def __init__(self, pipeline: Pipeline, bus: Bus | None) -> None:
        self._pipeline = pipeline
        self._bus = bus
        self.history: _History | None = None
        self.missing: str | None = None
        self.known = False

    def use_record(self, state: Path) -> None:
        """Take the history from the record in a state directory, if there is one."""
        from anabranch.dataflows.recovery.manifest import is_state_directory
        from anabranch.dataflows.recovery.replayed_history import read_replayed
        from anabranch.dataflows.skew.sources import file_of

        if not is_state_directory(state):
            return
        self.known = True
        recorded = read_replayed(state)
        if recorded is None:
            return
        for name in (recorded.events, recorded.labels):
            path = None if name is None else file_of(name)
            gone = path is not None and not path.exists()
            if name is not None and path is None:
                gone = self._bus is None or name not in self._bus.topics()
            if gone:
                self.missing = (
                    f"{state} continues from a replay of {name}, which is not there any more: "
                    "windows that reach behind the first event are not compared; give those "
                    "events with --warmup-from"
                )
                return
        self.history = _History(recorded.events, recorded.labels, recorded)

    def rows(
        self, events: str, labels: str | None, features: str, limits: _Limits, json: bool
    ) -> bool:
        """Recompute, compare row by row, and print; True if mismatches are within the limits."""
        from anabranch.dataflows.cli.display.skew import print_rows
        from anabranch.dataflows.skew.compare import compare, earlier_events_are_missing
        from anabranch.dataflows.skew.recompute import look_back_ms, recompute, window_columns
        from anabranch.state.durations import parse_duration_ms

        pipeline = self._pipeline
        warm_up_ms = None if limits.warm_up is None else parse_duration_ms(limits.warm_up)
        order_ms = parse_duration_ms(limits.order_tolerance)
        with progress_display() as on_progress:
            # Served rows first: the events of all of them are on their topic when that is read.
            served = self._served(features, on_progress)
            arrived = self._events(events, on_progress)
            if labels is not None:
                arrived.labels = self._labels(labels, on_progress)
            if self.history is not None and self.history.events is not None:
                arrived = self._with_history(arrived, self.history, on_progress)
            recomputed = recompute(pipeline, arrived, on_progress)
        look_back = look_back_ms(pipeline)
        incomplete = not arrived.all_from_start or self.missing is not None
        if not (incomplete or self.known or arrived.history is not None):
            windows = window_columns(pipeline)
            incomplete = earlier_events_are_missing(arrived, recomputed, served, windows)
        report = compare(
            pipeline.name,
            arrived,
            recomputed,
            served,
            tolerance=limits.tolerance,
            warm_up_ms=warm_up_ms or 0,
            look_back_ms=look_back if incomplete and warm_up_ms is None else None,
            order_tolerance_ms=order_ms,
        )
        print_rows(report, limits.max_mismatch, json, self.missing)
        return report.worst_share() <= limits.max_mismatch

    def _with_history(
        self, arrived: ArrivedEvents, history: _History, on_progress: OnProgress
    ) -> ArrivedEvents:
        """The events after those of the history, which are read now."""
        from anabranch.dataflows.skew.arrival_order import with_history

        assert history.events is not None
        recorded = history.recorded
        ends = {} if recorded is None else recorded.ends
        before = self._events(history.events, on_progress, ends.get(history.events))
        if arrived.labels is not None and history.labels is not None:
            before.labels = self._labels(history.labels, on_progress, ends.get(history.labels))
        return with_history(arrived, before, {} if recorded is None else recorded.offsets)

    def distributions(
        self, training: Path, features: str, max_psi: float, bins: int, json: bool
    ) -> bool:
        """Compare the distributions of a training set and served rows, and print.

        True if no feature has a PSI above ``max_psi``.
        """
        from anabranch.dataflows.cli.display.skew import print_shifts
        from anabranch.dataflows.skew.distributions import shifts
        from anabranch.dataflows.skew.served_features import served_from_file

        pipeline = self._pipeline
        with progress_display() as on_progress:
            trained = served_from_file(pipeline.name, pipeline.columns, training, on_progress)
            served = self._served(features, on_progress)
            by_feature = shifts(trained, served, pipeline.columns, bins, on_progress)
        print_shifts(pipeline.name, by_feature, (len(trained), len(served)), max_psi, json)
        return all(each.psi <= max_psi for each in by_feature)

    def _served(self, name: str, on_progress: OnProgress) -> ServedFeatures:
        from anabranch.dataflows.codec import codec_of
        from anabranch.dataflows.skew.served_features import served_from_file, served_from_topic
        from anabranch.dataflows.skew.sources import file_of

        path, pipeline = file_of(name), self._pipeline
        if path is not None:
            return served_from_file(pipeline.name, pipeline.columns, path, on_progress)
        assert self._bus is not None
        codec = codec_of(pipeline, name)
        return served_from_topic(
            pipeline.name, pipeline.columns, self._bus, name, on_progress, codec
        )

    def _events(
        self, name: str, on_progress: OnProgress, until: Sequence[int] | None = None
    ) -> ArrivedEvents:
        from anabranch.dataflows.skew.arrival_order import events_from_file, events_from_topic
        from anabranch.dataflows.skew.sources import file_of

        path = file_of(name)
        if path is not None:
            return events_from_file(self._pipeline, path, on_progress)
        assert self._bus is not None
        return events_from_topic(self._pipeline, self._bus, name, on_progress, until)

    def _labels(
        self, name: str, on_progress: OnProgress, until: Sequence[int] | None = None
    ) -> Messages:
        from anabranch.dataflows.skew.arrival_order import labels_from_file, labels_from_topic
        from anabranch.dataflows.skew.sources import file_of

        path = file_of(name)
        if path is not None:
            return labels_from_file(self._pipeline, path, on_progress)
        assert self._bus is not None
        return labels_from_topic(self._pipeline, self._bus, name, on_progress, until)
