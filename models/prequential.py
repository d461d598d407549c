"""Test, then train: every label first scores the prediction that was served, then teaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.answers import Answers
from models.checkpoint import PARTS, Bounds, Checkpoint
from models.declared import described
from models.drift import LOSS, Alarm, Monitor, Watch
from models.label_join import Joined, LabelJoin, Note
from models.learner import LEARN, PREDICT, Label, Learner, Predictions, Targets, Task
from models.losses import check_loss, losses
from models.metrics import Metric, metric
from models.outcome import NO_VALUE, Corrected, Learned, Outcome
from models.step_record import StepRecord
from models.step_record import part_of as _part
from models.targets import as_targets, every_usable, select, usable
from state.delta import Delta
from state.errors import DeclarationError
from state.label_rules import LabelRules

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

_ANSWERS: Final = "answers"


class Prequential:
    """Models that predict every event and learn every label, and what is measured on the way.

    Everything that the models, the metrics and the monitors come to know is the same, bit for bit,
    however the stream is cut into calls. It equals `river.evaluate.progressive_val_score`: see
    there for the delay. It has one owner, and pickles with all that is pending.

    Args:
        learners: by name; the first is the champion, whose predictions are served. They have the
            same task and the same columns.
        metrics: names for `metrics.metric`, kept for every model.
        monitors: on the champion's loss, or on a feature of the events.
        rules: how long labels are waited for, and what becomes of late and early ones.
        otherwise: the target to assume when the wait is over; None to drop the prediction.
        inline: targets come with the events, nothing waits.
        bounds: when a model is too large to be written whole in `changes`.

    Attributes:
        metrics: `{model: {name: Metric}}`, running.
        pending: the predictions that wait; empty when `inline`.

    Raises:
        DeclarationError: no learner, unlike learners, an unknown metric, loss or feature.

    >>> from river import linear_model
    >>> from models.compiled import learner_for
    >>> model = learner_for(linear_model.LinearRegression(), ("a",), Task.REGRESSION)
    >>> step = Prequential({"champion": model}, metrics=["MAE"])
    >>> outcome = step.run(
    ...     ids=["x"], features=np.array([[1.0]]), times=np.array([1000]),
    ...     label_ids=["x"], label_values=np.array([2.0]), label_times=np.array([1500]),
    ...     order=np.array([0, 1]),
    ... )
    >>> outcome.predictions["champion"].values, outcome.learned.delays
    (array([0.]), array([500]))
    >>> step.metrics["champion"]["MAE"].value
    2.0
    """

    def __init__(
        self,
        learners: Mapping[str, Learner],
        metrics: Sequence[str] = (),
        monitors: Sequence[Monitor] = (),
        rules: LabelRules | None = None,
        inline: bool = False,
        otherwise: Label = None,
        bounds: Bounds | None = None,
    ) -> None:
        if not learners:
            raise DeclarationError("no model is given: a prequential step needs one at least")
        first = next(iter(learners.values()))
        self.task, self.names = first.task, first.names
        self.inline = inline
        self._metric_names = tuple(metrics)
        self.learners: dict[str, Learner] = {}
        self.metrics: dict[str, dict[str, Metric]] = {}
        self._join = LabelJoin(len(self.names), self.task, rules or LabelRules(), otherwise)
        self.pending = self._join.pending
        self._answers: dict[str, Answers] = {}
        self._kept: dict[str, Checkpoint] = {}
        self._declared: dict[str, str] = {}
        self._bounds = bounds
        self._cleared: set[str] = set()
        self._told = b""
        for name, learner in learners.items():
            self.add(name, learner)
        self.champion = next(iter(learners))
        # Views of these stand in every outcome; making them costs as much as some rows.
        self._ascending = np.zeros(0, np.int64)
        self._tags = np.zeros(0, np.int32)
        self._watches = [Watch(declared) for declared in monitors]
        self._subjects = [self._column(declared) for declared in monitors]

    def _column(self, declared: Monitor) -> int:
        """The feature that a monitor watches; -1 for the loss."""
        if declared.subject == LOSS:
            check_loss(self.task, declared.loss)
            return -1
        if declared.subject not in self.names:
            raise DeclarationError(
                f"unknown subject {declared.subject!r} of a monitor: there are {LOSS!r} and the "
                f"features {', '.join(self.names)}"
            )
        return self.names.index(declared.subject)

    def add(self, name: str, learner: Learner) -> None:
        """A challenger from now on; what waits already, it has not predicted but will learn.

        Raises:
            DeclarationError: the name is taken, or the learner is unlike the others.
        """
        if name in self.learners:
            raise DeclarationError(f"there is a model {name!r} already: choose another name")
        if learner.task is not self.task or learner.names != self.names:
            raise DeclarationError(
                f"model {name!r} has another task or other features than the champion"
            )
        self.metrics[name] = {m: metric(m, self.task) for m in self._metric_names}
        self.learners[name] = learner
        self.pending.add_model()
        self._answers[name] = Answers(self.pending)
        self._kept[name] = Checkpoint(name, learner, self._bounds)
        self._declared[name] = described(learner)

    def take_up(self, name: str, learner: Learner) -> None:
        """Let one that has learned stand in for a fresh one, as which it was declared.

        Raises:
            DeclarationError: it is of another kind, or has other features.
        """
        if type(learner) is not type(self.learners[name]) or learner.names != self.names:
            raise DeclarationError(f"model {name!r} can't begin as one of another kind")
        self.learners[name] = learner
        self._kept[name] = Checkpoint(name, learner, self._bounds)

    def remove(self, name: str) -> None:
        """Forget a challenger, its metrics and its pending predictions.

        Raises:
            DeclarationError: it is the champion, or unknown.
        """
        if name == self.champion or name not in self.learners:
            what = "it is the champion" if name == self.champion else "there is none of that name"
            raise DeclarationError(f"model {name!r} can't be removed: {what}")
        at = list(self.learners).index(name)
        for by_name in (self.learners, self.metrics, self._answers, self._kept, self._declared):
            by_name.pop(name)
        self.pending.drop_model(at)
        self._cleared |= {f"{_part(name)}/{part}" for part in (*PARTS, _ANSWERS)}

    def lead(self, name: str) -> None:
        """Make a challenger the champion; monitors on the loss go on with its loss."""
        if name not in self.learners:
            raise DeclarationError(f"model {name!r} can't lead: there is none of that name")
        self.champion = name

    def run(
        self,
        *,
        ids: Sequence[str],
        features: F64,
        times: I64,
        label_ids: list[str],
        label_values: Targets,
        label_times: I64,
        order: I64,
        tags: NDArray[np.int32] | None = None,
        note: Note | None = None,
    ) -> Outcome:
        """Predict events and learn labels, in `order`.

        Args:
            ids: of the events; without those that were seen before.
            features: `(events, features) float64`, finite, C-contiguous.
            times: `(events,) int64`, event time in ms.
            label_ids: the event that each label judges.
            label_values: `(labels,) float64` (binary: 0.0 or 1.0), NaN where unusable; multi-class:
                a list, None where unusable.
            label_times: `(labels,) int64` ms.
            order: `(events + labels,) int64`: event i as i, label j as `events + j`.
            tags: `(events,) int32`, handed back with the label.
            note: of a label that must be held, by its index; handed back should it be given up.

        When `inline`, it is `run_inline`: `label_values` belongs to the events, one each, and
        `ids`, `label_ids`, `label_times` and `order` are not looked at.

        Raises:
            ModelError: a model failed; go on from a checkpoint.
        """
        if self.inline:
            return self.run_inline(features, times, label_values, tags)
        joined = self._join.join(
            ids, times, features, label_ids, label_values, label_times, order, tags, note
        )
        return self._work(joined, len(times))

    def changes(self) -> Delta:
        """What changed since the last call of this or of `restore`; at first, everything.

        Between calls of `run` only, and not after one that failed.

        Raises:
            StateError: a model can't be pickled.
        """
        delta = Delta(cleared=self._cleared)
        pending = self._join.changes()
        delta.put("pending", pending)
        for name, kept in self._kept.items():
            delta.put(_part(name), kept.changes())
            if self.task is Task.MULTICLASS and "state" in pending.rows:
                touched = pending.rows["state"]
                answers = self._answers[name].changes(touched.index, touched.columns["waits"])
                delta.items[f"{_part(name)}/{_ANSWERS}"] = answers
        told = self._record().dump()
        if told != self._told:
            delta.blobs["step"] = told
        self._cleared, self._told = set(), told
        return delta

    def restore(self, image: Delta) -> None:
        """Go on, bit for bit, where the step was that gave `image`; for a fresh step only.

        Args:
            image: the merge of all its changes. What it holds is unpickled, so it must come from
                the state directory that this program wrote. If empty, the step stays fresh.

        Metrics and monitors that the stored step did not have begin now. Models come in the stored
        order, with the stored champion.

        Raises:
            StateError: other models or features were declared, or a model can't be unpickled.
        """
        if "step" not in image.blobs:
            return
        record = StepRecord.load(image.blobs["step"])
        record.check(self._record())
        self.champion, self._told = record.champion, image.blobs["step"]
        self._kept = {name: self._kept[name] for name in record.models}
        for name, kept in self._kept.items():
            kept.restore(image.part(_part(name)))
            answers = image.items.get(f"{_part(name)}/{_ANSWERS}")
            if answers is not None:
                self._answers[name].restore(answers)
        self.learners = {name: kept.learner for name, kept in self._kept.items()}
        self._declared = record.models
        self.metrics = {
            name: {m: record.metrics[name].get(m, fresh) for m, fresh in self.metrics[name].items()}
            for name in record.models
        }
        for i, watch in enumerate(self._watches):
            same = [old for old in record.watches if old.monitor == watch.monitor]
            if same:
                self._watches[i] = same[0]
                record.watches.remove(same[0])
        self._join.restore(image.part("pending"))

    def _record(self) -> StepRecord:
        return StepRecord(
            self._declared, self.names, self.task, self.inline, self.champion, self.metrics,
            self._watches,
        )  # fmt: skip

    def _work(self, joined: Joined, events: int) -> Outcome:
        """Predict and learn the steps that were laid out."""
        pending, row, time = self.pending, joined.row, joined.time
        asked, taught = joined.asked, joined.taught
        # Events are predicted in `order`, but the caller counts them by index.
        turn = np.empty(events, np.int64)
        turn[joined.source[asked]] = np.arange(asked.size)
        before = {name: learner.version for name, learner in self.learners.items()}
        served: dict[str, Predictions] = {}
        scored: dict[str, Predictions] = {}
        for model, (name, kept) in enumerate(self._kept.items()):
            answers = kept.run(pending.features, joined.op, row, joined.target)
            waiting = self._answers[name]
            waiting.keep(model, row[asked], answers)
            scored[name] = waiting.recall(model, row[taught], answers)
            served[name] = answers.take(turn)
            waiting.forget(joined.dropped)
        left = row[taught]
        learned = Learned(
            joined.source[taught], select(joined.target, taught), scored,
            pending.times[left], time[taught], pending.tags[left], joined.item[taught],
        )  # fmt: skip
        self._score(learned)
        alarms = self._watch(learned, taught, pending.features, row[asked], time[asked], asked)
        learned_before = joined.op.cumsum(dtype=np.int64)[asked][turn]
        return Outcome(
            served, learned, alarms, joined.refused_labels, joined.refused_events,
            len(joined.dropped), before, learned_before, joined.given_up, self._corrected(joined),
            joined.confirmed, joined.held,
        )  # fmt: skip

    def _corrected(self, joined: Joined) -> Corrected | None:
        steps = joined.corrected
        if not steps.size:
            return None
        tags = self.pending.tags[joined.row[steps]]
        return Corrected(select(joined.target, steps), joined.time[steps], tags)

    def run_inline(
        self, features: F64, times: I64, values: Targets, tags: NDArray[np.int32] | None = None
    ) -> Outcome:
        """Each event is predicted, then learned at once.

        One without a usable target is predicted and not learned (an anomaly detector learns it all
        the same). Arguments and errors are those of `run`.
        """
        events = len(times)
        values = as_targets(values, self.task)
        before = {name: learner.version for name, learner in self.learners.items()}
        if len(self._ascending) < events:
            self._ascending, self._tags = np.arange(2 * events), np.zeros(2 * events, np.int32)
        tags = self._tags[:events] if tags is None else tags
        learned_before: I64 | range = range(events)
        refused: list[tuple[int, str]] = []
        taught = self._ascending[:events]
        served = self._run_each(features, values)
        if served is None:
            op, row, target, taught, refused = self._pairs(events, values)
            served = {name: m.run(features, op, row, target) for name, m in self._kept.items()}
        if len(taught) == events:
            learned = Learned(taught, values, served, times, times, tags)
        else:
            scored = {name: answers.take(taught) for name, answers in served.items()}
            known, when = select(values, taught), times[taught]
            learned = Learned(taught, known, scored, when, when, tags[taught])
            learned_before = np.searchsorted(taught, np.arange(events))
        self._score(learned)
        alarms: list[Alarm] = []
        if self._watches:
            rows = np.arange(events)
            alarms = self._watch(learned, 2 * taught + 1, features, rows, times, 2 * rows)
        return Outcome(served, learned, alarms, refused, [], 0, before, learned_before)

    def _run_each(self, features: F64, values: Targets) -> dict[str, Predictions] | None:
        """What all models answer, where all can learn row by row and every target is usable."""
        for kept in self._kept.values():
            if kept.run_each is None:
                return None
        served: dict[str, Predictions] = {}
        for name, kept in self._kept.items():
            answers = None if kept.run_each is None else kept.run_each(features, values)
            if answers is None:
                return None  # the first says so, or none: the targets are the same
            served[name] = answers
        return served

    def _pairs(
        self, events: int, values: Targets
    ) -> tuple[U8, I64, Targets, I64, list[tuple[int, str]]]:
        """The steps of an inline batch; which events are learned, and which can't be."""
        row = np.repeat(np.arange(events), 2)
        op = np.tile(np.array([PREDICT, LEARN], np.uint8), events)
        taught = row[::2]
        target: Targets
        if isinstance(values, np.ndarray):
            target = np.empty(2 * events)
            target[1::2] = values
        else:
            target = [value for value in values for _ in (PREDICT, LEARN)]
        if self.task is Task.ANOMALY or every_usable(values, self.task):
            return op, row, target, taught, []
        learnable = usable(values, self.task)
        keep = np.ones(2 * events, np.bool_)
        keep[1::2] = learnable
        refused = [(event, NO_VALUE) for event in np.flatnonzero(learnable == 0).tolist()]
        target = select(target, np.flatnonzero(keep))
        return op[keep], row[keep], target, np.flatnonzero(learnable), refused

    def _score(self, learned: Learned) -> None:
        for name, answers in learned.predictions.items():
            for running in self.metrics[name].values():
                running.update_many(learned.target, answers)

    def _watch(
        self, learned: Learned, taught: I64, features: F64, rows: I64, times: I64, asked: I64
    ) -> list[Alarm]:
        """All monitors; their alarms are merged by the step (`taught`, `asked`) that gave them."""
        found: list[tuple[int, int, Alarm]] = []
        for i, (watch, column) in enumerate(zip(self._watches, self._subjects, strict=True)):
            if column < 0:
                answers = learned.predictions[self.champion]
                values = losses(self.task, learned.target, answers, watch.monitor.loss)
                alarms, steps = watch.update_many(values, learned.times), taught
            else:
                alarms, steps = watch.update_many(features[rows, column], times), asked
            found += [(int(steps[alarm.row]), i, alarm) for alarm in alarms]
        return [alarm for *_, alarm in sorted(found, key=lambda entry: entry[:2])]
