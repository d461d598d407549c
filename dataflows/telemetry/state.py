"""Prometheus metrics of what is remembered, how large it is, and of which versions."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Gauge, Histogram

from anabranch.dataflows.recovery.state_partition import Committed
from anabranch.dataflows.telemetry.latency import SECONDS
from anabranch.dataflows.telemetry.versions import versions


class StateMetrics:
    """What is told at a commit, or at a flush."""

    def __init__(self, pipeline: str, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, mode: str, *labels: str) -> Gauge:
            names = ("pipeline", *labels)
            return Gauge(name, text, names, registry=registry, multiprocess_mode=mode)  # type: ignore[arg-type]

        self._pipeline = pipeline
        self._commits = Histogram(
            "anabranch_commit_seconds", "To write what changed in an epoch, one place",
            ("pipeline",), registry=registry, buckets=SECONDS,
        )  # fmt: skip
        self._disk = gauge(
            "anabranch_state_disk_bytes", "Files of a place in the state directory", "mostrecent",
            "place",
        )  # fmt: skip
        self._model_bytes = gauge(
            "anabranch_model_bytes", "A model as it was last written whole", "mostrecent", "model"
        )
        self._versions = gauge(
            "anabranch_model_version", "Labels that a model has learned", "mostrecent", "model"
        )
        self._waiting = gauge(
            "anabranch_waiting_predictions", "Predictions without label yet", "mostrecent"
        )
        self._waiting_bytes = gauge(
            "anabranch_waiting_bytes", "Bytes of what waits for labels", "mostrecent"
        )
        self._held = gauge(
            "anabranch_held_labels", "Labels that came before their events", "mostrecent"
        )
        info = gauge(
            "anabranch_build_info", "1; the versions are in the labels", "mostrecent",
            *versions(),
        )  # fmt: skip
        info.labels(pipeline, *versions().values()).set(1)

    def on_commit(self, made: Committed) -> None:
        """A place has written what changed in an epoch."""
        self._commits.labels(self._pipeline).observe(made.seconds)
        self._disk.labels(self._pipeline, made.place).set(made.disk_bytes)

    def on_models(self, versions: Mapping[str, int], sizes: Mapping[str, int]) -> None:
        """How much models have learned, and how large they are; 0: not known yet."""
        for model, learned in versions.items():
            self._versions.labels(self._pipeline, model).set(learned)
        for model, size in sizes.items():
            if size:
                self._model_bytes.labels(self._pipeline, model).set(size)

    def on_waiting(self, waiting: int, held: int, nbytes: int) -> None:
        """What waits for labels, and for events."""
        self._waiting.labels(self._pipeline).set(waiting)
        self._held.labels(self._pipeline).set(held)
        self._waiting_bytes.labels(self._pipeline).set(nbytes)
