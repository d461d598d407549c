"""Prometheus metrics of rollouts: who serves how much, what was decided, which models fail."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge

from anabranch.dataflows.messages.outputs import RolloutMessage
from anabranch.models.rollout.decision import ROLLED_BACK


class RolloutMetrics:
    """What the model step tells of rollouts; it is called once a batch at most."""

    def __init__(self, pipeline: str, registry: CollectorRegistry) -> None:
        self._pipeline = pipeline

        def counter(name: str, text: str, label: str) -> Counter:
            return Counter(name, text, ("pipeline", label), registry=registry)

        self._shares = Gauge(
            "anabranch_traffic_share",
            "Share of the keys that a model serves",
            ("pipeline", "model"),
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self._models: set[str] = set()
        self._served = counter("anabranch_served", "Predictions served", "model")
        self._decisions = counter("anabranch_rollout_decisions", "Decisions taken", "action")
        self._failures = counter(
            "anabranch_model_failures", "Predictions and lessons that failed", "model"
        )

    def on_models(self, models: Iterable[str]) -> None:
        """These are there, and nothing of what an alert waits for has happened yet."""
        self._decisions.labels(self._pipeline, ROLLED_BACK)
        for model in models:
            self._failures.labels(self._pipeline, model)

    def on_traffic(self, shares: Mapping[str, float]) -> None:
        """The share of the keys that each model serves from now on; one that is gone has none."""
        for model in self._models - shares.keys():
            self._shares.labels(self._pipeline, model).set(0.0)
        for model, share in shares.items():
            self._shares.labels(self._pipeline, model).set(share)
        self._models |= shares.keys()

    def on_served(self, counts: Mapping[str, int]) -> None:
        """So many more events were served by each model."""
        for model, count in counts.items():
            self._served.labels(self._pipeline, model).inc(count)

    def on_decisions(self, decisions: Iterable[RolloutMessage]) -> None:
        """These were taken."""
        for decision in decisions:
            self._decisions.labels(self._pipeline, decision.action).inc()

    def on_failures(self, counts: Mapping[str, int]) -> None:
        """So many more predictions and lessons of each model have failed."""
        for model, count in counts.items():
            self._failures.labels(self._pipeline, model).inc(count)
