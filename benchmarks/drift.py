"""Drift monitors on streams with known changes: detections, delay and false alarms.

How such a comparison can mislead, and what is done about it:

* A detector that alarms all the time has no delay. False alarms are counted on the same streams
  before the change, and on streams without any: with a daily rhythm, with heavy tails.
* Independent rows, as in simulations but never in real streams. Half of the columns are
  autocorrelated.
* A change in all features at once. Here it is in one of twenty.
* Concept drift without any change of a feature is another matter, see `loss_drift`.
* The peers are used as their users would: River's ADWIN on every column (default settings), and a
  Kolmogorov-Smirnov test of each day against the first, with Bonferroni's correction at 1 %.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from river import drift as river_drift
from scipy import stats

from anabranch.models.drift.declarations import Distributions
from anabranch.models.drift.distribution_shift import DistributionMonitor
from benchmarks.loss_drift import table as loss_table
from benchmarks.report import Report, Target

F64 = NDArray[np.float64]
COLUMNS = 20
DAY = 10_000  # rows
DECLARED = Distributions(reference=f"{DAY}s")


@dataclass(frozen=True, slots=True)
class Stream:
    """Columns, of which ``moved`` changes at row ``at``; None: no change."""

    name: str
    values: F64
    moved: int | None
    at: int


def base(rng: np.random.Generator, rows: int, columns: int = COLUMNS) -> F64:
    """Columns with independent rows, and as many with autocorrelated ones."""
    values = rng.normal(size=(rows, columns))
    half = columns // 2
    for row in range(1, rows):
        values[row, :half] = 0.8 * values[row - 1, :half] + 0.6 * values[row, :half]
    return values


def rhythm(rows: int) -> F64:
    """A daily rhythm, between -1 and 1."""
    return np.sin(np.arange(rows) * 2 * np.pi / DAY)


Move = Callable[[F64, NDArray[np.float64]], F64]
"""The values of a column from the change on, and rows since: the changed values."""

MOVES: dict[str, Move] = {
    "abrupt": lambda values, since: values + 1.0,
    "gradual": lambda values, since: (
        values + (np.random.default_rng(1).random(len(since)) < since / DAY)
    ),
    "incremental": lambda values, since: values + np.minimum(since / DAY, 1.0),
    "recurring": lambda values, since: values + (since // (DAY / 2) % 2 == 0),
    "scale": lambda values, since: values * 2.0,
}


def streams(rows: int, seed: int) -> list[Stream]:
    """One stream of each kind."""
    found = []
    at = rows // 2
    for number, (name, move) in enumerate(MOVES.items()):
        rng = np.random.default_rng([seed, number])
        values, column = base(rng, rows), int(rng.integers(COLUMNS))
        since = np.arange(rows - at, dtype=np.float64)
        values[at:, column] = move(values[at:, column], since)
        found.append(Stream(name, values, column, at))
    rng = np.random.default_rng([seed, 99])
    rare = (rng.random((rows, COLUMNS)) < 0.05).astype(np.float64)
    rare[at:, 3] = rng.random(rows - at) < 0.25
    found.append(Stream("labels: prior shift", rare, 3, at))
    if seed == 0:
        many = base(np.random.default_rng([seed, 100]), rows, 100)
        many[at:, 77] += 1.0
        found.append(Stream("one of a hundred", many, 77, at))
    steady = {
        "steady": base(rng, rows),
        "seasonal": base(rng, rows) + rhythm(rows)[:, None],
        "heavy tails": rng.standard_cauchy((rows, COLUMNS)),
    }
    return found + [Stream(name, values, None, rows) for name, values in steady.items()]


Alarms = list[tuple[int, int]]
"""Rows with the column of each."""


def ours(values: F64) -> Alarms:
    """Severity drift alone: that is what wakes somebody."""
    shifts = DistributionMonitor(DECLARED, values.shape[1], values.shape[1])
    times = np.arange(len(values)) * 1000
    found: Alarms = []
    for low in range(0, len(values), 1000):
        some = shifts.update(values[low : low + 1000], times[low : low + 1000])
        found += [(low + each.row, each.column) for each in some if each.severity == "drift"]
    return found


def adwin(values: F64) -> Alarms:
    """River's ADWIN, one detector per column."""
    found: Alarms = []
    for column in range(values.shape[1]):
        detector = river_drift.ADWIN()
        for row, value in enumerate(values[:, column].tolist()):
            detector.update(value)
            if detector.drift_detected:
                found.append((row, column))
    return sorted(found)


