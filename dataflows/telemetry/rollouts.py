"""Prometheus metrics of rollouts: traffic by model, decisions, and models that fail."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge

from anabranch.dataflows.messages.outputs import RolloutMessage
from anabranch.models.rollout.decision import ROLLED_BACK


class RolloutMetrics:
    """Set and counted by the model step, once a batch at most."""

    def __init__(self, pipeline: str, registry: CollectorRegistry) -> None:
        self._pipeline = pipeline

        def counter(name: str, text: str, label: str) -> Counter:
            return Counter(name, text, ("pipeline", label), registry=registry)

        self._shares = Gauge(
            "anabranch_traffic_share",
            "Share of the traffic keys that a model serves, 0 to 1",
            ("pipeline", "model"),
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self._models: set[str] = set()
        self._served = counter(
            "anabranch_served_predictions", "Predictions served, by model", "model"
        )
        self._decisions = counter(
            "anabranch_rollout_decisions", "Rollout decisions, by action", "action"
        )
        self._failures = counter(
            "anabranch_model_failures", "Calls of a model to predict or learn that failed", "model"
        )

    def on_models(self, models: Iterable[str]) -> None:
        """Create the series that alerts wait for, so that the first one is an increase."""
        self._decisions.labels(self._pipeline, ROLLED_BACK)
        for model in models:
            self._failures.labels(self._pipeline, model)

    def on_traffic(self, shares: Mapping[str, float]) -> None:
        """The share of the keys that each model serves from now on; a removed one has none."""
        for model in self._models - shares.keys():
            self._shares.labels(self._pipeline, model).set(0.0)
        for model, share in shares.items():
            self._shares.labels(self._pipeline, model).set(share)
        self._models |= shares.keys()

    def on_served(self, counts: Mapping[str, int]) -> None:
        """Add the events that each model served."""
        for model, count in counts.items():
            self._served.labels(self._pipeline, model).inc(count)

    def on_decisions(self, decisions: Iterable[RolloutMessage]) -> None:
        """Count decisions by action."""
        for decision in decisions:
            self._decisions.labels(self._pipeline, decision.action).inc()

    def on_failures(self, counts: Mapping[str, int]) -> None:
        """Add the calls of each model that failed."""
        for model, count in counts.items():
            self._failures.labels(self._pipeline, model).inc(count)
