"""Output of `anabranch skew`: a table and a verdict, or one JSON object."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import orjson
from rich.table import Table

from anabranch.dataflows.telemetry.console import TextConsole, echo

MODERATE_PSI = 0.1
"""A PSI above this calls for a closer look, by the convention of scorecard monitoring."""

FEATURES_SHOWN = 8
"""Number of features, the worst ones, whose examples are printed."""

if TYPE_CHECKING:
    from anabranch.dataflows.skew.compare import FeatureSkew, SkewReport
    from anabranch.dataflows.skew.distributions import Shift


def print_rows(
    report: SkewReport, max_mismatch: float, json: bool, missing: str | None = None
) -> None:
    """Print mismatches by feature, and whether they are within ``max_mismatch``.

    ``missing`` is a sentence about a history that could not be read.
    """
    agree = report.worst_share() <= max_mismatch
    if json:
        features = [asdict(each) | {"share": each.share} for each in report.features]
        _print_json(
            asdict(report) | {"features": features, "max_mismatch": max_mismatch, "agree": agree}
        )
        return
    console = TextConsole()
    table = Table(
        title=f"features of {report.pipeline}, served and recomputed", title_justify="left"
    )
    table.add_column("feature", no_wrap=True)
    for name in ("rows", "differ", "share", "largest difference"):
        table.add_column(name, justify="right")
    for each in report.features:
        table.add_row(
            each.name,
            f"{each.rows:,}",
            f"{each.differing:,}",
            f"{each.share:.3%}",
            f"{each.largest:.3g}",
            style="red" if each.share > max_mismatch else None,
        )
    console.print(table)
    if missing is not None:
        console.print(missing, soft_wrap=True)
    for line in _sentences(report, max_mismatch):
        console.print(line, highlight=False, soft_wrap=True)


def print_shifts(
    pipeline: str, shifts: list[Shift], rows: tuple[int, int], max_psi: float, json: bool
) -> None:
    """Print how far each feature has shifted; ``rows`` counts training rows and served rows."""
    if json:
        features = [asdict(each) | {"state": _state(each, max_psi)} for each in shifts]
        _print_json(
            {
                "pipeline": pipeline,
                "training_rows": rows[0],
                "served_rows": rows[1],
                "max_psi": max_psi,
                "features": features,
                "agree": all(each.psi <= max_psi for each in shifts),
            }
        )
        return
    _print_shift_table(
        f"{pipeline}: {rows[0]:,} training rows, {rows[1]:,} served", shifts, max_psi
    )
    shifted = sum(each.psi > max_psi for each in shifts)
    if shifted:
        verdict = (
            f"{shifted} of {len(shifts)} features have shifted: their PSI is above {max_psi:g}"
        )
    else:
        verdict = f"no shift: none of the {len(shifts)} features has a PSI above {max_psi:g}"
    TextConsole().print(verdict, highlight=False, soft_wrap=True)


def _print_shift_table(title: str, shifts: list[Shift], max_psi: float) -> None:
    table = Table(title=f"features of {title}", title_justify="left")
    table.add_column("feature", no_wrap=True)
    for name in ("PSI", "expected by chance", "JS", "KS", "mean", "missing"):
        table.add_column(name, justify="right")
    table.add_column("")  # the verdict
    for each in shifts:
        state = _state(each, max_psi)
        table.add_row(
            each.name,
            f"{each.psi:.4f}",
            f"{each.psi_by_chance:.4f}",
            f"{each.js:.4f}",
            f"{each.ks:.4f}",
            f"{each.mean[0]:.4g} → {each.mean[1]:.4g}",
            f"{each.missing[0]:.1%} → {each.missing[1]:.1%}",
            state,
            style={"shifted": "red", "moved": "yellow"}.get(state),
        )
    TextConsole().print(table)


def _state(shift: Shift, max_psi: float) -> str:
    if shift.psi > max_psi:
        return "shifted"
    return "moved" if shift.psi > MODERATE_PSI else ""


def _examples(each: FeatureSkew) -> str:
    worst = "; ".join(
        f"{one.id} served {one.served:.12g}, recomputed {one.recomputed:.12g}"
        for one in each.examples
    )
    return f"{each.name}: {worst}"


def _sentences(report: SkewReport, max_mismatch: float) -> list[str]:
    """What was compared, what was not and why, and the verdict."""
    excluded = {
        "malformed": report.malformed,
        "late": report.late,
        "duplicate": report.duplicates,
        "too large for a model": report.too_large,
        "outside the range of the served rows": report.outside,
        "in the warm-up": report.warming_up,
        "not served": report.not_served,
    }
    reasons = "".join(f", {count:,} {reason}" for reason, count in excluded.items() if count)
    lines = [
        f"{report.events:,} events and {report.served:,} served rows: "
        f"{report.compared:,} compared{reasons}"
    ]
    if report.history is not None:
        lines.append(
            f"windows were warmed up with {report.history.events:,} events of "
            f"{report.history.source}, which came before"
        )
    if report.incomplete:
        names = [
            name for name in report.incomplete if name not in {f.name for f in report.features}
        ]
        nothing = f"; of these features none was: {', '.join(names)}" if names else ""
        lines.append(
            f"{max(report.incomplete.values()):,} rows were not compared in all features, as "
            "windows reach behind the first event that was read, and the pipeline knew earlier "
            f"ones: give those with --warmup-from{nothing}"
        )
    if report.unknown:
        lines.append(f"{report.unknown:,} served rows belong to no event that should be served")
    if report.missing:
        lines.append(f"missing rows, for example: {', '.join(report.missing)}")
    if report.not_checked:
        lines.append(f"not checked, as they can't be recomputed: {', '.join(report.not_checked)}")
    undecided = sum(each.undecided for each in report.features)
    if undecided:
        lines.append(
            f"{undecided:,} values of windows over labels differ where an event and a label of its "
            "key were published too close together to tell which was read first "
            "(--order-tolerance)"
        )
    lines += [_examples(each) for each in report.features[:FEATURES_SHOWN] if each.examples]
    lines.append(_verdict(report, max_mismatch))
    return lines


def _verdict(report: SkewReport, max_mismatch: float) -> str:
    total = len(report.features)
    failing = sum(each.share > max_mismatch for each in report.features)
    limit = f" in more than {max_mismatch:.3%} of rows (--max-mismatch)" if max_mismatch else ""
    if failing:
        return f"skew: {failing} of {total} features differ{limit}"
    if report.missing_share() > max_mismatch:
        return f"skew: {report.missing_share():.3%} of rows are missing (--max-mismatch)"
    rows = sum(each.differing for each in report.features)
    return f"no skew: {total} features match, {rows:,} values differ"


def _print_json(report: dict[str, Any]) -> None:
    echo(orjson.dumps(_finite(report)).decode())


def _finite(value: Any) -> Any:
    """Infinities and NaN as text, which JSON has no numbers for."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value
