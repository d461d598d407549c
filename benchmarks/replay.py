"""History to training rows: 24 exact window features of 1.5 million events, Parquet to Parquet.

How such a comparison can mislead, and what is done about it:

* Contenders that do different work. All read the same file and write the same 24 columns, in the
  order of the events, with polars; the columns are compared before anything is timed. The target is
  for `replay --features-only`; beyond what the others do it validates every event, rejects late
  events and duplicates, writes labels, and syncs its file to disk. The whole `replay`, which also
  predicts and learns every event as in production, and the windows alone are reported beside it.
* A slow competitor. pandas and polars are used as their manuals say, one `rolling` per entity and
  width; for pandas the rows are put back into order once per entity, not once per feature.
* Ties. pandas lets an event see earlier rows of the same time, as we do; polars all of them. So no
  key has two events at one time.
* A noisy machine. Contenders take turns, and the best time of each counts.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
from numpy.typing import NDArray
from river import linear_model

from anabranch import Event, Pipeline, inline, window
from anabranch.dataflows.replay.replay import ReplaySettings, replay
from anabranch.dataflows.steps.warmup import warm
from anabranch.state.windows.entity_state import EntityState
from anabranch.state.windows.specs import WindowSpec
from benchmarks.report import Report, Target

STATS = ("count", "mean", "std", "max")
WIDTHS = {"1h": 3_600_000, "1d": 86_400_000, "30d": 30 * 86_400_000}
ENTITIES = ("card", "merchant")
DAYS = 90
START_MS = 1_736_121_600_000
COLUMNS = [f"{e}_amount_{w}_{s}" for e in ENTITIES for w in WIDTHS for s in STATS]


class Payment(Event):
    """The event of the benchmark; its label is inline."""

    id: str
    ts: int
    card: str
    merchant: str
    amount: float
    fraud: bool


def make_pipeline() -> Pipeline:
    """24 features: 2 entities × 3 widths × 4 statistics."""
    return Pipeline(
        name="replay",
        event=Payment,
        label=inline("fraud"),
        features=[window(e, "amount", over=tuple(WIDTHS), stats=STATS) for e in ENTITIES],
        model=linear_model.LogisticRegression(),
        metrics=("LogLoss",),
    )


def make_history(path: Path, events: int) -> None:
    """Write payments of 90 days; a card has 30 of them, a merchant 300."""
    random = np.random.default_rng(11)
    # Times are unique, so that the order of simultaneous events does not matter.
    span = DAYS * 86_400_000
    times = START_MS + np.arange(events) * (span // events)
    cards, merchants = max(events // 30, 1), max(events // 300, 1)
    frame = pl.DataFrame(
        {
            "id": [f"p{number}" for number in range(events)],
            "ts": times + random.integers(0, span // events, events),
            "card": [f"card-{number}" for number in random.integers(0, cards, events)],
            "merchant": [f"shop-{number}" for number in random.integers(0, merchants, events)],
            "amount": random.lognormal(3, 1, events).round(2),
            "fraud": random.random(events) < 0.05,
        }
    )
    frame.write_parquet(path)


def by_anabranch(source: Path, to: Path, features_only: bool = False) -> None:
    """The whole command, except its progress bar."""
    settings = ReplaySettings(events=str(source), rows=to, features_only=features_only)
    replay(make_pipeline(), settings)


def by_pandas(source: Path, to: Path) -> None:
    """`groupby().rolling()` for each entity and width."""
    frame = pl.read_parquet(source)
    made = pd.DataFrame(
        {"amount": frame["amount"].to_numpy()},
        index=pd.to_datetime(frame["ts"].to_numpy(), unit="ms"),
    )
    columns = {}
    for entity in ENTITIES:
        made[entity] = frame[entity].to_list()
        grouped = made.groupby(entity)["amount"]
        order = np.argsort(grouped.ngroup().to_numpy(), kind="stable")  # as its results stand
        for name, width in WIDTHS.items():
            rolling = grouped.rolling(pd.Timedelta(milliseconds=width))
            for stat in STATS:
                values = np.empty(len(frame))
                values[order] = getattr(rolling, stat)().to_numpy()
                columns[f"{entity}_amount_{name}_{stat}"] = values
    frame.select("id").with_columns(**columns).write_parquet(to, compression="lz4")


def by_polars(source: Path, to: Path) -> None:
    """`rolling` for each entity and width; its results are in the order of the groups."""
    frame = pl.read_parquet(source).with_columns(pl.from_epoch("ts", time_unit="ms").alias("at"))
    frame = frame.with_row_index("row")
    amount = pl.col("amount")
    columns: dict[str, NDArray[np.float64]] = {}
    for entity in ENTITIES:
        for name, width in WIDTHS.items():
            found = frame.rolling("at", period=f"{width}ms", group_by=entity).agg(
                pl.col("row").last(),
                amount.count().cast(pl.Float64).alias("count"),
                amount.mean().alias("mean"),
                amount.std().alias("std"),
                amount.max().alias("max"),
            )
            order = found["row"].to_numpy()
            for stat in STATS:
                values = np.empty(len(frame))
                values[order] = found[stat].to_numpy()
                columns[f"{entity}_amount_{name}_{stat}"] = values
    frame.select("id").with_columns(**columns).write_parquet(to, compression="lz4")


Contender = Callable[[Path, Path], None]
OURS = "anabranch replay --features-only"
CONTESTANTS: dict[str, Contender] = {
    OURS: partial(by_anabranch, features_only=True),
    "anabranch replay, predicting and learning": by_anabranch,
    "pandas groupby().rolling()": by_pandas,
    "polars rolling": by_polars,
}


def windows_alone_s(source: Path) -> float:
    """Seconds for the windows alone, from columns, in batches of the size of a replay's."""
    frame = pl.read_parquet(source)
    times, amounts = frame["ts"].to_numpy(), frame["amount"].to_numpy()
    spec = WindowSpec("amount", tuple(WIDTHS.values()), STATS)
    states = {entity: EntityState([spec], lateness_ms=600_000) for entity in ENTITIES}
    keys = {entity: frame[entity].to_list() for entity in ENTITIES}
    began = time.perf_counter()
    for start in range(0, len(frame), 4096):
        cut = slice(start, start + 4096)
        for entity, state in states.items():
            state.update(keys[entity][cut], times[cut], {"amount": amounts[cut]})
    return time.perf_counter() - began


