"""The output of `anabranch models`: tables, or JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from anabranch.dataflows.telemetry.console import TextConsole, echo
from anabranch.models.registry.diff import Pair, VersionDiff, diff_versions
from anabranch.models.registry.registry import Registry
from anabranch.models.registry.version import Version, spans_text
from anabranch.models.registry.weights import INTERCEPT

_WEIGHTS_SHOWN = 10


def print_list(versions: Sequence[Version], registry: Registry, json: bool) -> None:
    """Print versions, one in a row."""
    if json:
        _print_json([_as_json(each) for each in versions])
        return
    if not versions:
        echo(f"no models in {registry.path}: add one with `anabranch models snapshot`")
        return
    table = Table(title=f"models in {registry.path}", title_justify="left")
    table.add_column("model", no_wrap=True)
    table.add_column("created", min_width=10)
    table.add_column("labels", justify="right")
    for name in ("metrics", "river", "parent"):
        table.add_column(name, overflow="fold")
    for each in versions:
        table.add_row(
            each.reference,
            f"{_time(each)[:16]}\n{each.made}",
            _rows(each),
            _metrics(each).replace(", ", "\n"),
            each.river or "",
            (each.parent or "—").split(" of ")[0],
        )
    TextConsole().print(table)


def print_version(version: Version, json: bool) -> None:
    """Print the description of a version."""
    if json:
        _print_json(_as_json(version))
        return
    console = TextConsole()
    _print_pairs(console, version.reference, _lineage(version))
    _print_pairs(console, "hyperparameters", version.parameters.items())
    if version.weights:
        shown = _largest(version.weights)
        scaled = ", of scaled features" if "StandardScaler" in version.declaration else ""
        title = f"largest {len(shown)} of {len(version.weights):,} weights{scaled}"
        _print_pairs(console, title, ((n, _number(w)) for n, w in shown))


def print_diff(first: Version, second: Version, top: int, json: bool) -> None:
    """Print what differs between two versions, with the ``top`` most changed weights."""
    diff = diff_versions(first, second)
    if json:
        document = {"first": first.reference, "second": second.reference, **asdict(diff)}
        document["weights"] = [
            {**asdict(each), "change": each.change} for each in diff.weights[:top]
        ]
        _print_json(document)
        return
    _print_diff(diff, first.reference, second.reference, top)


def _print_diff(diff: VersionDiff, first: str, second: str, top: int) -> None:
    console = TextConsole()
    parts: dict[str, dict[str, Pair]] = {
        "lineage": diff.lineage,
        "metrics": {n: (_number(a), _number(b)) for n, (a, b) in diff.metrics.items()},
        "hyperparameters": diff.parameters,
        "features": diff.columns,
    }
    for title, pairs in parts.items():
        if pairs:
            table = _table(title, title, first, second)
            for name, (a, b) in pairs.items():
                table.add_row(name, a or "—", b or "—")
            console.print(table)
    if diff.weights[:top]:
        title = f"weights, the most changed {len(diff.weights[:top])} of {len(diff.weights):,}"
        table = _table(title, "feature", first, second, "change")
        for each in diff.weights[:top]:
            table.add_row(
                each.feature, _number(each.before), _number(each.after), f"{each.change:+.4g}"
            )
        console.print(table)
    if not (any(parts.values()) or diff.weights):
        echo(f"{first} and {second} do not differ")


def print_added(version: Version, how: str, json: bool) -> None:
    """Print a version that was added, or the one that makes a new one unnecessary."""
    if json:
        _print_json(_as_json(version))
        return
    metrics = _metrics(version)
    tail = f"; {metrics}" if metrics else ""
    echo(f"{how} {version.reference}: {version.model}, {_rows(version)} labels learned{tail}")


def _lineage(version: Version) -> Iterator[tuple[str, str]]:
    yield "created", f"{version.made}, {_time(version)} UTC"
    yield "from", version.source
    if version.generation is not None:
        yield "generation", f"{version.generation:,}"
    yield "parent", version.parent or "—"
    yield "pipeline", f"{version.pipeline} ({version.task})"
    yield "model", version.declaration
    yield "features", f"{len(version.columns)}, fingerprint {version.fingerprint[:12]}"
    yield "labels learned", _rows(version)
    yield "trained on", spans_text(version.trained_on) or "—"
    yield "metrics", _metrics(version) or "—"
    yield "written with", ", ".join(f"{n} {v}" for n, v in version.versions.items())
    yield "pickle", f"{version.bytes:,} bytes, sha256 {version.sha256[:12]}"
    if version.distributions:
        yield "distributions", version.distributions
    if version.note:
        yield "note", version.note


def _print_pairs(console: Console, title: str, pairs: Any) -> None:
    table = Table(title=title, title_justify="left", show_header=False, min_width=len(title))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in pairs:
        table.add_row(name, text)
    console.print(table)


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left", min_width=len(title))
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, overflow="fold")
    return table


def _largest(weights: dict[str, float | None]) -> list[tuple[str, float | None]]:
    """The intercept, then the largest weights."""
    ranked = sorted(weights.items(), key=lambda pair: (pair[0] != INTERCEPT, -abs(pair[1] or 0.0)))
    return ranked[:_WEIGHTS_SHOWN]


def _as_json(version: Version) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(version)
    return {"reference": version.reference, "fingerprint": version.fingerprint, **fields}


def _print_json(value: Any) -> None:
    echo(msgspec.json.encode(value).decode())


def _rows(version: Version) -> str:
    return "?" if version.rows is None else f"{version.rows:,}"


def _metrics(version: Version) -> str:
    return ", ".join(f"{name} {_number(value)}" for name, value in version.metrics.items())


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:.4g}"


def _time(version: Version) -> str:
    return str(np.datetime64(version.made_ms, "ms").astype("datetime64[s]")).replace("T", " ")
