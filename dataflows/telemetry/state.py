"""Prometheus metrics of state: commits, sizes, pending labels, and the versions that run."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Gauge, Histogram

from anabranch.dataflows.recovery.tokens import Commit
from anabranch.dataflows.telemetry.latency import SECONDS
from anabranch.dataflows.telemetry.versions import versions


class StateMetrics:
    """Set at a commit, or at a flush."""

    def __init__(self, pipeline: str, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            names = ("pipeline", *labels)
            return Gauge(name, text, names, registry=registry, multiprocess_mode="mostrecent")

        self._pipeline = pipeline
        self._commits = Histogram(
            "anabranch_commit_seconds",
            "Seconds to commit what changed in an epoch, for each state partition",
            ("pipeline",),
            registry=registry,
            buckets=SECONDS,
        )
        self._disk = gauge(
            "anabranch_state_disk_bytes", "Bytes on disk of a state partition", "state_partition"
        )
        self._model_bytes = gauge(
            "anabranch_model_bytes", "Bytes of a model when it was last stored whole", "model"
        )
        self._learned = gauge(
            "anabranch_model_learned_labels", "Labels that a model has learned in all", "model"
        )
        self._pending = gauge(
            "anabranch_pending_predictions", "Predictions that wait for their label"
        )
        self._pending_bytes = gauge(
            "anabranch_pending_bytes", "Bytes of pending predictions and buffered labels"
        )
        self._early = gauge("anabranch_buffered_early_labels", "Labels that wait for their event")
        info = gauge("anabranch_build_info", "Always 1; versions are in the labels", *versions())
        info.labels(pipeline, *versions().values()).set(1)

    def on_commit(self, commit: Commit) -> None:
        """Count the commit of a state partition."""
        self._commits.labels(self._pipeline).observe(commit.seconds)
        self._disk.labels(self._pipeline, commit.partition).set(commit.disk_bytes)

    def on_models(self, versions: Mapping[str, int], sizes: Mapping[str, int]) -> None:
        """How many labels models have learned, and their bytes; 0: not known yet."""
        for model, learned in versions.items():
            self._learned.labels(self._pipeline, model).set(learned)
        for model, size in sizes.items():
            if size:
                self._model_bytes.labels(self._pipeline, model).set(size)

    def on_pending(self, predictions: int, early_labels: int, nbytes: int) -> None:
        """What waits for labels, what waits for events, and the bytes of both."""
        self._pending.labels(self._pipeline).set(predictions)
        self._early.labels(self._pipeline).set(early_labels)
        self._pending_bytes.labels(self._pipeline).set(nbytes)
