"""The cost of recovery: commits, resumption, and throughput and latency with it switched on.

How such a comparison can mislead, and what is done about it:

* Contenders with different state. Both get the same rows and keep the same windows, and all their
  features are compared, before and after a resumption, before anything is timed.
* A slow competitor. It writes no more to its recovery store than necessary (`bytewax_recovery`).
* A commit that is timed without its fsync, or is empty. Ours is that of the real step on a real
  state directory; every epoch changes 100,000 keys, or all if there are fewer.
* A run too short for checkpoints. Throughput is that of whole runs with several epochs.
* A noisy machine. Contenders take turns, and the best time of each counts.
"""

from __future__ import annotations

import gc
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from anabranch.dataflows.bus import open_bus
from anabranch.dataflows.recovery.state_directory import StateDirectory
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions
from benchmarks.bytewax_recovery import Clock, Contender, Ours, Theirs, make_epochs
from benchmarks.echo import measure
from benchmarks.hotpath import make_messages, make_pipeline
from benchmarks.pipeline_program import PAYMENTS, pipeline_between
from benchmarks.prepared import Discard, PreparedBus
from benchmarks.report import Report, Target

CHANGED = 100_000
LIVE = (10_000, 100_000, 1_000_000)
THEIRS_MOST = 100_000  # its resumption grows with the square of the keys
RATES = (1_000, 5_000)
_WARM_UP_S = 1.0
_STARTING = 0.1  # of a run: what comes before is not counted, nor what comes after the last message


def run(quick: bool) -> Report:
    """Commits and resumption beside Bytewax's; then throughput and latency, recovery on and off."""
    check_agreement()
    remembered, targets = _remembered(quick)
    load = _Load(0.75, 15_000, 600_000, 2) if quick else _Load(5.0, 100_000, 5_400_000, 3)
    rows, share = _throughput(load)
    targets.append(Target("throughput, recovery on / off", share, 0.9, ">="))
    latency = [
        _latency(per_second, epoch_s, seconds=1.0 if quick else 10.0)
        for per_second in (RATES[1:] if quick else RATES)
        for epoch_s in (None, 1.0)
    ]
    notes = [
        f"commit: {CHANGED:,} keys changed (all, if there are fewer); from the first snapshot of "
        "an epoch until the source is asked for the next; "
        + (
            "the best of 4, of Bytewax's a single one, of keys with one event each"
            if quick
            else "the best of 5"
        ),
        "resume: from before anything is opened to the first answer; 3 widths per key; "
        + ("a single one" if quick else "the best of 2"),
        f"throughput: hot path, batch 1000, {load.events:,} events of {load.cards:,} cards, epochs "
        f"of {load.epoch_s:g} s; on and off in turn, best of {load.rounds}; from "
        "the first tenth to the last message published: opening and closing are not counted"
        + (
            "; epochs and cards are both 15 % of the full run's: a commit's fixed cost weighs more"
            if quick
            else ""
        ),
        "latency: embedded bus, 1,000 cards; ms from when an event was due to be published until "
        "its prediction was read back; the first second is not counted",
    ]
    return Report("recovery", [*remembered, *rows, *latency], targets, notes)


