"""Prints all metrics as a table: ``python -m anabranch.dataflows.telemetry.reference``."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from anabranch.dataflows.telemetry.supervisor import restarts_counter
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics

Metric = Counter | Gauge | Histogram


def metrics() -> list[Metric]:
    """Every metric of a run, in order of name."""
    registry = CollectorRegistry()
    WorkerMetrics("any", registry)
    restarts_counter(registry)
    found = {id(each): each for each in registry._names_to_collectors.values()}
    return sorted(found.values(), key=lambda each: str(each._name))  # type: ignore[arg-type]


def exported(metric: Metric) -> list[str]:
    """The names under which Prometheus sees a metric."""
    name = str(metric._name)
    if isinstance(metric, Counter):
        return [f"{name}_total"]
    if isinstance(metric, Histogram):
        return [f"{name}_bucket", f"{name}_sum", f"{name}_count"]
    return [name]


def table() -> str:
    """Markdown."""
    lines = [
        "# Metrics",
        "",
        "What `anabranch run --metrics-port N` exports on `/metrics`; beside are `/healthz/live`",
        "and `/healthz/ready`. Written by `python -m anabranch.dataflows.telemetry.reference`,",
        "checked by a test.",
        "",
        "| metric | kind | labels | what |",
        "|---|---|---|---|",
    ]
    for metric in metrics():
        name = exported(metric)[0].removesuffix("_bucket")
        labels = ", ".join(metric._labelnames)
        kind = type(metric).__name__.lower()
        lines.append(f"| `{name}` | {kind} | {labels} | {metric._documentation} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
