"""The Prometheus metric of the supervisor of several worker processes."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter


def restarts_counter(registry: CollectorRegistry) -> Counter:
    """How often the workers had to be restarted."""
    text = "Times that all workers of this host were restarted"
    return Counter("anabranch_restarts", text, ("pipeline",), registry=registry)
