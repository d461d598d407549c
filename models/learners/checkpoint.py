"""How one learner is kept on disk: a full pickle while that is cheap, else the rows learned since.

A large model takes seconds to pickle (ARF of 10 trees after 50,000 rows: 195 MB, 5 s). River is
deterministic: the last full pickle and the rows learned since give the same model again::

    full   rows rows rows rows   full   rows rows ...
    ├──── log, from 0 ────────┤  ├──── log, from 0 anew

Pickles come only from the state directory that this program wrote; nothing that arrived on a topic
is unpickled.
"""

from __future__ import annotations

import pickle
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.models.learners.durable import unchanged_by_predicting
from anabranch.models.learners.learner import LEARN, Learner, Predictions, Targets
from anabranch.models.learners.linear import CompiledLinear
from anabranch.models.learners.pickling import uncollected
from anabranch.models.learners.resampling import Sampled
from anabranch.models.learners.river import RiverLearner
from anabranch.models.learners.segmented import Segmented
from anabranch.models.learners.subsampling import Thinned
from anabranch.models.learners.targets import select
from anabranch.state.errors import StateError
from anabranch.state.store.delta import Delta, Items, Rows

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]

PARTS = ("full", "cost", "log", "labels")
"""The names of what `Checkpoint.changes` may give."""

_COST = struct.Struct("<d?")  # seconds that the full pickle took; whether rows are logged after it
_REPLAYED_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Bounds:
    """When a full pickle is too dear, and when the log after it is too long.

    A new full pickle follows a log that would take more than `replay_s` to learn again, or that is
    larger than `log_bytes` and than the pickle; but only when the last one took no more than
    `share` of the time since. So learning again takes at most about the longer of `replay_s` and
    the last pickling time over `share`.

    Attributes:
        pickle_s: above this a model is large: its rows are logged.
        pickle_bytes: the same, by size.
        replay_s: seconds of learning.
        log_bytes: of rows.
        share: of the running time that goes into pickling, at most.
    """

    pickle_s: float = 0.02
    pickle_bytes: int = 1 << 20
    replay_s: float = 20.0
    log_bytes: int = 8 << 20
    share: float = 0.05


@dataclass(slots=True)
class _Log:
    """The steps since the last full pickle: how many, what they cost, and those not yet given."""

    rows: int = 0
    bytes: int = 0
    seconds: float = 0.0
    new: list[tuple[NDArray[np.float64], U8, Targets]] = field(default_factory=list)

    def add(self, features: NDArray[np.float64], op: U8, target: Targets) -> None:
        self.new.append((features, op, target))
        self.bytes += features.nbytes + 9 * len(op)

    def changes(self) -> Delta:
        """The new steps, numbered on from those before."""
        delta = Delta()
        if not self.new:
            return delta
        features, op, targets = zip(*self.new, strict=True)
        columns: dict[str, Any] = {"features": np.concatenate(features), "op": np.concatenate(op)}
        index = np.arange(self.rows, self.rows + len(columns["op"]))
        if isinstance(targets[0], np.ndarray):
            columns["target"] = np.concatenate(targets)
        else:
            labels = pickle.dumps([label for some in targets for label in some], protocol=5)
            delta.items["labels"] = Items(index[:1], [labels])
        delta.rows["log"] = Rows(index, columns)
        self.rows += len(index)
        self.new.clear()
        return delta


