"""Commit and recovery of keyed windows: this project's window step and Bytewax's own recovery.

Both run in the engine, after the same source, with an epoch per batch.

* `Ours` is the real step on a real state directory: 3 widths, one database, one token.
* `Theirs` uses Bytewax alone: a `stateful_batch` keyed by entity, with an entry per key in the
  engine's recovery store. Only the events of a key are stored there, and its sums are recomputed on
  recovery: pickling the running sums as well makes a commit several times longer.

The same is timed for both. A *commit* lasts from the first ``snapshot()`` of an epoch until the
source is asked for the batch of the next one, including everything that the engine does. A
*recovery* lasts from before anything is opened until the first features arrive at the sink.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import bytewax.operators as op
import numpy as np
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.operators import StatefulBatchLogic
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.run import cli_main
from numpy.typing import NDArray

from anabranch import Pipeline, inline, window
from anabranch.dataflows.batch.batch import EntityRows
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.recovery.state_directory import StateDirectory
from anabranch.dataflows.recovery.tokens import BY_SHARD, StepState, decode_token
from anabranch.dataflows.steps.window_step import WindowStep
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics
from benchmarks.baseline import LATENESS_MS, Window
from benchmarks.hotpath import STATS, WIDTHS, Payment, make_model
from benchmarks.prepared import START_MS

__all__ = ["Clock", "Contender", "Epoch", "Ours", "Theirs", "make_epochs"]

_ROWS = 1000  # of a batch of ours

Answers = dict[int, tuple[float, ...]]
"""Time of a row (which is unique) → its features."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """The rows of an epoch: `(rows,)` keys, times (epoch ms) and amounts."""

    keys: list[str]
    times: NDArray[np.int64]
    amounts: NDArray[np.float64]


def make_epochs(live: int, changed: int, rounds: int, singles: int = 1) -> list[Epoch]:
    """Every key once, ``changed`` of them in an epoch; ``rounds`` of random ones; ``singles``."""
    random = np.random.default_rng(live)
    order = random.permutation(live)
    chosen = [order[at : at + changed] for at in range(0, live, changed)]
    chosen += [random.permutation(live)[:changed] for _ in range(rounds)]
    chosen += [order[:1]] * singles
    epochs, now = [], START_MS
    for numbers in chosen:
        keys = [f"card-{number}" for number in numbers.tolist()]
        times = now + np.arange(len(keys))
        now += len(keys)
        epochs.append(Epoch(keys, times, random.lognormal(3, 1, len(keys))))
    return epochs


@dataclass
class Clock:
    """Takes the times of one run of the engine; ``answers`` collects features, if it is a dict."""

    answers: Answers | None = None
    commits: list[float] = field(default_factory=list)
    first_answer_at: float = 0.0
    _snapshot_at: float = 0.0

    def on_snapshot(self) -> None:
        """Called when the step is asked for a snapshot."""
        if not self._snapshot_at:
            self._snapshot_at = time.perf_counter()

    def on_asked(self) -> None:
        """Called when the source is asked for a batch."""
        if self._snapshot_at:
            self.commits.append(time.perf_counter() - self._snapshot_at)
            self._snapshot_at = 0.0

    def on_answers(self, items: list[Any], read: Callable[[Any], Answers]) -> None:
        """Called when features arrive at the sink."""
        self.first_answer_at = self.first_answer_at or time.perf_counter()
        if self.answers is not None:
            for _, item in items:
                self.answers.update(read(item))


class Contender(Protocol):
    """One way to keep state across runs."""

    def run(self, epochs: Sequence[Epoch], clock: Clock) -> None:
        """Resume where the last run ended, and run to the end of ``epochs``."""


class Ours:
    """The window step of a pipeline on its state directory, in ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "ours"
        self._pipeline = Pipeline(
            name="cards",
            event=Payment,
            label=inline("fraud"),
            features=[window("card", "amount", over=tuple(WIDTHS), stats=STATS)],
            model=make_model(),
        )
        self._bus = MemoryBus()
        self._bus.create_topics({self._pipeline.topics.events: 1})

    def run(self, epochs: Sequence[Epoch], clock: Clock) -> None:
        """See `Contender`."""
        batches = [self._batch(epoch) for epoch in epochs]
        with StateDirectory.open(self._directory, self._pipeline, self._bus) as state:
            metrics = WorkerMetrics(self._pipeline.name)

            def step(resume: StepState) -> WindowStep:
                token = decode_token(resume)
                return _TimedStep(clock, self._pipeline, metrics, 1, state, token)

            name = state.step_id(BY_SHARD)
            _run(name, batches, step, _of_rows, clock, state.recovery_config())

    def _batch(self, epoch: Epoch) -> list[tuple[str, EntityRows]]:
        batch = []
        for at in range(0, len(epoch.keys), _ROWS):
            cut = slice(at, at + _ROWS)
            keys, amounts = epoch.keys[cut], {"amount": epoch.amounts[cut]}
            rows = np.arange(len(keys))
            batch.append(("0", EntityRows("0", 0, "card", rows, keys, epoch.times[cut], amounts)))
        return batch


