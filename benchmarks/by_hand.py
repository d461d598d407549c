"""What a careful engineer would write with Bytewax and River by hand: event by event.

orjson in and out, a deque and running sums for each key and width, a monotonic deque for the
maximum, and River's own pipeline. One operator does it all, so that the engine costs as little as
it can. Late events, idle keys, drift of sums and bad input are not handled at all.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import bytewax.operators as op
import orjson
from bytewax.dataflow import Dataflow
from bytewax.inputs import DynamicSource, StatelessSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition


class Window:
    """Count, mean, std and maximum of one key over one width."""

    __slots__ = ("events", "maxima", "squares", "total", "width")

    def __init__(self, width: int) -> None:
        self.width = width
        self.events: deque[tuple[int, float]] = deque()
        self.maxima: deque[tuple[int, float]] = deque()
        self.total = 0.0
        self.squares = 0.0

    def add(self, ts: int, value: float) -> tuple[int, float, float, float]:
        events, maxima, edge = self.events, self.maxima, ts - self.width
        events.append((ts, value))
        self.total += value
        self.squares += value * value
        while events[0][0] <= edge:
            old = events.popleft()[1]
            self.total -= old
            self.squares -= old * old
        while maxima and maxima[-1][1] <= value:
            maxima.pop()
        maxima.append((ts, value))
        while maxima[0][0] <= edge:
            maxima.popleft()
        count = len(events)
        mean = self.total / count
        spread = (self.squares - self.total * mean) / (count - 1) if count > 1 else 0.0
        return count, mean, math.sqrt(spread) if spread > 0 else 0.0, maxima[0][1]


class ByHand:
    """One event in, one prediction out; predicts, then learns."""

    def __init__(self, widths: dict[str, int], model: Any) -> None:
        self.widths = widths
        self.model = model
        self.windows: dict[tuple[str, str], list[Window]] = {}
        self.names = {
            entity: [
                tuple(f"{entity}_amount_{width}_{stat}" for stat in ("count", "mean", "std", "max"))
                for width in widths
            ]
            for entity in ("card", "merchant")
        }

    def features(self, event: dict[str, Any]) -> dict[str, float]:
        x: dict[str, float] = {}
        ts, amount = event["ts"], event["amount"]
        for entity, names in self.names.items():
            key = (entity, event[entity])
            windows = self.windows.get(key)
            if windows is None:
                windows = self.windows[key] = [Window(width) for width in self.widths.values()]
            for window, (count, mean, std, most) in zip(windows, names, strict=True):
                x[count], x[mean], x[std], x[most] = window.add(ts, amount)
        return x

    def __call__(self, message: bytes) -> bytes:
        event = orjson.loads(message)
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


def flow_by_hand(messages: list[bytes], batch: int, by_hand: ByHand, out: list[bytes]) -> Dataflow:
    """The dataflow around `ByHand`."""
    flow = Dataflow("by_hand")
    stream = op.input("in", flow, _Source(messages, batch))
    stream = op.flat_map_batch("work", stream, lambda items: [by_hand(item) for item in items])
    op.output("out", stream, _Sink(out))
    return flow
