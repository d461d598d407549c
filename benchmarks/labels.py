"""Joining labels to pending predictions, 10,000 to a million of them.

How such a comparison can mislead, and what is done about it:

* Contenders that do different work. Both keep the features as served, expire predictions after the
  timeout, and distinguish repeated, contradicting and late labels; their results on a stream with
  all of these are compared before anything is timed.
* Labels in the order of their events, whose rows are adjacent in memory. Here a label belongs to
  any of the pending predictions, as when labels take from minutes to days.
* A store that is still filling. Every timed label is followed by a new event, after as many labels
  as are remembered to detect repeats.
* Ids whose hashes are cached. Every id is a new string, as if just decoded.
* A noisy machine. The best of many short rounds counts.
"""

from __future__ import annotations

import gc
import math
import time
import tracemalloc
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from anabranch.models.learners.learner import Task
from anabranch.models.prequential.batch import EventBatch, LabelBatch
from anabranch.models.prequential.joined_steps import LabelJoin
from anabranch.models.prequential.label_windows import LabelWindows
from anabranch.models.prequential.outcome import CONTRADICTS, DUPLICATE, LATE, UNKNOWN_ID
from anabranch.state.labels.label_limits import MAX_RESOLVED, LabelLimits
from anabranch.state.windows.specs import WindowSpec
from benchmarks.report import Report, Target

F64 = NDArray[np.float64]
WIDTH = 24
WAIT_MS = 7 * 86_400_000
EVERY_MS = 10
WAITING = (10_000, 100_000, 1_000_000)
BATCHES = (10, 100, 1000)
_ROUND = 4_000  # labels
_NONE, _NO_ROWS = np.empty(0, np.int64), np.empty((0, WIDTH))
_NO_LABELS = LabelBatch([], [], _NONE)

Found = list[tuple[str, Any]]
"""Results of labels and timeouts: what happened, and to which event (by its first feature)."""


class Contender(Protocol):
    """Keeps predictions until their label arrives."""

    def column(self, values: list[Any]) -> Any:
        """Times or values in the form that this contender takes."""

    def events(self, ids: list[str], times: Any, features: F64) -> Any:
        """Add pending predictions; returns what timed out."""

    def labels(self, ids: list[str], times: Any, values: Any) -> Any:
        """Join labels; returns their outcomes."""

    def found(self, of: Any) -> Found:
        """The results of both methods, in a comparable form."""

    def __len__(self) -> int:
        """The number of pending predictions."""


class Ours:
    """The join that pipelines use."""

    def __init__(self, timeout_ms: int = WAIT_MS) -> None:
        rules = LabelLimits(timeout_ms=timeout_ms)
        self.join = LabelJoin(WIDTH, Task.BINARY, rules, default=False)

    def column(self, values: list[Any]) -> Any:
        return np.array(values)

    def events(self, ids: list[str], times: Any, features: F64) -> Any:
        return self.join.join(EventBatch(features, times, ids), _NO_LABELS, np.arange(len(ids)))

    def labels(self, ids: list[str], times: Any, values: Any) -> Any:
        labels = LabelBatch(ids, values, times)
        return self.join.join(EventBatch(_NO_ROWS, _NONE), labels, np.arange(len(ids)))

    def __len__(self) -> int:
        return len(self.join.pending)

    def found(self, of: Any) -> Found:
        rows = of.row[of.scored_steps]
        served = self.join.pending.features[rows, 0].tolist()
        learned = zip(of.target[of.scored_steps].tolist(), served, strict=True)
        found: Found = [(f"learns {target:g}", event) for target, event in learned]
        return found + [(why, label) for label, why in of.rejected_labels]


