"""Prometheus metrics of the monitors: of distributions, of losses and features, of feedback."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge

_LEVELS = {"warning": 1.0, "drift": 2.0, "resolved": 0.0}


class ShiftMetrics:
    """How far distributions have moved, and what monitors see.

    ``feedback`` counts predictions and labels by the tenth of their score, and the candidates of
    rankings by how popular they are: for its owner to append arrays to, by what they are.
    """

    def __init__(self, pipeline: str, registry: CollectorRegistry) -> None:
        self._pipeline = pipeline

        def gauge(name: str, text: str) -> Gauge:
            labels = ("pipeline", "kind", "subject")
            return Gauge(name, text, labels, registry=registry, multiprocess_mode="mostrecent")

        self._drifting = gauge("anabranch_drifting", "0: as the reference; 1: warning; 2: drift")
        self._psi = gauge(
            "anabranch_population_stability_index", "Of the last window beside its reference"
        )
        self._whole = Gauge(
            "anabranch_reference_whole", "1: windows are compared with it; 0: it still grows",
            ("pipeline", "kind"), registry=registry, multiprocess_mode="mostrecent",
        )  # fmt: skip
        self._newest = Gauge(
            "anabranch_monitored_mean", "Of the newest 32 values that a detector was given",
            ("pipeline", "subject", "detector"), registry=registry, multiprocess_mode="mostrecent",
        )  # fmt: skip
        self._feedback = Counter(
            "anabranch_feedback", "Predictions, labels and true ones by score; ranked and chosen "
            "candidates by how popular they are", ("pipeline", "what", "bucket"), registry=registry,
        )  # fmt: skip
        self.feedback: dict[str, list[NDArray[np.float64]]] = {}
        self._kinds: dict[str, str] = {}

    def on_families(self, subjects: Iterable[tuple[str, Sequence[str]]]) -> None:
        """All that is watched, by kind: nothing has moved yet."""
        for kind, names in subjects:
            for name in names:
                self._kinds[name] = kind
                self._drifting.labels(self._pipeline, kind, name).set(0.0)

    def on_shifts(self, found: Iterable[tuple[str, str]]) -> None:
        """Subject and severity of what was signalled."""
        for subject, severity in found:
            labels = (self._pipeline, self._kinds[subject], subject)
            self._drifting.labels(*labels).set(_LEVELS[severity])

    def on_window(self, subjects: Sequence[str], psi: NDArray[np.float64]) -> None:
        """How far each subject was from its reference in the last window."""
        for subject, value in zip(subjects, psi.tolist(), strict=True):
            self._psi.labels(self._pipeline, self._kinds[subject], subject).set(value)

    def on_references(self, whole: Mapping[str, bool]) -> None:
        """By kind, whether windows of all its subjects are compared with the reference."""
        for kind, is_whole in whole.items():
            self._whole.labels(self._pipeline, kind).set(float(is_whole))

    def on_monitors(self, found: Iterable[tuple[str, str, float]]) -> None:
        """Subject, detector, and the mean of the newest values."""
        for subject, detector, mean in found:
            if mean == mean:
                self._newest.labels(self._pipeline, subject, detector).set(mean)

    def flush(self) -> None:
        """Bring what was appended to `feedback` into the metrics."""
        for what, arrays in self.feedback.items():
            if not arrays:
                continue
            values = np.concatenate(arrays)
            edges, names = (_TENTHS, _TENTH_NAMES) if what in BY_SCORE else (_POPULAR, _POPULARITY)
            places = np.searchsorted(edges, values[values == values], side="right")
            for bucket, count in enumerate(np.bincount(places).tolist()):
                if count:
                    self._feedback.labels(self._pipeline, what, names[bucket]).inc(count)
            arrays.clear()


BY_SCORE: Final = ("predictions", "labels", "true labels")
_TENTHS = np.arange(1, 10) / 10
_TENTH_NAMES = [f"{tenth / 10:.1f}" for tenth in range(10)]
_POPULAR = np.array([-2.0, 0.0, 2.0])  # log2 of how often, over the mean
_POPULARITY = ["below 1/4", "1/4 to 1", "1 to 4", "4 or more"]
