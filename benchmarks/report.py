"""The report of a benchmark, as tables or JSON.

A benchmark is a module of this package with ``run(quick: bool) -> Report``. Its targets are
`Target`s; `python -m benchmarks NAME` prints them with the measured values, and fails if one is
missed.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

__all__ = ["Report", "Target", "machine", "print_json", "print_report"]

_HOLDS: dict[str, Callable[[float, float], bool]] = {
    "<=": lambda value, bound: value <= bound,
    ">=": lambda value, bound: value >= bound,
}


@dataclass(frozen=True, slots=True)
class Target:
    """A target: ``value`` is at most (``<=``) or at least (``>=``) ``bound``."""

    name: str
    value: float
    bound: float
    sense: str = "<="

    @property
    def holds(self) -> bool:
        """Whether the measured value meets the target."""
        return _HOLDS[self.sense](self.value, self.bound)


@dataclass(slots=True)
class Report:
    """The results of a benchmark: ``rows`` are a table, one dict of column to value per line.

    Rows may have different columns; ``notes`` are what a reader must know to interpret them.
    """

    benchmark: str
    rows: list[dict[str, Any]]
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether every target is met."""
        return all(target.holds for target in self.targets)


def machine() -> str:
    """The machine that was measured, on one line."""
    cpu = platform.processor() or "unknown CPU"
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].split(":", 1)[1].strip() if models else cpu
    return f"{cpu}, {os.cpu_count()} cores, Python {platform.python_version()}, " + (
        f"{platform.system()} {platform.machine()}"
    )


def print_report(report: Report, console: Console) -> None:
    """Print a report for people."""
    console.print(f"[bold]{report.benchmark}[/bold]  {machine()}")
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in report.rows:
        groups.setdefault(tuple(row), []).append(row)
    for columns, rows in groups.items():
        table = Table(*columns)
        for row in rows:
            table.add_row(*(_shown(value) for value in row.values()))
        console.print(table)
    if report.targets:
        table = Table("target", "measured", "bound", "holds")
        for t in report.targets:
            holds = "yes" if t.holds else "[red]NO[/red]"
            table.add_row(t.name, _shown(t.value), f"{t.sense} {_shown(t.bound)}", holds)
        console.print(table)
    for note in report.notes:
        console.print(f"• {note}", highlight=False)


def print_json(report: Report) -> None:
    """Print a report for programs, on one line."""
    targets = [
        {
            "name": t.name,
            "value": t.value,
            "bound": t.bound,
            "sense": t.sense,
            "holds": t.holds,
        }
        for t in report.targets
    ]
    whole = {
        "benchmark": report.benchmark,
        "machine": machine(),
        "rows": report.rows,
        "targets": targets,
        "notes": report.notes,
    }
    print(orjson.dumps(whole, option=orjson.OPT_SERIALIZE_NUMPY).decode(), flush=True)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