class OursWithWindows(Ours):
    """The join, with windows over the labels of each merchant."""

    def __init__(self, timeout_ms: int = WAIT_MS) -> None:
        super().__init__(timeout_ms)
        spec = WindowSpec("target", (WAIT_MS // 7, WAIT_MS), ("count", "mean"))
        self._windows = LabelWindows({"merchant": [(spec, slice(0, 4))]}, 600_000)
        self._merchants = [f"merchant-{number * number % 1009}" for number in range(10_000)]

    def events(self, ids: list[str], times: Any, features: F64) -> Any:
        joined = super().events(ids, times, features)
        self._windows.fill(joined, self.join.pending, [self._merchants[: len(ids)]], features)
        return joined

    def labels(self, ids: list[str], times: Any, values: Any) -> Any:
        joined = super().labels(ids, times, values)
        self._windows.fill(joined, self.join.pending, [], _NO_ROWS)
        return joined


class Baseline:
    """The hand-written baseline: dicts of pending and of labelled predictions, a queue of timeouts.

    Events arrive in order of their times, so the queue needs no heap.
    """

    def __init__(self, timeout_ms: int = WAIT_MS) -> None:
        self._wait_ms = timeout_ms
        self._waiting: dict[str, tuple[int, F64]] = {}
        self._due: deque[tuple[int, str]] = deque()
        self._settled: dict[str, tuple[bool, float]] = {}  # whether by a label, and which
        self._order: deque[tuple[int, str]] = deque()
        self._now = -1

    def column(self, values: list[Any]) -> Any:
        return values

    def events(self, ids: list[str], times: Any, features: F64) -> Any:
        found: list[Any] = []
        for id, time_ms, row in zip(ids, times, features, strict=True):
            self._expire(time_ms, found)
            self._waiting[id] = (time_ms, row.copy())
            self._due.append((time_ms, id))
        return found

    def labels(self, ids: list[str], times: Any, values: Any) -> Any:
        found: list[Any] = []
        for place, (id, time_ms, value) in enumerate(zip(ids, times, values, strict=True)):
            self._expire(time_ms, found)
            kept = self._waiting.pop(id, None)
            if kept is not None:
                self._settle(id, True, value)
                found.append((value, kept))
            elif id in self._settled:
                by_label, known = self._settled[id]
                repeated = DUPLICATE if known == value else CONTRADICTS
                found.append((repeated if by_label else LATE, place))
            else:
                found.append((UNKNOWN_ID, place))
        return found

    def __len__(self) -> int:
        return len(self._waiting)

    def found(self, of: Any) -> Found:
        learned: Found = []
        refused: Found = []
        for what, more in of:
            if isinstance(what, str):
                refused.append((what, more))
            else:
                learned.append((f"learns {what:g}", float(more[1][0])))
        return learned + refused

    def _expire(self, now: int, found: list[Any]) -> None:
        self._now = max(self._now, now)
        while self._due and self._due[0][0] + self._wait_ms < self._now:
            _, id = self._due.popleft()
            kept = self._waiting.pop(id, None)
            if kept is not None:
                self._settle(id, False, 0.0)
                found.append((0.0, kept))
        while self._order and self._order[0][0] + self._wait_ms < self._now:
            del self._settled[self._order.popleft()[1]]

    def _settle(self, id: str, by_label: bool, value: float) -> None:
        if len(self._order) == MAX_RESOLVED:
            del self._settled[self._order.popleft()[1]]
        self._settled[id] = by_label, value
        self._order.append((self._now, id))


CONTESTANTS: dict[str, Callable[..., Contender]] = {
    "anabranch": Ours,
    "hand-written dicts": Baseline,
}


def check_agreement(events: int = 4_000) -> None:
    """Compare the results of both on a stream with all kinds of labels.

    Raises:
        AssertionError: they differ, or some kind of label did not occur.
    """
    results = []
    for make in CONTESTANTS.values():
        random = np.random.default_rng(5)
        contender = make(timeout_ms=1_000)
        found: Found = []
        for start in range(0, events, 50):
            ids, times = _events(start, 50)
            features = np.zeros((50, WIDTH))
            features[:, 0] = np.arange(start, start + 50)
            column = contender.column
            found += contender.found(contender.events(ids, column(times), features))
            labelled = random.integers(max(0, start - 200), start + 60, 45).tolist()
            values = (random.random(45) < 0.3).astype(float).tolist()
            labels = [f"payment-{number}" for number in labelled]
            found += contender.found(
                contender.labels(labels, column([times[-1]] * 45), column(values))
            )
        results.append(found)
    if results[0] != results[1]:
        raise AssertionError("the contenders treat labels differently")
    kinds = {what for what, _ in results[0]}
    if kinds != {"learns 0", "learns 1", DUPLICATE, CONTRADICTS, LATE, UNKNOWN_ID}:
        raise AssertionError(f"the stream has only these kinds of labels: {sorted(kinds)}")


def run(quick: bool) -> Report:
    """Time per label by number of pending predictions and batch size; bytes per prediction."""
    check_agreement()
    labels = 60_000 if quick else 200_000
    best: dict[tuple[str, int, int], float] = {}
    ends: list[dict[str, Any]] = []
    memory: list[dict[str, Any]] = []
    beyond = "bytes beyond the feature row"
    for waiting in WAITING:
        for name, make in CONTESTANTS.items():
            bench = _Bench(make(), waiting)
            for batch in BATCHES:
                best[name, waiting, batch] = bench.labels_us(labels, batch)
            if isinstance(bench.contender, Ours):
                pending = bench.contender.join.pending
                size = pending.overhead_bytes / len(pending)
                memory.append({"memory": name, "waiting": waiting, beyond: size})
            if waiting == WAITING[-1]:
                cost = bench.ends_us(labels // 2)
                ends.append({"ends of waits": name, "waiting": waiting, "µs per end": cost})
            del bench
            gc.collect()
    rows: list[dict[str, Any]] = [
        {"labels": name, "waiting": waiting, "batch": batch, "µs per label": cost}
        for (name, waiting, batch), cost in best.items()
    ]
    rows += _windows_rows(labels)
    memory.append(
        {"memory": "hand-written dicts", "waiting": 20_000, beyond: _baseline_bytes(20_000)}
    )
    worst = max(row[beyond] for row in memory[:-1])
    targets = [
        Target(
            "µs per label, 1M waiting, batch 1000", best["anabranch", WAITING[-1], BATCHES[-1]], 1.0
        ),
        Target(f"{beyond}, worst", worst, 50),
    ]
    return Report("labels", [*rows, *ends, *memory], targets, _notes(labels))


def _windows_rows(labels: int) -> list[dict[str, Any]]:
    """The additional cost of windows over labels."""
    made = {"without": _Bench(Ours(), WAITING[1]), "with": _Bench(OursWithWindows(), WAITING[1])}
    return [
        {
            "label windows": f"{name}, batch {batch}",
            "µs per label": bench.labels_us(labels, batch),
            "µs per event": bench.events_us(labels, batch),
        }
        for batch in (100, 1000)
        for name, bench in made.items()
    ]


def _notes(labels: int) -> list[str]:
    return [
        f"best of {labels // _ROUND} rounds of {_ROUND:,} labels, each for any of those that wait; "
        f"{MAX_RESOLVED:,} ids are remembered after their label; {WIDTH} features",
        "a label includes the hash of its id and the check of its value; it does not include what "
        "the model learns",
        "label windows: of 1,009 merchants over 1 and 7 days, count and mean; 100,000 wait",
        "a timeout is of a prediction without a label: its default label is learned",
    ]


class _Bench:
    """One contender with a constant number of pending predictions."""

    def __init__(self, contender: Contender, waiting: int) -> None:
        self.contender = contender
        self._random = np.random.default_rng(1)
        self._waiting = np.empty(0, np.int64)
        self._next = 0
        self._features = np.ones((1000, WIDTH))
        self._add(waiting)
        # So many labels that each new one expires an old one.
        while self._next < waiting + MAX_RESOLVED:
            self._label(10_000, 1000)

    def labels_us(self, labels: int, batch: int) -> float:
        """Microseconds per label, of the best round."""
        return min(self._label(_ROUND, batch) for _ in range(labels // _ROUND))

    def events_us(self, events: int, batch: int) -> float:
        """Microseconds per added event, of the best round."""
        best = math.inf
        for _ in range(events // _ROUND):
            ids, times = _events(self._next, _ROUND)
            best = min(best, self._timed(lambda ids=ids, at=times: self._events(ids, at, batch)))  # type: ignore[misc]
            self._waiting = np.append(self._waiting, np.arange(self._next, self._next + _ROUND))
            self._next += _ROUND
            self._label(_ROUND, 1000, refill=False)
        return best / _ROUND * 1e6

    def ends_us(self, events: int) -> float:
        """Microseconds per timeout; some happen with each new event."""
        self._label(2 * events, 1000, refill=False)  # rows enough, so that nothing grows
        last = self._next * EVERY_MS
        ids, quiet = [f"quiet-{number}" for number in range(events)], [last] * events
        before = self._timed(lambda: self._events(ids, quiet))
        step = (last - int(self._waiting.min()) * EVERY_MS) // (2 * events)
        ids = [f"later-{number}" for number in range(events)]
        first = int(self._waiting.min()) * EVERY_MS + WAIT_MS
        later = [first + place * step for place in range(events)]
        waiting = len(self.contender)
        took = self._timed(lambda: self._events(ids, later))
        return (took - before) / (waiting + events - len(self.contender)) * 1e6

    def _events(self, ids: list[str], times: list[int], batch: int = 1000) -> None:
        for start in range(0, len(ids), batch):
            cut = slice(start, start + batch)
            now = self.contender.column(times[cut])
            self.contender.events(ids[cut], now, self._features[: len(now)])

    def _add(self, events: int) -> None:
        for start in range(self._next, self._next + events, 10_000):
            self._events(*_events(start, min(10_000, self._next + events - start)))
        added = np.arange(self._next, self._next + events)
        self._waiting = np.concatenate([self._waiting, added])
        self._next += events

    def _label(self, labels: int, batch: int, refill: bool = True) -> float:
        """Time labels for some pending predictions; then add as many new events."""
        labels = min(labels, len(self._waiting) // 2)
        at = self._random.permutation(len(self._waiting))[:labels]
        ids = [f"payment-{number}" for number in self._waiting[at].tolist()]
        column = self.contender.column
        times, values = column([self._next * EVERY_MS] * batch), column([1.0] * batch)

        def label_all() -> None:
            for start in range(0, labels, batch):
                some = ids[start : start + batch]
                self.contender.labels(some, times[: len(some)], values[: len(some)])

        took = self._timed(label_all)
        self._waiting = np.delete(self._waiting, at)
        if refill:
            self._add(labels)
        return took / labels * 1e6

    def _timed(self, work: Callable[[], None]) -> float:
        gc.disable()
        began = time.perf_counter()
        work()
        took = time.perf_counter() - began
        gc.enable()
        return took


def _events(start: int, count: int) -> tuple[list[str], list[int]]:
    numbers = range(start, start + count)
    return [f"payment-{number}" for number in numbers], [n * EVERY_MS for n in numbers]


def _baseline_bytes(waiting: int) -> float:
    """Bytes that Python allocates for the dicts, without ids, of which the store keeps hashes."""
    contender = Baseline()
    ids, times = _events(0, waiting)
    features = np.ones((waiting, WIDTH))
    tracemalloc.start()
    contender.events(ids, times, features)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return held / waiting - WIDTH * 8
