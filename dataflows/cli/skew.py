"""``anabranch skew``: are the features that were served the ones that the declaration means?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anabranch.dataflows.cli.display.errors import print_error
from anabranch.dataflows.cli.display.progress import watching
from anabranch.dataflows.cli.options import (
    DEFAULT_BUS,
    BusSettings,
    BusUrl,
    PipelineName,
    opened_bus,
)
from anabranch.state.errors import AnabranchError, InputError

if TYPE_CHECKING:
    from anabranch.dataflows.bus import Bus
    from anabranch.dataflows.declaration.pipeline import Pipeline
    from anabranch.dataflows.skew.arrival_order import Arrivals
    from anabranch.dataflows.skew.message_reader import Messages
    from anabranch.dataflows.skew.progress import Watch
    from anabranch.dataflows.skew.served_features import Served

DIFFERS = 1
MISTAKE = 2
"""Exit codes: here 1 is a finding, so a mistake is as wrong usage is."""


def skew(
    pipeline: PipelineName,
    events: Annotated[
        str | None,
        typer.Option(
            "--events",
            metavar="FILE|TOPIC",
            help="The events, as they arrived: Parquet, JSONL, CSV or a topic. Default: the "
            "pipeline's own topic.",
        ),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            "--features",
            metavar="FILE|TOPIC",
            help="The features that were served: predictions that have them (a topic, or JSONL), "
            "or what `replay` wrote (Parquet). Default: the pipeline's predictions.",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="FILE|TOPIC",
            help="The labels, as they arrived, where windows are made of them. Default: the "
            "pipeline's own topic.",
        ),
    ] = None,
    training: Annotated[
        Path | None,
        typer.Option(
            "--training",
            metavar="FILE",
            help="Instead of recomputing: compare the distributions of this training set with "
            "what was served.",
        ),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance",
            metavar="X",
            min=0.0,
            help="Values agree within X · (1 + |value|).",
        ),
    ] = 1e-9,
    allow: Annotated[
        float,
        typer.Option(
            "--allow",
            metavar="SHARE",
            min=0.0,
            max=1.0,
            help="The share of a feature's rows that may differ, and of rows that may be missing.",
        ),
    ] = 0.0,
    warm_up: Annotated[
        str | None,
        typer.Option(
            "--warm-up",
            metavar="DURATION",
            help="Leave out so much of the beginning, in event time. Default: nothing; where "
            "retention has removed the first events, the longest window.",
        ),
    ] = None,
    order_slack: Annotated[
        str,
        typer.Option(
            "--order-slack",
            metavar="DURATION",
            help="An event and a label of its key that were published less than this apart may "
            "have been read in either order. What was replayed has one order: give 0s.",
        ),
    ] = "1s",
    psi: Annotated[
        float,
        typer.Option(
            "--psi", metavar="X", min=0.0, help="With --training: the PSI that is too much."
        ),
    ] = 0.25,
    bins: Annotated[
        int,
        typer.Option("--bins", metavar="N", min=2, help="With --training: quantile bins."),
    ] = 10,
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object instead of a table.")
    ] = False,
    bus: BusUrl = DEFAULT_BUS,
    bus_set: BusSettings = None,
) -> None:
    """Recompute the features that were served by other means, and say which rows differ.

    Every feature is computed anew for each event, from those that had arrived by then, with code
    that shares nothing with the one that served it. With --training, distributions are compared.

    Exit code 0: all agree; 1: more differs than is allowed; 2: something can't be read or used.

    Examples:

        anabranch skew fraud.py

        anabranch skew fraud.py --events payments.parquet --features training.parquet --json

        anabranch skew fraud.py --training training.parquet --features fraud.predictions
    """
    if training is not None and (events or labels):
        raise typer.BadParameter(
            "--training compares distributions, and takes no --events or --labels"
        )
    with _mistakes():
        from anabranch.dataflows.pipelines.loader import load_pipeline

        declared = load_pipeline(pipeline)
        events = events or declared.topics.events
        features = features or declared.topics.predictions
        if declared.candidates is not None:
            raise InputError(
                f"pipeline {declared.name!r} ranks candidates, whose features are not recomputed"
            )
        if declared.has_label_topic and declared.label_windows:
            labels = labels or declared.topics.labels
        elif labels is not None:
            raise InputError(f"pipeline {declared.name!r} has no features of labels from a topic")
        names = [features] if training else [events, features, *([labels] if labels else [])]
        with _bus_of(names, bus, bus_set) as opened:
            check = _Check(declared, opened)
            if training is None:
                limits = _Limits(tolerance, allow, warm_up, order_slack)
                agree = check.rows(events, labels, features, limits, json)
            else:
                agree = check.distributions(training, features, psi, bins, json)
    if not agree:
        raise typer.Exit(DIFFERS)


@contextmanager
def _mistakes() -> Iterator[None]:
    """Ends the command with a sentence and `MISTAKE` where something can't be used."""
    try:
        yield
    except AnabranchError as error:
        print_error(error)
        raise typer.Exit(MISTAKE) from None