def daily(values: F64) -> Alarms:
    """A Kolmogorov-Smirnov test at the end of each day but the first."""
    found: Alarms = []
    level = 0.01 / values.shape[1]
    for end in range(2 * DAY, len(values) + 1, DAY):
        for column in range(values.shape[1]):
            first, last = values[:DAY, column], values[end - DAY : end, column]
            if stats.ks_2samp(first, last, method="asymp").pvalue < level:
                found.append((end - 1, column))
    return found


CONTESTANTS: dict[str, Callable[[F64], Alarms]] = {
    "anabranch": ours,
    "River's ADWIN per column": adwin,
    "KS test per day": daily,
}


def judge(name: str, look: Callable[[F64], Alarms], worlds: Sequence[Stream]) -> dict[str, Any]:
    """Run one contender on all streams."""
    delays: list[float] = []
    false_alarms = rows = missed = 0
    seconds = 0.0
    for stream in worlds:
        began = time.perf_counter()
        alarms = look(stream.values)
        seconds += time.perf_counter() - began
        rows += len(stream.values)
        hits = [row for row, column in alarms if column == stream.moved and row >= stream.at]
        false_alarms += sum(column != stream.moved or row < stream.at for row, column in alarms)
        if stream.moved is not None:
            missed += not hits
            delays += [float(hits[0] - stream.at)] if hits else []
    changes = sum(stream.moved is not None for stream in worlds)
    return {
        "contender": name,
        "detected": f"{changes - missed} of {changes}",
        "share found": (changes - missed) / changes,
        "median delay, events": float(np.median(delays)) if delays else float("nan"),
        "false alarms per million events": false_alarms / rows * 1e6,
        "us per event": seconds / rows * 1e6,
    }


def cost(columns: int = 50, batch: int = 1000) -> float:
    """Microseconds per event, once the reference is there."""
    shifts = DistributionMonitor(Distributions(reference="0s"), columns, columns)
    values, times = np.random.default_rng(1).normal(size=(batch, columns)), np.arange(batch)
    for _ in range(30):
        shifts.update(values, times)
    best = float("inf")
    for _ in range(100):
        began = time.perf_counter()
        shifts.update(values, times)
        best = min(best, time.perf_counter() - began)
    return best / batch * 1e6


def run(quick: bool) -> Report:
    """Run all contenders on the same streams."""
    rows, seeds = (60_000, 1) if quick else (100_000, 5)
    worlds = [stream for seed in range(seeds) for stream in streams(rows, seed)]
    table = [judge(name, look, worlds) for name, look in CONTESTANTS.items()]
    mine, _, by_day = table
    targets = [
        Target("false alarms per million events", mine["false alarms per million events"], 1.0),
        Target("share of changes detected", mine["share found"], 1.0, ">="),
        Target(
            "median delay / that of the daily test",
            mine["median delay, events"] / by_day["median delay, events"],
            1.0,
        ),
        Target("50 columns at batch 1000, us per event", cost(), 1.0),
    ]
    on_loss = loss_table(*((12_000, 1) if quick else (40_000, 1)))
    by_default = on_loss[0]["false alarms per million labels"]
    targets.append(Target("false alarms of monitor('loss') per million labels", by_default, 1.0))
    notes = [
        f"{len(worlds)} streams of {rows:,} rows and {COLUMNS} columns, one of them with 100; a "
        "change is of one column, by one standard deviation, twice the scale, or from 5 % to 25 %",
        "false alarms: of a column that does not change, or before it does; of anabranch those of "
        "severity drift",
        f"a day is {DAY:,} rows; the reference is the first",
        "on the loss: of the shipped linear model, which learns on, over SEA, Agrawal and Mixed of "
        "River's with and without a change of concept; SEA's hardly hurts a model that learns",
    ]
    return Report("drift", [*table, *on_loss], targets, notes)
