"""Prometheus metrics of the monitors of distributions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Gauge

_LEVELS = {"warning": 1.0, "drift": 2.0, "resolved": 0.0}


class ShiftMetrics:
    """How far distributions have moved; told of when that is signalled."""

    def __init__(self, pipeline: str, registry: CollectorRegistry) -> None:
        self._pipeline = pipeline

        def gauge(name: str, text: str) -> Gauge:
            labels = ("pipeline", "kind", "subject")
            return Gauge(name, text, labels, registry=registry, multiprocess_mode="mostrecent")

        self._drifting = gauge("anabranch_drifting", "0: as the reference; 1: warning; 2: drift")
        self._psi = gauge(
            "anabranch_population_stability_index", "Of the last window that was signalled"
        )
        self._kinds: dict[str, str] = {}

    def on_families(self, subjects: Iterable[tuple[str, Sequence[str]]]) -> None:
        """All that is watched, by kind: nothing has moved yet."""
        for kind, names in subjects:
            for name in names:
                self._kinds[name] = kind
                self._drifting.labels(self._pipeline, kind, name).set(0.0)

    def on_shifts(self, found: Iterable[tuple[str, str, float]]) -> None:
        """Subject, severity and PSI of what was signalled."""
        for subject, severity, psi in found:
            labels = (self._pipeline, self._kinds[subject], subject)
            self._drifting.labels(*labels).set(_LEVELS[severity])
            self._psi.labels(*labels).set(psi)
