"""What `skew` prints: a table and a sentence, or one JSON object."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

MODERATE_PSI = 0.1
"""From here on scorecard monitoring looks closer."""

FEATURES_SHOWN = 8
"""So many of the worst features have their examples printed."""

if TYPE_CHECKING:
    from anabranch.dataflows.skew.compare import FeatureSkew, SkewReport
    from anabranch.dataflows.skew.distributions import Shift


def print_rows(report: SkewReport, allow: float, json: bool) -> None:
    """Which rows differ, feature by feature."""
    agree = report.worst_share() <= allow
    if json:
        features = [asdict(each) | {"share": each.share} for each in report.features]
        _print_json(asdict(report) | {"features": features, "allowed": allow, "agree": agree})
        return
    console = Console()
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
            style="red" if each.share > allow else None,
        )
    console.print(table)
    for line in _sentences(report, allow):
        console.print(line, highlight=False, soft_wrap=True)


def print_shifts(
    pipeline: str, found: list[Shift], rows: tuple[int, int], most: float, json: bool
) -> None:
    """How far each feature has moved; ``rows`` are those of the training set and those served."""
    if json:
        features = [asdict(each) | {"state": _state(each, most)} for each in found]
        _print_json(
            {
                "pipeline": pipeline,
                "training_rows": rows[0],
                "served_rows": rows[1],
                "psi_limit": most,
                "features": features,
                "agree": all(each.psi <= most for each in found),
            }
        )
        return
    _print_shift_table(f"{pipeline}: {rows[0]:,} rows of training, {rows[1]:,} served", found, most)
    shifted = sum(each.psi > most for each in found)
    said = f"{shifted} of {len(found)} features are shifted: their PSI is above {most:g}"
    fine = f"all {len(found)} features are distributed as in training: no PSI is above {most:g}"
    Console().print(said if shifted else fine, highlight=False, soft_wrap=True)


def _print_shift_table(title: str, found: list[Shift], most: float) -> None:
    table = Table(title=f"features of {title}", title_justify="left")
    table.add_column("feature", no_wrap=True)
    for name in ("PSI", "by chance", "JS", "KS", "mean", "missing"):
        table.add_column(name, justify="right")
    table.add_column("")
    for each in found:
        state = _state(each, most)
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
    Console().print(table)


def _state(shift: Shift, most: float) -> str:
    if shift.psi > most:
        return "shifted"
    return "moved" if shift.psi > MODERATE_PSI else ""


def _examples(each: FeatureSkew) -> str:
    worst = "; ".join(
        f"{one.id} served {one.served:.12g}, recomputed {one.recomputed:.12g}"
        for one in each.examples
    )
    return f"{each.name}: {worst}"


def _sentences(report: SkewReport, allow: float) -> list[str]:
    left_out = {
        "malformed": report.malformed,
        "late": report.late,
        "repeated": report.repeated,
        "too large for a model": report.too_large,
        "outside the log": report.outside,
        "in the warm-up": report.warming_up,
        "not served": report.not_served,
    }
    told = "".join(f", {count:,} {what}" for what, count in left_out.items() if count)
    lines = [
        f"{report.events:,} events and {report.served:,} served rows: "
        f"{report.compared:,} compared{told}"
    ]
    if report.unknown:
        lines.append(f"{report.unknown:,} served rows are about no event that should be served")
    if report.missing:
        lines.append(f"missing, for example: {', '.join(report.missing)}")
    if report.not_checked:
        lines.append(f"not recomputed, and so not checked: {', '.join(report.not_checked)}")
    undecided = sum(each.undecided for each in report.features)
    if undecided:
        lines.append(
            f"{undecided:,} values of features of labels differ where an event and a label of its "
            "key came too close together to say which was read first (--order-slack)"
        )
    lines += [_examples(each) for each in report.features[:FEATURES_SHOWN] if each.examples]
    lines.append(_verdict(report, allow))
    return lines


def _verdict(report: SkewReport, allow: float) -> str:
    all_features = len(report.features)
    differing = sum(each.share > allow for each in report.features)
    if differing:
        more = "more rows than is allowed" if allow else "some rows"
        return f"{differing} of {all_features} features differ in {more}"
    if report.missing_share() > allow:
        return "more rows are missing than is allowed"
    rows = sum(each.differing for each in report.features)
    return f"served and recomputed agree: {all_features} features, {rows:,} values differ"


def _print_json(found: dict[str, Any]) -> None:
    typer.echo(orjson.dumps(_finite(found)).decode())


def _finite(value: Any) -> Any:
    """JSON has no infinity: it and NaN are told as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value
