"""The hand-written baseline: what a careful engineer would write with Bytewax and River.

It works event by event: orjson for input and output, a deque and compensated sums per key and
width, a monotonic deque for the maximum, River's own pipeline. It does the same work as the
pipeline it is compared with: messages are validated, ids are deduplicated, an event out of order
gets the features as of its own time and counts for later ones, sums do not drift, and keys without
events expire. Everything is in one operator with plain dicts as state, so that the engine costs
almost nothing; that state can't be recovered or distributed over workers.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections import deque
from typing import Any

import bytewax.operators as op
import orjson
from bytewax.dataflow import Dataflow
from bytewax.inputs import DynamicSource, StatelessSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition

FIELDS = {
    "id": str, "ts": int, "card": str, "merchant": str, "amount": float, "fraud": bool,
}  # fmt: skip
HORIZON_MS = 3_600_000
LATENESS_MS = 600_000
AHEAD_MS = 300_000


class Sum:
    """A compensated running sum (Neumaier 1974)."""

    __slots__ = ("lost", "total")

    def __init__(self) -> None:
        self.total = 0.0
        self.lost = 0.0

    def add(self, value: float) -> None:
        total = self.total
        new = total + value
        if abs(total) >= abs(value):
            self.lost += (total - new) + value
        else:
            self.lost += (value - new) + total
        self.total = new


class Window:
    """Count, mean, std and maximum of one key over one width."""

    __slots__ = ("events", "maxima", "older", "squares", "total", "width")

    def __init__(self, width: int) -> None:
        self.width = width
        self.events: deque[tuple[int, float]] = deque()
        self.older: deque[tuple[int, float]] = deque()  # left the window, may be asked for late
        self.maxima: deque[tuple[int, float]] = deque()
        self.total = Sum()
        self.squares = Sum()

    def add(self, ts: int, value: float) -> tuple[int, float, float, float]:
        events, maxima, older = self.events, self.maxima, self.older
        if events and ts < events[-1][0]:
            return self.add_late(ts, value)
        edge = ts - self.width
        events.append((ts, value))
        self.total.add(value)
        self.squares.add(value * value)
        while events[0][0] <= edge:
            old = events.popleft()
            older.append(old)
            self.total.add(-old[1])
            self.squares.add(-old[1] * old[1])
        while older and older[0][0] <= edge - LATENESS_MS:
            older.popleft()
        while maxima and maxima[-1][1] <= value:
            maxima.pop()
        maxima.append((ts, value))
        while maxima[0][0] <= edge:
            maxima.popleft()
        return self.answer(len(events), self.total, self.squares, maxima[0][1])

    def answer(
        self, count: int, total: Sum, squares: Sum, most: float
    ) -> tuple[int, float, float, float]:
        whole = total.total + total.lost
        mean = whole / count
        spread = (squares.total + squares.lost - whole * mean) / (count - 1) if count > 1 else 0.0
        return count, mean, math.sqrt(spread) if spread > 0 else 0.0, most

    def add_late(self, ts: int, value: float) -> tuple[int, float, float, float]:
        """Insert an event that is out of order; returns the statistics as of its own time."""
        everything = [*self.older, *self.events]
        newest = everything[-1][0]
        place = bisect_right(everything, ts, key=lambda event: event[0])
        everything.insert(place, (ts, value))
        seen = [v for t, v in everything[: place + 1] if t > ts - self.width]
        total, squares = Sum(), Sum()
        for v in seen:
            total.add(v)
            squares.add(v * v)
        given = self.answer(len(seen), total, squares, max(seen))
        self.rebuild(everything, newest)
        return given

    def rebuild(self, everything: list[tuple[int, float]], newest: int) -> None:
        self.total, self.squares = Sum(), Sum()
        self.events.clear()
        self.older.clear()
        self.maxima.clear()
        for t, v in everything:
            if t <= newest - self.width:
                self.older.append((t, v))
                continue
            self.events.append((t, v))
            self.total.add(v)
            self.squares.add(v * v)
            while self.maxima and self.maxima[-1][1] <= v:
                self.maxima.pop()
            self.maxima.append((t, v))


class Baseline:
    """Turns each event into a prediction, then learns from it."""

    def __init__(self, widths: dict[str, int], model: Any) -> None:
        self.widths = widths
        self.longest = max(widths.values())
        self.model = model
        self.keys: dict[str, dict[str, list[Window]]] = {"card": {}, "merchant": {}}
        self.names = {
            entity: [
                tuple(f"{entity}_amount_{width}_{stat}" for stat in ("count", "mean", "std", "max"))
                for width in widths
            ]
            for entity in self.keys
        }
        self.newest = 0
        self.ids: set[str] = set()
        self.older_ids: set[str] = set()
        self.turn_at = 0
        self.dead: list[bytes] = []

    def features(self, event: dict[str, Any]) -> dict[str, float]:
        x: dict[str, float] = {}
        ts, amount = event["ts"], event["amount"]
        for entity, names in self.names.items():
            keys, key = self.keys[entity], event[entity]
            windows = keys.pop(key, None)
            if windows is None:
                windows = [Window(width) for width in self.widths.values()]
            keys[key] = windows  # the one used last stands last
            for window, (count, mean, std, most) in zip(windows, names, strict=True):
                x[count], x[mean], x[std], x[most] = window.add(ts, amount)
            self.expire(keys)
        return x

    def expire(self, keys: dict[str, list[Window]]) -> None:
        """Remove the keys whose windows are all empty."""
        oldest = next(iter(keys))
        last = keys[oldest][-1].events
        if last and last[-1][0] <= self.newest - self.longest - LATENESS_MS:
            del keys[oldest]

    def accept(self, message: bytes) -> dict[str, Any] | None:
        """The decoded event, or None if it is invalid, late or a duplicate."""
        try:
            event: dict[str, Any] = orjson.loads(message)
        except orjson.JSONDecodeError:
            return None
        if type(event) is not dict or len(event) != len(FIELDS):
            return None
        for name, kind in FIELDS.items():
            if type(event.get(name)) is not kind:
                return None
        ts, key = event["ts"], event["id"]
        if not math.isfinite(event["amount"]) or ts > time.time() * 1000 + AHEAD_MS:
            return None
        if ts > self.newest:
            self.newest = ts
            if ts >= self.turn_at:
                self.older_ids, self.ids = self.ids, set()
                self.turn_at = ts + HORIZON_MS
        elif ts < self.newest - LATENESS_MS:
            return None
        if key in self.ids or key in self.older_ids:
            return None
        self.ids.add(key)
        return event

    def __call__(self, message: bytes) -> bytes | None:
        event = self.accept(message)
        if event is None:
            self.dead.append(message)
            return None
        x = self.features(event)
        score = self.model.predict_proba_one(x).get(True, 0.0)
        self.model.learn_one(x, event["fraud"])
        return orjson.dumps(
            {"id": event["id"], "ts": event["ts"], "score": score, "prediction": score > 0.5}
        )


class _Source(DynamicSource[bytes]):
    def __init__(self, messages: list[bytes], batch: int) -> None:
        self.messages, self.batch = messages, batch

    def build(self, step_id: str, worker_index: int, worker_count: int) -> _SourcePart:
        return _SourcePart(self.messages, self.batch)


class _SourcePart(StatelessSourcePartition[bytes]):
    def __init__(self, messages: list[bytes], batch: int) -> None:
        self.messages, self.batch, self.place = messages, batch, 0

    def next_batch(self) -> list[bytes]:
        if self.place >= len(self.messages):
            raise StopIteration
        self.place += self.batch
        return self.messages[self.place - self.batch : self.place]


class _Sink(DynamicSink[bytes]):
    def __init__(self, out: list[bytes]) -> None:
        self.out = out

    def build(self, step_id: str, worker_index: int, worker_count: int) -> _SinkPart:
        return _SinkPart(self.out)


class _SinkPart(StatelessSinkPartition[bytes]):
    def __init__(self, out: list[bytes]) -> None:
        self.out = out

    def write_batch(self, items: list[bytes]) -> None:
        self.out.extend(items)


def baseline_flow(
    messages: list[bytes], batch: int, baseline: Baseline, out: list[bytes]
) -> Dataflow:
    """The dataflow around `Baseline`."""
    flow = Dataflow("baseline")
    stream = op.input("in", flow, _Source(messages, batch))
    answers = op.filter_map("work", stream, baseline)
    op.output("out", answers, _Sink(out))
    return flow
