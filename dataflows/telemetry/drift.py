"""Prometheus metrics of monitors: of distributions, of losses and features, and of feedback."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge

BY_SCORE: Final = ("predictions", "labels", "true labels")
"""Kinds of feedback that are counted by score; the others are counted by popularity."""

_LEVELS = {"warning": 1.0, "drift": 2.0, "resolved": 0.0}
_TENTHS = np.arange(1, 10) / 10
_TENTH_NAMES = [f"{tenth / 10:.1f}" for tenth in range(10)]
_POPULARITY = np.array([-2.0, 0.0, 2.0])  # log2 of how often, over the mean
_POPULARITY_NAMES = ["below 1/4", "1/4 to 1", "1 to 4", "4 or more"]


class DriftMetrics:
    """How far distributions have moved, and what monitors observe.

    Attributes:
        feedback: by kind, arrays of values that their owner appends: scores of predictions and
            labels, which are counted by tenth, and of rankings the popularity of candidates.
    """

    def __init__(self, pipeline: str, registry: CollectorRegistry) -> None:
        self._pipeline = pipeline

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            names = ("pipeline", *labels)
            return Gauge(name, text, names, registry=registry, multiprocess_mode="mostrecent")

        self._level = gauge(
            "anabranch_drift_level",
            "Drift from the reference: 0 none, 1 warning, 2 drift",
            *("kind", "subject"),
        )
        self._psi = gauge(
            "anabranch_population_stability_index",
            "Population stability index of the last window against its reference",
            *("kind", "subject"),
        )
        self._ready = gauge(
            "anabranch_reference_ready",
            "1 when windows are compared with the reference, 0 while it is being collected",
            "kind",
        )
        self._newest = gauge(
            "anabranch_monitored_mean",
            "Mean of the newest 32 values of a drift detector",
            *("subject", "detector"),
        )
        self._feedback = Counter(
            "anabranch_feedback",
            "Predictions, labels and true labels by score; candidates ranked first, and chosen, by "
            "popularity",
            ("pipeline", "kind", "bucket"),
            registry=registry,
        )
        self.feedback: dict[str, list[NDArray[np.float64]]] = {}
        self._kinds: dict[str, str] = {}

    def on_families(self, families: Iterable[tuple[str, Sequence[str]]]) -> None:
        """Set all subjects that are monitored, by kind, to no drift."""
        for kind, names in families:
            for name in names:
                self._kinds[name] = kind
                self._level.labels(self._pipeline, kind, name).set(0.0)

    def on_shifts(self, shifts: Iterable[tuple[str, str]]) -> None:
        """Subject and severity of each signal."""
        for subject, severity in shifts:
            labels = (self._pipeline, self._kinds[subject], subject)
            self._level.labels(*labels).set(_LEVELS[severity])

    def on_window(self, subjects: Sequence[str], psi: NDArray[np.float64]) -> None:
        """How far each subject was from its reference in the last window."""
        for subject, value in zip(subjects, psi.tolist(), strict=True):
            self._psi.labels(self._pipeline, self._kinds[subject], subject).set(value)

    def on_references(self, ready: Mapping[str, bool]) -> None:
        """By kind, whether all of its references are complete."""
        for kind, is_ready in ready.items():
            self._ready.labels(self._pipeline, kind).set(float(is_ready))

    def on_monitors(self, newest: Iterable[tuple[str, str, float]]) -> None:
        """Subject, detector, and the mean of the newest values."""
        for subject, detector, mean in newest:
            if mean == mean:
                self._newest.labels(self._pipeline, subject, detector).set(mean)

    def flush(self) -> None:
        """Add what was appended to `feedback` to the metrics."""
        for kind, arrays in self.feedback.items():
            if not arrays:
                continue
            values = np.concatenate(arrays)
            edges, names = _TENTHS, _TENTH_NAMES
            if kind not in BY_SCORE:
                edges, names = _POPULARITY, _POPULARITY_NAMES
            buckets = np.searchsorted(edges, values[values == values], side="right")
            for bucket, count in enumerate(np.bincount(buckets).tolist()):
                if count:
                    self._feedback.labels(self._pipeline, kind, names[bucket]).inc(count)
            arrays.clear()