class Theirs:
    """A keyed Bytewax operator with the engine's own recovery store, in ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "theirs"
        self._directory.mkdir()
        init_db_dir(self._directory, 1)  # type: ignore[no-untyped-call]

    def run(self, epochs: Sequence[Epoch], clock: Clock) -> None:
        """See `Contender`."""
        batches = [
            list(
                zip(
                    epoch.keys,
                    zip(epoch.times.tolist(), epoch.amounts.tolist(), strict=True),
                    strict=True,
                )
            )
            for epoch in epochs
        ]
        recovery = RecoveryConfig(str(self._directory), timedelta(0))  # type: ignore[no-untyped-call]
        _run("windows", batches, lambda events: _Windows(clock, events), _of_event, clock, recovery)


class _TimedStep(WindowStep):
    def __init__(self, clock: Clock, *arguments: Any) -> None:
        self._clock = clock
        super().__init__(*arguments)

    def snapshot(self) -> StepState:
        self._clock.on_snapshot()
        return super().snapshot()


class _Windows(StatefulBatchLogic[Any, Any, Any]):
    """The windows of one key."""

    __slots__ = ("clock", "events", "windows")

    def __init__(self, clock: Clock, events: list[tuple[int, float]] | None) -> None:
        self.clock = clock
        self.windows = [Window(width) for width in WIDTHS.values()]
        self.events: list[tuple[int, float]] = []
        for event in events or ():
            self.add(event)

    def add(self, event: tuple[int, float]) -> tuple[int, tuple[float, ...]]:
        ts, amount = event
        self.events.append(event)
        while self.events[0][0] <= ts - max(WIDTHS.values()) - LATENESS_MS:
            del self.events[0]
        return ts, tuple(x for window in self.windows for x in window.add(ts, amount))

    def on_batch(self, values: list[tuple[int, float]]) -> tuple[list[Any], bool]:
        return [self.add(event) for event in values], False

    def snapshot(self) -> list[tuple[int, float]]:
        self.clock.on_snapshot()
        return self.events.copy()


def _of_rows(item: EntityRows) -> Answers:
    assert item.features is not None
    return dict(zip(item.times.tolist(), map(tuple, item.features.tolist()), strict=True))


def _of_event(item: tuple[int, tuple[float, ...]]) -> Answers:
    return dict([item])


def _run(
    name: str,
    batches: list[Any],
    step: Callable[[Any], StatefulBatchLogic[Any, Any, Any]],
    read: Callable[[Any], Answers],
    clock: Clock,
    recovery: RecoveryConfig,
) -> None:
    flow = Dataflow("epochs")
    rows = op.input("rows", flow, _Source(batches, clock))
    answers = op.stateful_batch(name, rows, step)
    op.output("answers", answers, _Sink(clock, read))
    gc.collect()
    gc.freeze()  # the input is nobody's garbage
    try:
        cli_main(flow, epoch_interval=timedelta(0), recovery_config=recovery)  # type: ignore[no-untyped-call]
    finally:
        gc.unfreeze()


class _Source(FixedPartitionedSource[Any, int]):
    def __init__(self, batches: list[Any], clock: Clock) -> None:
        self._batches, self._clock = batches, clock

    def list_parts(self) -> list[str]:
        return ["0"]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> _SourcePart:
        return _SourcePart(self._batches, self._clock, resume_state or 0)


class _SourcePart(StatefulSourcePartition[Any, int]):
    def __init__(self, batches: list[Any], clock: Clock, at: int) -> None:
        self._batches, self._clock, self._at = batches, clock, at

    def next_batch(self) -> list[Any]:
        self._clock.on_asked()
        if self._at >= len(self._batches):
            raise StopIteration
        self._at += 1
        return self._batches[self._at - 1]  # type: ignore[no-any-return]

    def snapshot(self) -> int:
        return self._at


class _Sink(DynamicSink[Any]):
    def __init__(self, clock: Clock, read: Callable[[Any], Answers]) -> None:
        self._clock, self._read = clock, read

    def build(self, step_id: str, worker_index: int, worker_count: int) -> _SinkPart:
        return _SinkPart(self._clock, self._read)


class _SinkPart(StatelessSinkPartition[Any]):
    def __init__(self, clock: Clock, read: Callable[[Any], Answers]) -> None:
        self._clock, self._read = clock, read

    def write_batch(self, items: list[Any]) -> None:
        self._clock.on_answers(items, self._read)
