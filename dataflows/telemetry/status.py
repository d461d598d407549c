"""The status of a running pipeline, read back from its own metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from rich.table import Table
from rich.text import Text

from anabranch.dataflows.messages.dead_letter_reasons import DeadLetterReason
from anabranch.dataflows.telemetry.console import printable

Buckets = dict[float, float]
"""Upper bound in seconds → how many observations were at most that, as Prometheus counts them."""


@dataclass(slots=True)
class Status:
    """Counts since the start; latencies in seconds.

    Attributes:
        quality: by metric name, of the model that serves most; NaN before a label was scored.
        shares: by model, what it serves of the traffic, where there are rollouts.
        decisions: rollout decisions by action.
        pending: predictions that wait for their label.
        latency: from publishing a message to publishing its prediction.
        processing: from reading it.
        buffered: labels that wait for their event.
        unjoined: the id of a label that found no event, and of an event; None: all have found one.
        units: by topic whose times seem to be in another unit than declared, that unit.
    """

    events: float = 0
    labels: float = 0
    predictions: float = 0
    learned: float = 0
    dead_letters: dict[str, float] = field(default_factory=dict)
    drift: dict[str, float] = field(default_factory=dict)
    quality: dict[str, float] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    decisions: dict[str, float] = field(default_factory=dict)
    pending: float = 0
    lag: float = 0
    keys: dict[str, float] = field(default_factory=dict)
    latency: Buckets = field(default_factory=dict)
    processing: Buckets = field(default_factory=dict)
    buffered: float = 0
    unjoined: tuple[str, str] | None = None
    units: dict[str, str] = field(default_factory=dict)


_COUNTS = {
    "anabranch_events_total": "events",
    "anabranch_labels_total": "labels",
    "anabranch_predictions_total": "predictions",
    "anabranch_learned_labels_total": "learned",
    "anabranch_pending_predictions": "pending",
    "anabranch_lag_messages": "lag",
    "anabranch_buffered_early_labels": "buffered",
}
_BY_LABEL = {
    "anabranch_dead_letters_total": ("dead_letters", "reason"),
    "anabranch_drift_signals_total": ("drift", "subject"),
    "anabranch_traffic_share": ("shares", "model"),
    "anabranch_rollout_decisions_total": ("decisions", "action"),
    "anabranch_window_keys": ("keys", "entity"),
    "anabranch_latency_seconds_bucket": ("latency", "le"),
    "anabranch_processing_seconds_bucket": ("processing", "le"),
}
_UNJOINED = (DeadLetterReason.LABEL_WITHOUT_EVENT, DeadLetterReason.TOO_MANY_EARLY_LABELS)
_TITLES = {"ROCAUC": "ROC AUC", "LogLoss": "log loss", "Accuracy": "accuracy"}


def read_status(registry: CollectorRegistry) -> Status:
    """The status by the metrics in a registry, of one worker or of all."""
    status = Status()
    by_model: dict[str, dict[str, float]] = {}
    for family in registry.collect():
        for sample in family.samples:
            if sample.name in _COUNTS:
                name = _COUNTS[sample.name]
                setattr(status, name, getattr(status, name) + sample.value)
            elif sample.name in _BY_LABEL:
                name, label = _BY_LABEL[sample.name]
                key = sample.labels[label]
                values = getattr(status, name)
                at = float(key) if label == "le" else key
                values[at] = values.get(at, 0) + sample.value
            elif sample.name == "anabranch_unlikely_time_unit":
                status.units[sample.labels["topic"]] = sample.labels["unit"]
            elif sample.name == "anabranch_unjoined_label" and sample.value:
                status.unjoined = sample.labels["label_id"], sample.labels["event_id"]
            elif sample.name == "anabranch_model_quality":
                labels = sample.labels
                by_model.setdefault(labels["model"], {})[labels["metric"]] = sample.value
    if by_model:
        shares = {model: status.shares.get(model, 0.0) for model in by_model}
        status.quality = by_model[max(shares, key=lambda model: shares[model])]
    return status


def percentile(buckets: Buckets, share: float) -> float:
    """The upper bound of the bucket that holds this quantile of the observations; nan without any.

    >>> percentile({0.1: 5, 0.2: 9, math.inf: 10}, 0.5)
    0.1
    """
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0
    if not total:
        return math.nan
    return next(bound for bound in bounds if buckets[bound] >= share * total)


def unjoined_text(status: Status) -> str | None:
    """The sentence about labels that found no event; None if all have found theirs.

    >>> unjoined_text(Status(labels=5, buffered=2))
    '2 of 5 labels found no event (2 still wait for theirs)'
    """
    refused = sum(status.dead_letters.get(reason.value, 0) for reason in _UNJOINED)
    count = int(refused + status.buffered)
    if not count:
        return None
    waiting = f" ({status.buffered:,.0f} still wait for theirs)" if status.buffered else ""
    sentence = f"{count:,} of {status.labels:,.0f} labels found no event{waiting}"
    if status.unjoined is None:
        return sentence
    label, event = status.unjoined
    events = f"events {event!r}" if event else "and no event was read"
    return f"{sentence}: labels have ids such as {label!r}, {events}"


def since(now: Buckets, before: Buckets) -> Buckets:
    """The observations in ``now`` that are not in ``before``."""
    return {bound: count - before.get(bound, 0) for bound, count in now.items()}


def live_only(buckets: Buckets) -> Buckets:
    """Without observations above the last bound: those of replayed history are of long ago."""
    return {bound: count for bound, count in buckets.items() if not math.isinf(bound)}


def status_table(
    pipeline: str, status: Status, events_per_s: float, latency: Buckets, span: str
) -> Table:
    """A table of throughput, latency, quality and what needs attention.

    ``latency`` is from message to prediction, over ``span``.
    """
    table = Table(title=pipeline, title_justify="left", show_header=False, min_width=64)
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_row("events", f"{status.events:,.0f}")
    table.add_row("events per second", f"{events_per_s:,.0f}")
    table.add_row("predictions", f"{status.predictions:,.0f}")
    table.add_row(f"message to prediction, p50 / p99 ({span})", latencies(latency))
    table.add_row("read to published, p50 / p99 (whole run)", latencies(status.processing))
    for name, value in status.quality.items():
        table.add_row(f"{quality_title(name)} (prequential)", quality_text(value))
    if len(status.shares) > 1:
        for model, share in status.shares.items():
            table.add_row(f"traffic share of {model}", f"{share:.1%}")
    for action, count in status.decisions.items():
        table.add_row(f"rollouts: {action.replace('_', ' ')}", f"{count:,.0f}")
    labels = status.labels or status.events  # inline labels have no topic of their own
    table.add_row("labels learned", f"{status.learned:,.0f} of {labels:,.0f}")
    table.add_row("predictions waiting for their label", f"{status.pending:,.0f}")
    for entity, keys in status.keys.items():
        table.add_row(f"{entity} keys in windows", f"{keys:,.0f}")
    table.add_row("lag (messages not read yet)", f"{status.lag:,.0f}")
    _add_warnings(table, "dead letters", status.dead_letters)
    _add_warnings(table, "drift signals", status.drift)
    return table


def quality_title(metric: str) -> str:
    """The conventional spelling of a metric's name."""
    return _TITLES.get(metric, metric)


def quality_text(value: float) -> str:
    """The value of a metric; a dash before a label was scored.

    >>> quality_text(0.25), quality_text(math.nan)
    ('0.2500', '—')
    """
    return "—" if math.isnan(value) else f"{value:.4f}"


def quality_line(quality: Mapping[str, float]) -> str:
    """Metrics with their values, in one line."""
    return ", ".join(f"{quality_title(n)} {quality_text(v)}" for n, v in quality.items())


def latencies(buckets: Buckets) -> str:
    """The median and the 99th percentile, as text."""
    if math.isinf(percentile(buckets, 0.5)):
        return "catching up with history"
    return " / ".join(_bound(percentile(buckets, share)) for share in (0.5, 0.99))


def _add_warnings(table: Table, title: str, counts: dict[str, float]) -> None:
    if not counts:
        table.add_row(title, "0")
    for name, count in counts.items():
        table.add_row(
            Text(printable(f"{title}: {name}"), "yellow"), Text(f"{count:,.0f}", "yellow")
        )


def _bound(seconds: float) -> str:
    if math.isnan(seconds):
        return "—"
    if math.isinf(seconds):
        return "> 10 min"
    return f"≤ {seconds * 1000:g} ms" if seconds < 1 else f"≤ {seconds:g} s"
