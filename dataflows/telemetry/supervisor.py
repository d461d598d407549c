"""What the supervisor of several processes tells of itself."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter


def restarts_counter(registry: CollectorRegistry) -> Counter:
    """How often the workers had to be started again."""
    text = "Times that all workers of this host were started again"
    return Counter("anabranch_restarts", text, ("pipeline",), registry=registry)