def check_agreement(live: int = 500) -> None:
    """Compare the features of every row, with one resumption in between.

    Raises:
        AssertionError: they differ.
    """
    epochs = make_epochs(live, live // 2, 4)
    found = []
    with tempfile.TemporaryDirectory(prefix="anabranch-recovery-") as directory:
        for contender in (Ours(Path(directory)), Theirs(Path(directory))):
            clock = Clock(answers={})
            for part in (epochs[:4], epochs):
                contender.run(part, clock)
            assert clock.answers is not None
            found.append(clock.answers)
    ours, theirs = found
    rows = sum(len(epoch.keys) for epoch in epochs)
    if not len(ours) == len(theirs) == rows or ours.keys() != theirs.keys():
        raise AssertionError(f"{rows} rows, {len(ours)} and {len(theirs)} answers")
    worst = max(np.abs(np.subtract(ours[row], theirs[row])).max() for row in ours)
    if not worst < 1e-6:
        raise AssertionError(f"the contenders' features differ by up to {worst}")


def _remembered(quick: bool) -> tuple[list[dict[str, Any]], list[Target]]:
    """Commit and resumption by number of live keys."""
    best: dict[tuple[str, int], tuple[float, float]] = {}
    with tempfile.TemporaryDirectory(prefix="anabranch-recovery-") as directory:
        for live in LIVE:
            contenders: dict[str, type[Ours] | type[Theirs]] = {"ours": Ours}
            if live <= THEIRS_MOST:
                contenders["theirs"] = Theirs
            for name, contender in contenders.items():
                place = Path(directory) / f"{name}-{live}"
                place.mkdir()
                rounds, singles = (0 if name == "theirs" else 4, 1) if quick else (5, 2)
                best[name, live] = _commit_and_resume(contender(place), live, rounds, singles)
    labels = {"ours": "anabranch", "theirs": "Bytewax's own, an entry per key"}
    rows = [
        {
            "recovery": labels[name],
            "live keys": live,
            "changed": min(live, CHANGED),
            "commit ms": commit * 1e3,
            "resume ms": resume * 1e3,
        }
        for (name, live), (commit, resume) in best.items()
    ]
    least, most = THEIRS_MOST, LIVE[-1]
    theirs, scaled = best["theirs", least][0], best["theirs", least][1] * most / least
    targets = [
        Target(
            f"commit of 100k of {live:,} keys, Bytewax's of 100k / ours", theirs / commit, 5, ">="
        )
        for live, commit in ((least, best["ours", least][0]), (most, best["ours", most][0]))
    ]
    resume = {live: best["ours", live][1] for live in LIVE}
    return rows, [
        *targets,
        Target("resume of 1M keys, Bytewax's of 100k × 10 / ours", scaled / resume[most], 20, ">="),
        Target("resume, 100k to 1M keys, grows", resume[most] / resume[least], 12),
    ]


def _commit_and_resume(
    contender: Contender, live: int, rounds: int, singles: int
) -> tuple[float, float]:
    """Seconds of the best commit, and of the best of ``singles`` resumptions.

    Commits are of ``rounds`` epochs that change random keys; without any, of the first keys.
    """
    epochs = make_epochs(live, min(live, CHANGED), rounds, singles)
    clock = Clock()
    contender.run(epochs[: len(epochs) - singles], clock)
    resumptions = []
    for left in range(singles - 1, -1, -1):
        after = Clock()
        began = time.perf_counter()
        contender.run(epochs[: len(epochs) - left], after)
        resumptions.append(after.first_answer_at - began)
    return min(clock.commits[-max(rounds, 1) :]), min(resumptions)


@dataclass(frozen=True, slots=True)
class _Load:
    """The input of a run of the hot path."""

    epoch_s: float
    cards: int
    events: int
    rounds: int


def _throughput(load: _Load) -> tuple[list[dict[str, Any]], float]:
    """Events per second with recovery off and on, and the ratio of the two."""
    messages = make_messages(load.events, load.cards, merchants=300)
    _hot_path_s(messages[:20_000], load.epoch_s, False)  # all is compiled
    best = {"off": float("inf"), "on": float("inf")}
    for number in range(load.rounds):
        for mode in ("off", "on") if number % 2 == 0 else ("on", "off"):
            best[mode] = min(best[mode], _hot_path_s(messages, load.epoch_s, mode == "on"))
    rows = [
        {
            "hot path": f"recovery {mode}",
            "steady s": seconds,
            "epochs": seconds / load.epoch_s,
            "events/s": load.events * (1 - _STARTING) / seconds,
        }
        for mode, seconds in best.items()
    ]
    return rows, best["off"] / best["on"]


def _hot_path_s(messages: list[bytes], epoch_s: float, recovery: bool) -> float:
    """Seconds from the first tenth of the messages on, to the last one published."""
    pipeline = make_pipeline()
    sink = Discard(mark=int(len(messages) * _STARTING))
    bus = PreparedBus(pipeline, messages, sink)
    with ExitStack() as stack:
        state = None
        if recovery:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="anabranch-hot-"))
            path = Path(directory) / "state"
            state = stack.enter_context(StateDirectory.open(path, pipeline, bus))
        gc.collect()
        gc.freeze()  # the messages are nobody's garbage
        run_worker(
            pipeline, bus, SourceOptions(until_end=True), checkpoint_interval_s=epoch_s, state=state
        )
        gc.unfreeze()
    return sink.last_at - sink.marked_at


def _latency(per_second: int, epoch_s: float | None, seconds: float) -> dict[str, Any]:
    """Latency on the embedded bus, with an epoch every ``epoch_s`` seconds or without recovery."""
    with tempfile.TemporaryDirectory(prefix="anabranch-latency-") as directory:
        bus = open_bus(f"sqlite:{Path(directory) / 'bus'}")
        state = None if epoch_s is None else Path(directory) / "state"
        between = partial(pipeline_between, state=state, checkpoint_interval_s=epoch_s or 5.0)
        topics = make_pipeline().topics
        latency = measure(
            bus, topics.events, topics.predictions, between, per_second, seconds, PAYMENTS
        )
        bus.close()
    return {
        "recovery": "off" if epoch_s is None else f"on, epochs of {epoch_s:g} s",
        "events/s": per_second,
        "p50 ms": latency.p50_ms,
        "p99 ms": latency.p99_ms,
        "worst ms": latency.worst_ms,
    }