class Checkpoint:
    """Keeps one learner durable.

    Call `run` in place of the learner's own, so that rows can be logged; while the model is small
    it is the learner's own, and costs nothing.

    Args:
        name: of the model, for messages.
        learner: taken over. After `restore` it is another object.
        bounds: what is dear.
        clock: seconds.

    Attributes:
        learner: the one that is kept.
        full_bytes: of the last full pickle; 0: there was none.
        run: see `Learner.run`.
        run_each: see `CompiledLinear.run_each`; None where only `run` will do.

    >>> from river import linear_model
    >>> from anabranch.models.learners.linear import learner_for
    >>> from anabranch.models.learners.learner import Task
    >>> make = lambda: learner_for(linear_model.LinearRegression(), ("a",), Task.REGRESSION)
    >>> kept = Checkpoint("champion", make())
    >>> steps = np.array([1], np.uint8), np.array([0]), np.array([3.0])
    >>> _ = kept.run(np.array([[1.0]]), *steps)
    >>> again = Checkpoint("champion", make())
    >>> again.restore(kept.changes())
    >>> again.learner.version
    1
    """

    def __init__(
        self,
        name: str,
        learner: Learner,
        bounds: Bounds | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._take(learner)
        self._name = name
        self._bounds = bounds or Bounds()
        self._clock = clock
        self._pure = _learns_only(learner)
        # Of the last full pickle: when, how long, how large, and the version then.
        self._full_at, self._full_s, self.full_bytes = 0.0, 0.0, 0
        self._full_version = -1
        self._log: _Log | None = None

    def changes(self) -> Delta:
        """What changed since the last call; at first, the whole learner.

        Raises:
            StateError: it can't be pickled.
        """
        if self._log is None:
            known = self._pure and self.learner.version == self._full_version
            return Delta() if known else self._pickle()
        return self._pickle() if self._too_long(self._log) else self._log.changes()

    def restore(self, image: Delta) -> None:
        """Take up the learner that gave `image`, the merge of all its changes; nothing if empty.

        What it holds is unpickled: give only what this program wrote.

        Raises:
            StateError: it can't be unpickled here.
        """
        if "full" not in image.blobs:
            return
        self._go_on_from(_load(self._name, image.blobs["full"], type(self.learner)), image)

    def _go_on_from(self, learner: Learner, image: Delta) -> None:
        """Take up the full pickle of an image, and learn the rows behind it."""
        self._full_s, large = _COST.unpack(image.blobs["cost"])
        self.full_bytes = len(image.blobs["full"])
        self._take(learner)
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
            self._take(self.learner)
        return delta

    def _take(self, learner: Learner) -> None:
        self.learner = learner
        self.run: Callable[..., Predictions] = learner.run
        self.run_each: Callable[..., Predictions | None] | None = None
        if isinstance(learner, CompiledLinear):
            self.run_each = learner.run_each

    def _start_log(self) -> None:
        self._log, self.run, self.run_each = _Log(), self._run_and_log, None

    def _run_and_log(
        self, features: NDArray[np.float64], op: U8, row: I64, target: Targets
    ) -> Predictions:
        start = self._clock()
        answers = self.learner.run(features, op, row, target)
        steps = np.flatnonzero(op == LEARN) if self._pure else np.arange(op.size)
        if steps.size:
            log = self._log
            assert log is not None
            # Predictions in between count too: it is a bound, and learning is the larger part.
            log.seconds += self._clock() - start
            log.add(features[row[steps]], op[steps], select(target, steps))
        return answers

    def _replay(self, image: Delta) -> None:
        """Learn the logged steps again, and log on behind them."""
        log = self._log
        assert log is not None
        steps = image.rows.get("log")
        if steps is None:
            return
        columns = steps.columns
        targets: Targets
        if "labels" in image.items:
            pieces = [pickle.loads(piece) for piece in image.items["labels"].values if piece]
            targets = [label for piece in pieces for label in piece]
        else:
            targets = columns["target"]
        start = self._clock()
        for low in range(0, len(steps), _REPLAYED_AT_ONCE):
            part = slice(low, low + _REPLAYED_AT_ONCE)
            features = np.array(columns["features"][part])
            op, target = np.array(columns["op"][part]), targets[part]
            if isinstance(target, np.ndarray):
                target = target.copy()
            self.learner.run(features, op, np.arange(len(op)), target)
        log.rows, log.seconds = len(steps), self._clock() - start
        log.bytes = columns["features"].nbytes + 9 * len(steps)


def restored(name: str, image: Delta) -> Learner | None:
    """The learner that gave `image`, however it was declared; None if the image is empty.

    What it holds is unpickled: give only what this program wrote.

    Raises:
        StateError: it can't be unpickled here.
    """
    if "full" not in image.blobs:
        return None
    kept = Checkpoint(name, _load(name, image.blobs["full"], object))
    kept._go_on_from(kept.learner, image)
    return kept.learner


def _learns_only(learner: Learner) -> bool:
    """Whether predicting leaves the learner as it was; False for one that is not known."""
    if isinstance(learner, Sampled | Thinned):
        return _learns_only(learner.learner)
    if isinstance(learner, Segmented):
        return _learns_only(learner.shared)
    if isinstance(learner, CompiledLinear):
        return True
    return isinstance(learner, RiverLearner) and unchanged_by_predicting(learner.model)


def _dump(name: str, learner: Learner) -> bytes:
    try:
        with uncollected():
            return pickle.dumps(learner, protocol=5)
    except Exception as error:
        raise StateError(
            f"model {name!r} can't be pickled, so its state can't be kept: {error}; "
            "use named functions of a module, or run without a state directory"
        ) from error


def _load(name: str, blob: bytes, kind: type[Any]) -> Any:
    try:
        with uncollected():
            found = pickle.loads(blob)
        if not isinstance(found, kind):
            raise TypeError(f"a {kind.__name__} is declared, {type(found).__name__} is stored")
        return found
    except Exception as error:
        raise StateError(
            f"model {name!r} can't be read from the state: {type(error).__name__}: {error}; "
            "go on with the program and the pipeline that wrote it, or begin a new state directory"
        ) from error
