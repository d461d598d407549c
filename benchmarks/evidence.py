"""Evidence for rollouts: its error rates under peeking, the labels it needs, and its cost.

How such a comparison misleads, and how that is avoided:

* A test that errs less often than allowed, and is slow for that, or the other way round. Both are
  measured on the same tests with the same settings: the defaults of the classes, and no clipping,
  which is the default of a pipeline for losses with a bound.
* Models that are easy to tell apart. The two here are calibrated and share nearly all of their
  noise; equal ones still differ at every event.
* A weak baseline. The fixed-horizon test knows effect and variance in advance, and is evaluated
  once. The z-test with peeking waits for 100 labels.
* Luck. Seeds are fixed, and the share of wrong promotions is printed with its number of runs; of
  2,000 runs its standard error at 5 % is 0.5 %.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.models.evidence.auc import AucEvidence
from anabranch.models.evidence.paired import Evidence, Finding, PairedEvidence
from anabranch.models.evidence.two_sample import TwoSampleEvidence
from benchmarks import heavy_tails
from benchmarks.calibrated_models import (
    CHAMPION,
    expected_loss,
    losses_of_arms,
    losses_of_both,
    losses_of_one,
    sharper,
)
from benchmarks.report import Report, Target
from benchmarks.standard_tests import fixed_horizon, peeked_paired, peeked_two_samples

ALPHA, POWER = 0.05, 0.8
CRITICAL = 1.6448536269514722  # of a one-sided z-test at ALPHA
LABELS = 20_000
IMPROVEMENTS = (0.02, 0.05, 0.10, 0.20)
RAMP = (0.01, 0.05, 0.25, 0.50)

F64 = NDArray[np.float64]
Arms = NDArray[np.int8]

UNCUT = "paired, clip=0.25, bound=1"
"""Its sizes are tested on plain differences: four times its clip is the bound."""
PAIRED: dict[str, Callable[..., PairedEvidence]] = {
    "paired": PairedEvidence,
    UNCUT: partial(PairedEvidence, clip=0.25, bound=1.0),
    "paired, clip=1 (no clipping)": partial(PairedEvidence, clip=1.0, bound=1.0),
    "paired, asymptotic": partial(PairedEvidence, method="asymptotic"),
}
TWO_SAMPLES: dict[str, Callable[[], TwoSampleEvidence]] = {
    "two samples": TwoSampleEvidence,
    "two samples, asymptotic": partial(TwoSampleEvidence, method="asymptotic"),
}
SHARES = {"50/50": (0.5,), "canary 1, 5, 25, 50 %": RAMP}
PROMISED = ("paired", UNCUT, "two samples")
"""The tests whose error rate is guaranteed at every sample size."""


HEAVY = "heavy tails, equal means"


def arms(random: np.random.Generator, count: int, shares: tuple[float, ...]) -> Arms:
    """Arms `(count,)` of events; the traffic shares alternate in periods of equal length."""
    share = np.repeat(shares, -(-count // len(shares)))[:count]
    return (random.random(count) < share).astype(np.int8)


def wrong_of_paired(runs: int, labels: int = LABELS) -> Iterator[dict[str, Any]]:
    """Share of runs with equal models that promote, or roll back, at any time."""
    wrong = {name: np.zeros(2) for name in PAIRED}
    peeked = np.zeros(2)
    random = np.random.default_rng(1)
    for _ in range(runs):
        champion, challenger = losses_of_both(random, labels, CHAMPION)
        for name, make in PAIRED.items():
            evidence = make()
            evidence.update(champion, challenger)
            wrong[name] += _findings(evidence)
        differences = champion - challenger
        peeked += [peeked_paired(d, CRITICAL) for d in (differences, -differences)]
    for name, counts in {**wrong, "paired z-test, peeked at": peeked}.items():
        yield _wrong_row(name, "all labels", runs, counts)


def wrong_of_heavy_tails(runs: int, labels: int = LABELS) -> Iterator[dict[str, Any]]:
    """As `wrong_of_paired`, with losses whose clipped differences favour the challenger."""
    random, factor = np.random.default_rng(7), heavy_tails.equalizing_factor()
    tried = {name: PAIRED[name] for name in ("paired", "paired, asymptotic")}
    wrong = {name: np.zeros(2) for name in tried}
    for _ in range(runs):
        losses = heavy_tails.losses_of_both(random, labels, factor)
        for name, make in tried.items():
            evidence = make()
            evidence.update(*losses)
            wrong[name] += _findings(evidence)
    for name, counts in wrong.items():
        yield _wrong_row(name, HEAVY, runs, counts)


def wrong_of_two_samples(runs: int, labels: int = LABELS) -> Iterator[dict[str, Any]]:
    """As `wrong_of_paired`, with labels for one model each."""
    for shown, shares in SHARES.items():
        wrong = {name: np.zeros(2) for name in TWO_SAMPLES}
        peeked = np.zeros(2)
        random = np.random.default_rng(2)
        for _ in range(runs):
            arm = arms(random, labels, shares)
            losses = losses_of_one(random, labels, CHAMPION)
            for name, make in TWO_SAMPLES.items():
                evidence = make()
                evidence.update(arm, losses)
                wrong[name] += _findings(evidence)
            other = (1 - arm).astype(np.int8)
            peeked += [peeked_two_samples(a, losses, CRITICAL) for a in (arm, other)]
        for name, counts in {**wrong, "two-sample z-test, peeked at": peeked}.items():
            yield _wrong_row(name, shown, runs, counts)


def futile(improvement: float, runs: int) -> Iterator[dict[str, Any]]:
    """How often a challenger with exactly the required effect is declared futile.

    And the labels within which POWER of the runs have called equal models that.
    """
    equal, as_asked = sharper(0.0), sharper(improvement)
    random = np.random.default_rng(6)
    wrong = dict.fromkeys(PAIRED, 0)
    needed: dict[str, list[float]] = {name: [] for name in PAIRED}
    for _ in range(runs):
        for model in (as_asked, equal):
            losses = losses_of_both(random, LABELS, model)
            for name, make in PAIRED.items():
                evidence = make(min_effect=_effect(improvement))
                evidence.update(*losses)
                found = evidence.crossed_at(Finding.FUTILE)
                if model == as_asked:
                    wrong[name] += found is not None
                else:
                    needed[name].append(found or np.inf)
    for name in PAIRED:
        yield {
            f"min_effect: {improvement:.0%}": name,
            "runs": runs,
            "wrongly futile": wrong[name] / runs,
            "labels until equal models are": _quantile(needed[name]),
        }


def labels_of_paired(improvement: float, runs: int) -> dict[str, float]:
    """Labels until POWER of the runs have promoted, by test; and those of the fixed horizon."""
    challenger, random = sharper(improvement), np.random.default_rng(3)
    champion_losses, challenger_losses = losses_of_both(random, 1_000_000, challenger)
    variance = float((champion_losses - challenger_losses).var())
    fixed = fixed_horizon(variance, _effect(improvement), ALPHA, POWER)
    needed: dict[str, list[float]] = {name: [] for name in PAIRED}
    for _ in range(runs):
        losses = losses_of_both(random, int(10 * fixed), challenger)
        for name, make in PAIRED.items():
            evidence = make()
            evidence.update(*losses)
            needed[name].append(evidence.crossed_at(Finding.BETTER) or np.inf)
    return {"fixed": fixed} | {name: _quantile(found) for name, found in needed.items()}


def labels_of_two_samples(improvement: float, runs: int) -> dict[str, float]:
    """As `labels_of_paired`, with half of the labels for each arm."""
    challenger, random = sharper(improvement), np.random.default_rng(4)
    variance = sum(
        float(losses_of_one(random, 1_000_000, model).var()) for model in (CHAMPION, challenger)
    )
    fixed = fixed_horizon(2.0 * variance, _effect(improvement), ALPHA, POWER)
    needed: list[float] = []
    for _ in range(runs):
        evidence = TwoSampleEvidence()
        while evidence.crossed_at(Finding.BETTER) is None and evidence.samples < 10 * fixed:
            arm = arms(random, 10_000, (0.5,))
            evidence.update(arm, losses_of_arms(random, arm, challenger))
        needed.append(evidence.crossed_at(Finding.BETTER) or np.inf)
    return {"fixed": fixed, "two samples": _quantile(needed)}


def costs(rounds: int) -> Iterator[dict[str, Any]]:
    """µs per label, in calls of 1000 labels and of one."""
    random = np.random.default_rng(5)
    labels = 50_000
    both = losses_of_both(random, labels, CHAMPION)
    arm = arms(random, labels, (0.5,))
    y = (random.random(labels) < 0.05).astype(float)
    scores = (y + 2.0 * random.random(labels), y + 2.0 * random.random(labels))
    tried: dict[str, tuple[Callable[..., Any], tuple[NDArray[Any], ...]]] = {
        "paired": (PairedEvidence, both),
        "paired, asymptotic": (partial(PairedEvidence, method="asymptotic"), both),
        "two samples": (TwoSampleEvidence, (arm, both[0])),
        "AUC on windows of 500": (AucEvidence, (y, *scores)),
    }
    for name, (make, columns) in tried.items():
        evidence = make(min_effect=0.001)
        evidence.update(*columns)
        row: dict[str, Any] = {"cost, with min_effect": name}
        for size, count in ((1000, 4000), (1, 200)):
            took = min(_feed(evidence, columns, count, size) for _ in range(rounds))
            row[f"µs per label, {size} at once"] = took / count * 1e6
        interval = partial(getattr, evidence, "interval")
        row["µs per interval"] = min(_timed(interval) for _ in range(rounds)) * 1e6
        yield row


def run(quick: bool) -> Report:
    """Equal models, better models, and the time it takes."""
    wrong_runs, power_runs, some = (200, 100, 20) if quick else (2000, 1000, 200)
    rows: list[dict[str, Any]] = []
    targets: list[Target] = []
    for row in (*_errors(wrong_runs), *futile(0.10, power_runs // 2)):
        rows.append(row)
        targets += _error_target(row)
    for improvement in IMPROVEMENTS:
        needed = labels_of_paired(improvement, power_runs)
        fixed = needed.pop("fixed")
        rows += [_power_row(improvement, name, labels, fixed) for name, labels in needed.items()]
        name = f"paired, {improvement:.0%} better: labels / fixed horizon"
        targets.append(Target(name, needed["paired"] / fixed, 2.5))
    for improvement in IMPROVEMENTS[2:] if quick else IMPROVEMENTS:
        needed = labels_of_two_samples(improvement, some)
        fixed, labels = needed["fixed"], needed["two samples"]
        rows.append(_power_row(improvement, "two samples, 50/50", labels, fixed))
    for row in costs(30 if quick else 100):
        rows.append(row)
        name = f"{row['cost, with min_effect']}: µs per label"
        targets.append(Target(name, row["µs per label, 1000 at once"], 0.5))
    return Report("evidence", rows, targets, NOTES)


def _errors(runs: int) -> Iterator[dict[str, Any]]:
    """Wrong findings about equal models."""
    yield from wrong_of_paired(runs)
    yield from wrong_of_two_samples(runs)
    yield from wrong_of_heavy_tails(runs // 4)


def _error_target(row: dict[str, Any]) -> list[Target]:
    """The target of a row of errors, if a guarantee covers it."""
    if row.get("equal models") in PROMISED and row["shares"] != HEAVY:
        name = f"{row['equal models']}, {row['shares']}: wrong promotions"
        return [Target(name, row["wrong promotions"], ALPHA)]
    if row.get("min_effect: 10%") == UNCUT:
        return [Target(f"{UNCUT}: wrongly futile", row["wrongly futile"], ALPHA)]
    return []


NOTES = [
    f"Brier losses of calibrated models, 5 % positives; alpha {ALPHA}, one-sided, evaluated after "
    f"every label; equal models: {LABELS:,} labels a run",
    "labels: within which 80 % of the runs have promoted; fixed horizon: of a z-test with 80 % "
    "power that knows effect and variance, and is evaluated once",
    "asymptotic: valid in the limit of many labels; there is no guarantee for its errors here",
    "heavy tails: clipped differences favour the challenger, so that only the guarantee in the "
    "limit holds promotions back",
    "wrongly futile: of challengers exactly as good as min_effect requires; where no bound is "
    "declared, the guarantee is about differences clipped at 32 times their root mean square",
]


def _findings(evidence: Evidence) -> list[bool]:
    return [finding in evidence.findings for finding in (Finding.BETTER, Finding.WORSE)]


def _effect(improvement: float) -> float:
    return expected_loss(CHAMPION) * improvement


def _quantile(labels: list[float]) -> float:
    return float(np.quantile(labels, POWER, method="higher"))


def _wrong_row(test: str, shares: str, runs: int, counts: F64) -> dict[str, Any]:
    promoted, rolled_back = (counts / runs).tolist()
    return {
        "equal models": test,
        "shares": shares,
        "runs": runs,
        "wrong promotions": promoted,
        "wrong rollbacks": rolled_back,
    }


def _power_row(improvement: float, test: str, found: float, fixed: float) -> dict[str, Any]:
    return {
        "better by": f"{improvement:.0%}",
        "test": test,
        "labels": found,
        "fixed horizon": fixed,
        "ratio": found / fixed,
    }


def _feed(evidence: Any, columns: tuple[NDArray[Any], ...], count: int, size: int) -> float:
    cuts = [[c[start : start + size] for c in columns] for start in range(0, count, size)]
    return _timed(lambda: [evidence.update(*cut) for cut in cuts])


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