def check_agreement(events: int) -> None:
    """Raise AssertionError unless all contenders give the same features."""
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        source = directory / "history.parquet"
        make_history(source, events)
        found = []
        for number, work in enumerate(CONTESTANTS.values()):
            to = directory / f"{number}.parquet"
            work(source, to)
            # The standard deviation of one value is null there, and 0 here.
            found.append(pl.read_parquet(to).select("id", *COLUMNS).fill_nan(0.0).fill_null(0.0))
    for other in found[1:]:
        if not found[0]["id"].equals(other["id"]):
            raise AssertionError("the contenders' rows differ")
        ours, theirs = (each.drop("id").to_numpy() for each in (found[0], other))
        if not np.allclose(ours, theirs, rtol=1e-6, atol=1e-6):
            worst = np.abs(ours - theirs).max()
            raise AssertionError(f"the contenders' features differ by up to {worst}")


def run(quick: bool) -> Report:
    """Compare, then time each in turn."""
    warm(make_pipeline())
    check_agreement(20_000)
    events, rounds = (300_000, 2) if quick else (1_500_000, 3)
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as made:
        source, to = Path(made, "history.parquet"), Path(made, "rows.parquet")
        make_history(source, events)
        for _ in range(rounds):
            for name, work in CONTESTANTS.items():
                _keep_best(best, name, _timed(lambda work=work: work(source, to)))  # type: ignore[misc]
            _keep_best(best, "anabranch, windows alone", windows_alone_s(source))
    ours = best[OURS]
    rows: list[dict[str, Any]] = [
        {
            "24 window features": name,
            "seconds": seconds,
            "µs per event": seconds / events * 1e6,
            "times ours": seconds / ours,
        }
        for name, seconds in best.items()
    ]
    ratio = best["pandas groupby().rolling()"] / ours
    notes = [
        f"{events:,} events of {DAYS} days, {events // 30:,} cards, {events // 300:,} merchants; "
        f"windows of {', '.join(WIDTHS)}; best of {rounds} rounds, taken in turns",
        "from Parquet to Parquet; replay also checks every event and writes labels and coordinates",
        "windows alone: no file, no checks, in one thread",
    ]
    return Report("replay", rows, [Target(f"pandas / {OURS}", ratio, 10, ">=")], notes)


def _keep_best(best: dict[str, float], name: str, seconds: float) -> None:
    best[name] = min(best.get(name, seconds), seconds)


def _timed(work: Callable[[], object]) -> float:
    gc.collect()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