@contextmanager
def _bus_of(names: Sequence[str], url: str, settings: Sequence[str] | None) -> Iterator[Bus | None]:
    """The bus, if one of the names is a topic's."""
    from anabranch.dataflows.skew.sources import file_of

    if all(file_of(name) for name in names):
        yield None
        return
    with opened_bus(url, settings) as opened:
        yield opened


@dataclass(frozen=True, slots=True)
class _Limits:
    """What may differ, and where nothing is known; durations as they were given."""

    tolerance: float
    allow: float
    warm_up: str | None
    order_slack: str


class _Check:
    """One pipeline, and where its events and features are."""

    def __init__(self, pipeline: Pipeline, bus: Bus | None) -> None:
        self._pipeline = pipeline
        self._bus = bus

    def rows(
        self, events: str, labels: str | None, features: str, limits: _Limits, json: bool
    ) -> bool:
        """Recompute, compare row by row, and print; whether no more differs than is allowed."""
        from anabranch.dataflows.cli.display.skew import print_rows
        from anabranch.dataflows.skew.compare import compare
        from anabranch.dataflows.skew.recompute import longest_look_back_ms, recompute
        from anabranch.state.durations import parse_duration_ms

        pipeline = self._pipeline
        warm_up_ms = None if limits.warm_up is None else parse_duration_ms(limits.warm_up)
        order_ms = parse_duration_ms(limits.order_slack)
        with watching() as watch:
            served = self._served(features, watch)  # first: what is read later has its events
            arrivals = self._arrivals(events, watch)
            if labels is not None:
                arrivals.labels = self._labels(labels, watch)
            if warm_up_ms is None:
                warm_up_ms = 0 if arrivals.all_from_start else longest_look_back_ms(pipeline)
            recomputed = recompute(pipeline, arrivals, watch)
        report = compare(
            pipeline.name,
            arrivals,
            recomputed,
            served,
            tolerance=limits.tolerance,
            warm_up_ms=warm_up_ms,
            order_ms=order_ms,
        )
        print_rows(report, limits.allow, json)
        return report.worst_share() <= limits.allow

    def distributions(
        self, training: Path, features: str, psi: float, bins: int, json: bool
    ) -> bool:
        """Compare the distributions of a training set and of what was served, and print."""
        from anabranch.dataflows.cli.display.skew import print_shifts
        from anabranch.dataflows.skew.distributions import shifts
        from anabranch.dataflows.skew.served_features import served_in_file

        pipeline = self._pipeline
        with watching() as watch:
            trained = served_in_file(pipeline.name, pipeline.columns, training, watch)
            served = self._served(features, watch)
            found = shifts(trained, served, pipeline.columns, bins, watch)
        print_shifts(pipeline.name, found, (len(trained), len(served)), psi, json)
        return all(each.psi <= psi for each in found)

    def _served(self, name: str, watch: Watch) -> Served:
        from anabranch.dataflows.codec import codec_of
        from anabranch.dataflows.skew.served_features import served_in_file, served_on_topic
        from anabranch.dataflows.skew.sources import file_of

        path, pipeline = file_of(name), self._pipeline
        if path is not None:
            return served_in_file(pipeline.name, pipeline.columns, path, watch)
        assert self._bus is not None
        codec = codec_of(pipeline, name)
        return served_on_topic(pipeline.name, pipeline.columns, self._bus, name, watch, codec)

    def _arrivals(self, name: str, watch: Watch) -> Arrivals:
        from anabranch.dataflows.skew.arrival_order import arrivals_of_file, arrivals_of_topic
        from anabranch.dataflows.skew.sources import file_of

        path = file_of(name)
        if path is not None:
            return arrivals_of_file(self._pipeline, path, watch)
        assert self._bus is not None
        return arrivals_of_topic(self._pipeline, self._bus, name, watch)

    def _labels(self, name: str, watch: Watch) -> Messages:
        from anabranch.dataflows.skew.arrival_order import labels_of_file, labels_of_topic
        from anabranch.dataflows.skew.sources import file_of

        path = file_of(name)
        if path is not None:
            return labels_of_file(self._pipeline, path, watch)
        assert self._bus is not None
        return labels_of_topic(self._pipeline, self._bus, name, watch)
