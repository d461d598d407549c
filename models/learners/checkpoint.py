"""Checkpoints of a learner: a full pickle while that is cheap, else also a log of rows learned.

A large model takes seconds to pickle (ARF of 10 trees after 50,000 rows: 195 MB, 5 s). River is
deterministic: the last full pickle and the rows learned since give the same model again::

    full   rows rows rows rows   full   rows rows ...
    ├──── log, from 0 ────────┤  ├──── log, from 0 again

Pickles come only from the state directory that this program wrote; nothing that arrived on a topic
is unpickled.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.models.learners.fault_isolation import FaultIsolation
from anabranch.models.learners.learner import LEARN, Learner, Predictions, Targets
from anabranch.models.learners.pickling import garbage_collector_paused, pickled, unpickled
from anabranch.models.learners.targets import select
from anabranch.state.errors import StateError
from anabranch.state.store.delta import Delta, Items, Rows

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]

PARTS = ("full", "cost", "log", "labels")
"""The names of the parts that `Checkpoint.changes` may return."""

_COST = struct.Struct("<d?")  # seconds that the full pickle took; whether rows are logged after it
_REPLAYED_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Bounds:
    """When a full pickle is too expensive, and when the log after it is too long.

    A new full pickle follows a log that would take more than `replay_s` to learn again, or that is
    larger than `log_bytes` and than the pickle; but only when the last one took no more than
    `share` of the time since. So learning again takes at most about the longer of `replay_s` and
    the last pickling time over `share`.

    Attributes:
        pickle_s: a model that takes longer to pickle is large, and its rows are logged; seconds.
        pickle_bytes: the same, by size.
        replay_s: seconds of learning.
        log_bytes: size of the logged rows.
        share: the largest part of the running time to spend on pickling.
    """

    pickle_s: float = 0.02
    pickle_bytes: int = 1 << 20
    replay_s: float = 20.0
    log_bytes: int = 8 << 20
    share: float = 0.05


@dataclass(slots=True)
class _Log:
    """The steps since the last full pickle: how many, their cost, and those not yet persisted."""

    rows: int = 0
    bytes: int = 0
    seconds: float = 0.0
    new: list[tuple[NDArray[np.float64], U8, Targets]] = field(default_factory=list)

    def add(self, features: NDArray[np.float64], op: U8, target: Targets) -> None:
        self.new.append((features, op, target))
        self.bytes += features.nbytes + 9 * len(op)

    def changes(self) -> Delta:
        """The new steps, numbered after those before."""
        delta = Delta()
        if not self.new:
            return delta
        features, op, targets = zip(*self.new, strict=True)
        columns: dict[str, Any] = {"features": np.concatenate(features), "op": np.concatenate(op)}
        index = np.arange(self.rows, self.rows + len(columns["op"]))
        if isinstance(targets[0], np.ndarray):
            columns["target"] = np.concatenate(targets)
        else:
            labels = pickled([label for some in targets for label in some])
            delta.items["labels"] = Items(index[:1], [labels])
        delta.rows["log"] = Rows(index, columns)
        self.rows += len(index)
        self.new.clear()
        return delta


class Checkpoint:
    """Persists one learner: `changes` gives what to write, `restore` takes it back.

    Call `run` in place of the learner's own, so that rows can be logged; while the model is small
    it is the learner's own, and costs nothing.

    Args:
        name: of the model, for messages.
        learner: the learner; `restore` replaces it by another object.
        bounds: what is too expensive.
        clock: seconds.

    Attributes:
        learner: the current learner.
        full_bytes: size of the last full pickle; 0 before the first.
        isolation: keeps a row on which the model raises from all others.
        run: see `FaultIsolation.run`.
        run_each: see `Learner.run_each`; None while only `run` can be used.

    >>> from river import linear_model
    >>> from anabranch.models.learners.learner import Task
    >>> from anabranch.models.learners.compiled import learner_for
    >>> make = lambda: learner_for(linear_model.LinearRegression(), ("a",), Task.REGRESSION)
    >>> checkpoint = Checkpoint("champion", make())
    >>> steps = np.array([1], np.uint8), np.array([0]), np.array([3.0])
    >>> _ = checkpoint.run(np.array([[1.0]]), *steps)
    >>> restored = Checkpoint("champion", make())
    >>> restored.restore(checkpoint.changes())
    >>> restored.learner.version
    1
    """

    def __init__(
        self,
        name: str,
        learner: Learner,
        bounds: Bounds | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.isolation = FaultIsolation()
        self._use(learner)
        self._name = name
        self._bounds = bounds or Bounds()
        self._clock = clock
        self._pure = learner.unchanged_by_predicting
        # Of the last full pickle: when, how long, how large, and the version then.
        self._full_at, self._full_s, self.full_bytes = 0.0, 0.0, 0
        self._full_version = -1
        self._log: _Log | None = None

    def changes(self) -> Delta:
        """What changed since the last call; the first time the whole learner.

        Raises:
            StateError: it can't be pickled.
        """
        if self._log is None:
            unchanged = self._pure and self.learner.version == self._full_version
            return Delta() if unchanged else self._pickle()
        return self._pickle() if self._too_long(self._log) else self._log.changes()

    def restore(self, image: Delta) -> None:
        """Restore the learner from `image`, the merge of all its changes; nothing if it is empty.

        The image is unpickled: pass only what this program wrote.

        Raises:
            StateError: it can't be unpickled here, or holds another kind of learner.
        """
        if "full" not in image.blobs:
            return
        self._restore_from(_load(self._name, image.blobs["full"], type(self.learner)), image)

    def _restore_from(self, learner: Learner, image: Delta) -> None:
        """Continue from the full pickle of an image, and learn the rows logged after it."""
        self._full_s, large = _COST.unpack(image.blobs["cost"])
        self.full_bytes = len(image.blobs["full"])
        self._use(learner)
        self._full_version = self.learner.version
        self._full_at = self._clock()
        self._log = None
        if large:
            self._start_log()
            self._replay(image)

    def _too_long(self, log: _Log) -> bool:
        bounds = self._bounds
        size = max(bounds.log_bytes, self.full_bytes)
        if log.seconds <= bounds.replay_s and log.bytes <= size:
            return False
        return self._clock() - self._full_at >= self._full_s / bounds.share

    def _pickle(self) -> Delta:
        start = self._clock()
        blob = _dump(self._name, self.learner)
        self._full_at, self.full_bytes = self._clock(), len(blob)
        self._full_s = self._full_at - start
        self._full_version = self.learner.version
        bounds = self._bounds
        large = self._full_s > bounds.pickle_s or len(blob) > bounds.pickle_bytes
        delta = Delta(blobs={"full": blob, "cost": _COST.pack(self._full_s, large)})
        if self._log is not None:
            delta.cleared = {"log", "labels"}
        if large:
            self._start_log()
        else:
            self._log = None
            self._use(self.learner)
        return delta

    def _use(self, learner: Learner) -> None:
        self.learner = learner
        self.run: Callable[..., Predictions] = learner.run
        if learner.can_fail:
            self.run = partial(self.isolation.run, learner)
        self.run_each: Callable[..., Predictions | None] | None = learner.run_each

    def _start_log(self) -> None:
        self._log, self.run, self.run_each = _Log(), self._run_and_log, None

    def _run_and_log(
        self, features: NDArray[np.float64], op: U8, row: I64, target: Targets
    ) -> Predictions:
        start = self._clock()
        isolation = self.isolation
        predictions = isolation.run(self.learner, features, op, row, target)
        steps = np.flatnonzero(op == LEARN) if self._pure else np.arange(op.size)
        if isolation.left_out.size:
            steps = np.setdiff1d(steps, isolation.left_out)
        if steps.size:
            log = self._log
            assert log is not None
            # The time of predictions counts too: this is a bound, and learning is the larger part.
            log.seconds += self._clock() - start
            log.add(features[row[steps]], op[steps], select(target, steps))
        return predictions

    def _replay(self, image: Delta) -> None:
        """Learn the logged steps again; further steps are logged after them."""
        log = self._log
        assert log is not None
        steps = image.rows.get("log")
        if steps is None:
            return
        columns = steps.columns
        targets: Targets
        if "labels" in image.items:
            pieces = [unpickled(piece) for piece in image.items["labels"].values if piece]
            targets = [label for piece in pieces for label in piece]
        else:
            targets = columns["target"]
        start, isolation = self._clock(), FaultIsolation()
        for low in range(0, len(steps), _REPLAYED_AT_ONCE):
            part = slice(low, low + _REPLAYED_AT_ONCE)
            features = np.array(columns["features"][part])
            op, target = np.array(columns["op"][part]), targets[part]
            if isinstance(target, np.ndarray):
                target = target.copy()
            isolation.run(self.learner, features, op, np.arange(len(op)), target)
            isolation.rows.clear()  # each step is a row of its own here
        log.rows, log.seconds = len(steps), self._clock() - start
        log.bytes = columns["features"].nbytes + 9 * len(steps)


def restored(name: str, image: Delta) -> Learner | None:
    """The learner in `image`, of whatever kind it is; None if the image is empty.

    The image is unpickled: pass only what this program wrote.

    Raises:
        StateError: it can't be unpickled here.
    """
    if "full" not in image.blobs:
        return None
    checkpoint = Checkpoint(name, _load(name, image.blobs["full"], object))
    checkpoint._restore_from(checkpoint.learner, image)
    return checkpoint.learner


def _dump(name: str, learner: Learner) -> bytes:
    try:
        with garbage_collector_paused():
            return pickled(learner)
    except Exception as error:
        raise StateError(
            f"model {name!r} can't be pickled, so its state can't be kept: {error}; "
            "use named functions of a module, or run without a state directory"
        ) from error


def _load(name: str, blob: bytes, kind: type[Any]) -> Any:
    try:
        with garbage_collector_paused():
            learner = unpickled(blob)
        if not isinstance(learner, kind):
            raise TypeError(f"{kind.__name__} is declared, and {type(learner).__name__} is stored")
        return learner
    except Exception as error:
        raise StateError(
            f"model {name!r} can't be read from the state: {type(error).__name__}: {error}; "
            "continue with the program and the pipeline that wrote it, or use a new state directory"
        ) from error
