"""Quality by slices equals the metrics of each slice's own rows, whatever the cut and the stops."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from river import anomaly, linear_model, naive_bayes, tree

from anabranch import Event, Pipeline, field, inline, since_last, slice_by, window
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics
from anabranch.models.categories import Categories
from anabranch.models.learners.compiled import learner_for
from anabranch.models.learners.learner import Task
from anabranch.models.learners.targets import select
from anabranch.models.metrics.metrics import metric
from anabranch.models.metrics.sliced_metrics import SlicedMetrics, stored_report
from anabranch.models.metrics.slices import SliceBy
from anabranch.models.prequential.batch import EventBatch, LabelBatch
from anabranch.models.prequential.model_set import PrequentialSettings
from anabranch.models.prequential.prequential import Prequential
from anabranch.state.errors import DeclarationError
from anabranch.state.labels.label_limits import LabelLimits
from anabranch.state.store.delta import decode, encode, merge
from tests.support.checkpoint_pipeline import PARTITIONS, Kept, trades, went_well
from tests.support.commands import Call, Command, caller

NAMES = ("a", "b")
SLICES = [
    slice_by("country", max_values=3),
    slice_by("country", ("US", "DE"), name="two"),
    slice_by("b", bins=(-0.5, 0.5)),
    slice_by("age", bins=(30,), bin_names=("young", "old")),
    slice_by("known"),
]
CASES: dict[str, tuple[Task, Any, tuple[str, ...]]] = {
    "binary": (
        Task.BINARY,
        linear_model.LogisticRegression(),
        ("Accuracy", "LogLoss", "ROCAUC", "F1", "CohenKappa"),
    ),
    "labels": (Task.BINARY, tree.HoeffdingTreeClassifier(grace_period=20), ("Recall", "LogLoss")),
    "regression": (Task.REGRESSION, linear_model.LinearRegression(), ("MAE", "RMSE", "MSE", "R2")),
    "several": (Task.MULTICLASS, naive_bayes.GaussianNB(), ("Accuracy", "MacroF1")),
}


@dataclass
class Stream:
    """Events, labels that come later, and in which order all of it comes."""

    features: Any
    times: Any
    fields: dict[str, list[Any]]
    truths: Any
    order: list[tuple[str, int]]

    @property
    def ids(self) -> list[str]:
        return [f"e{i}" for i in range(len(self.times))]


def stream(task: Task, seed: int, rows: int = 120) -> Stream:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, 2))
    score = features[:, 0] + rng.normal(size=rows)
    truths: Any = (score > 0).astype(float) if task is Task.BINARY else score
    if task is Task.MULTICLASS:
        truths = [("low", "high")[int(each > 0)] for each in score]
    fields: dict[str, list[Any]] = {
        "country": rng.choice(["US", "DE", "FR", "GB", "IT"], rows, p=[0.4, 0.2, 0.2, 0.1, 0.1])
        .tolist(),
        "age": [None if age < 20 else int(age) for age in rng.integers(15, 60, rows)],
        "known": [(None, True, False)[k] for k in rng.integers(0, 3, rows)],
    }  # fmt: skip
    times = np.arange(rows) * 1000
    # Some labels never come, some come twice, some before their event.
    labels = [(i, i * 1000 + int(rng.integers(-2000, 40_000))) for i in range(rows)]
    labels = [each for each in labels if rng.random() < 0.9] + labels[:5]
    turns = [(int(times[i]), 0, "event", i) for i in range(rows)]
    turns += [(when, 1, "label", i) for i, when in labels]
    return Stream(features, times, fields, truths, [(t, i) for *_, t, i in sorted(turns)])


def step_for(case: str, slices: list[SliceBy], inline_labels: bool = False) -> Prequential:
    task, model, metrics = CASES[case]
    return Prequential(
        {name: learner_for(model.clone(), NAMES, task) for name in ("m", "n")},
        PrequentialSettings(
            metrics=metrics,
            rules=LabelLimits(timeout_ms=20_000, early_ms=5000),
            default={Task.BINARY: False, Task.MULTICLASS: "low"}.get(task, 0.5),
            inline=inline_labels,
            slices=slices,
        ),
    )


def run(step: Prequential, found: Stream, cuts: list[int]) -> list[Any]:
    """Work through a stream in pieces; what was learned in each."""
    outcomes = []
    for low, high in pairwise([0, *sorted(cuts), len(found.order)]):
        part = found.order[low:high]
        events = [i for kind, i in part if kind == "event"]
        labels = [i for kind, i in part if kind == "label"]
        order, e, j = [], 0, 0
        for kind, _ in part:
            order.append(e if kind == "event" else len(events) + j)
            e, j = e + (kind == "event"), j + (kind == "label")
        at = np.array(events, np.int64)
        outcome = step.run(
            EventBatch(
                features=np.ascontiguousarray(found.features[at]),
                times=found.times[at],
                ids=[found.ids[i] for i in events],
                tags=at.astype(np.int32),
                fields={name: [values[i] for i in events] for name, values in found.fields.items()},
            ),
            LabelBatch(
                ids=[found.ids[i] for i in labels],
                values=select(found.truths, np.array(labels, np.int64)),
                times=found.times[np.array(labels, np.int64)],
            ),
            order=np.array(order, np.int64),
        )
        outcomes.append(outcome.learned)
    return outcomes


def value_of(declared: SliceBy, found: Stream, event: int, seen: list[str]) -> str:
    """In which part of a slice an event is; by another way than the code under test."""
    if declared.bins is None:
        raw = found.fields[declared.subject][event]
        text = {None: "null", True: "true", False: "false"}.get(raw, raw)
        known = list(declared.names) if declared.names else seen
        return text if text in known else "other"
    number = found.features[event, 1] if declared.subject == "b" else found.fields["age"][event]
    if number is None:
        return "null"
    return declared.names[sum(number >= edge for edge in declared.bins)]


def expected(case: str, found: Stream, learned: list[Any]) -> Any:
    """The metrics over the rows of each slice, picked from what was learned without slices."""
    task, _, names = CASES[case]
    report: Any = {}
    for declared in SLICES:
        texts = [
            {None: "null", True: "true", False: "false"}.get(raw, raw)
            for raw in found.fields.get(declared.subject, [])
        ]
        seen = list(dict.fromkeys(texts))[: declared.max_values]
        values: Any = {}
        for part in learned:
            events = part.tags.tolist()
            of = np.array([value_of(declared, found, event, seen) for event in events], object)
            for value in set(of.tolist()):
                rows = np.flatnonzero(of == value)
                cell = values.setdefault(
                    value,
                    {
                        "labels": 0,
                        "quality": {
                            model: {name: metric(name, task) for name in names}
                            for model in ("m", "n")
                        },
                    },
                )
                cell["labels"] += len(rows)
                for model, metrics in cell["quality"].items():
                    for each in metrics.values():
                        predictions = part.predictions[model].take(rows)
                        each.update_many(select(part.target, rows), predictions)
        for cell in values.values():
            for metrics in cell["quality"].values():
                metrics.update({name: each.value for name, each in metrics.items()})
        report[declared.name] = values
    return report


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    cuts=st.lists(st.integers(0, 220), max_size=8),
    killed=st.booleans(),
)
def test_each_slice_has_the_metrics_of_its_own_rows(
    case: str, seed: int, cuts: list[int], killed: bool
) -> None:
    found = stream(CASES[case][0], seed)
    plain = run(step_for(case, []), found, [])
    want = expected(case, found, plain)
    cuts = [min(cut, len(found.order)) for cut in cuts]
    if not killed:
        step = step_for(case, SLICES)
        run(step, found, cuts)
        assert step.models.slices.report() == want
        return
    step, deltas = step_for(case, SLICES), []
    for low, high in pairwise([0, *sorted(cuts), len(found.order)]):
        piece = Stream(
            found.features, found.times, found.fields, found.truths, found.order[low:high]
        )
        deltas.append(step.changes())
        run(step, piece, [])  # is lost, and done again
        step = step_for(case, SLICES)
        step.restore(merge([decode(encode(delta)) for delta in deltas]))
        run(step, piece, [])
    assert step.models.slices.report() == want
    blob = step.models.slices.changes()
    assert blob is not None
    assert stored_report(blob) == want


def test_inline_labels_are_scored_by_slice() -> None:
    found = stream(Task.BINARY, 3)
    truths = found.truths.copy()
    truths[7] = np.nan  # is predicted and not learned
    whole, cut = (step_for("binary", SLICES, inline_labels=True) for _ in range(2))
    learned = whole.run_inline(
        EventBatch(
            found.features, found.times, tags=np.arange(120, dtype=np.int32), fields=found.fields
        ),
        truths,
    ).learned
    for low, high in pairwise([0, 1, 50, 120]):
        part = slice(low, high)
        fields = {name: values[part] for name, values in found.fields.items()}
        cut.run_inline(
            EventBatch(found.features[part], found.times[part], fields=fields), truths[part]
        )
    want = expected("binary", found, [learned])
    assert whole.models.slices.report() == cut.models.slices.report() == want
    assert sum(cell["labels"] for cell in want["country"].values()) == 119


def test_a_new_slice_starts_now_and_the_others_continue() -> None:
    found = stream(Task.BINARY, 5)
    half = Stream(found.features, found.times, found.fields, found.truths, found.order[:100])
    rest = Stream(found.features, found.times, found.fields, found.truths, found.order[100:])
    first = step_for("binary", SLICES[:2])
    run(first, half, [])
    image = first.changes()
    whole = step_for("binary", SLICES)
    run(whole, found, [])
    changed = step_for("binary", [SLICES[2], SLICES[1]])
    changed.restore(image)
    image = merge([image, changed.changes()])
    again = step_for("binary", [SLICES[2], SLICES[1]])
    again.restore(image)
    for step in (changed, again):
        learned = sum(len(part.times) for part in run(step, rest, []))
        report = step.models.slices.report()
        assert report["two"] == whole.models.slices.report()["two"]
        new = sum(cell["labels"] for cell in report["b"].values())
        assert 0 < new < learned  # what waited before is in no slice
    none = step_for("binary", [])
    none.restore(image)
    run(none, rest, [30])
    dropped = merge([image, none.changes()])
    assert "slices" not in dropped.blobs
    assert "groups" not in dropped.rows["pending/waiting"].columns


def test_a_model_that_comes_and_goes() -> None:
    found = stream(Task.BINARY, 6)
    step = step_for("binary", SLICES)
    run(step, found, [])
    later = learner_for(linear_model.LogisticRegression(), NAMES, Task.BINARY)
    step.models.add("late", later)
    step.models.remove("n")
    cell = step.models.slices.report()["country"]["US"]["quality"]
    assert set(cell) == {"m", "late"}
    assert cell["late"]["LogLoss"] == 0.0


@given(
    values=st.lists(st.sampled_from(["a", "b", "c", "other", "x" * 101, None, True]), max_size=30),
    most=st.integers(1, 4),
    cut=st.integers(0, 30),
    backwards=st.booleans(),
)
def test_a_vocabulary_numbers_what_comes_first(
    values: list[Any], most: int, cut: int, backwards: bool
) -> None:
    whole, parts = Categories(most), Categories(most)
    order = np.arange(len(values))[:: -1 if backwards else 1]
    got = whole.codes(values, order).tolist()
    came = [values[i] for i in order.tolist()]
    named = [{None: "null", True: "true"}.get(each, each) for each in came]
    known = list(dict.fromkeys(each for each in named if len(each) < 101 and each != "other"))
    assert whole.names == known[:most]
    want = [known.index(n) if n in known[:most] else most for n in named]
    assert [got[i] for i in order.tolist()] == want
    assert [*parts.codes(came[:cut]).tolist(), *parts.codes(came[cut:]).tolist()] == want


class Sale(Event):
    id: str
    ts: int
    card: str
    price: float
    pieces: int | None
    abroad: bool
    returned: bool


def sales(*slices: Any, **changes: Any) -> Pipeline:
    declared: dict[str, Any] = {
        "name": "sales",
        "event": Sale,
        "label": inline("returned"),
        "features": [field("price"), since_last("card"), window("card", over="1d", stats="count")],
        "model": linear_model.LogisticRegression(),
        "slices": slices,
    }
    return Pipeline(**declared | changes)


@pytest.mark.parametrize(
    ("declare", "said"),
    [
        (lambda: slice_by("card", ()), "needs its values in a tuple"),
        (lambda: slice_by("card", "US"), "needs its values in a tuple"),
        (lambda: slice_by("card", (1, 2)), "texts or booleans as values, and bins= for numbers"),
        (lambda: slice_by("card", ("US", "US")), "needs values that differ"),
        (lambda: slice_by("card", ("US", "other")), "'other' is the name of all others"),
        (lambda: slice_by("card", ("US",), bins=(1,)), "not several of them at once"),
        (lambda: slice_by("card", max_values=0), "from 1 to 200 values, not max_values=0"),
        (lambda: slice_by("card", max_values=201), "not max_values=201"),
        (lambda: slice_by("price", bins=()), "needs its bins in a tuple of numbers"),
        (lambda: slice_by("price", bins=(2, 1)), "needs bins that rise"),
        (lambda: slice_by("price", bins=(float("nan"),)), "a tuple of numbers"),
        (lambda: slice_by("price", bins=(1,), bin_names=("low",)), "1 bin edges and so 2 bins"),
        (lambda: slice_by("price", bins=(1,), bin_names=("low", "low")), "all different"),
        (lambda: slice_by("card", bin_names=("a", "b")), "needs bins= too"),
        (lambda: slice_by(3), "name of a field or of a feature as text"),
        (lambda: sales("card"), "in the slices of pipeline 'sales' is not a slice: use slice_by"),
        (lambda: sales(slice_by("cart")), "by an unknown field: Sale has id, ts, card"),
        (lambda: sales(slice_by("price")), "is by a number: give bins="),
        (lambda: sales(slice_by("card_1d_count")), "by a feature, which is a number: give bins="),
        (lambda: sales(slice_by("card", bins=(1,))), "must be a number, but Sale.card is text"),
        (lambda: sales(slice_by("abroad", ("yes",))), "by a boolean: its values are True and"),
        (lambda: sales(slice_by("ts", bins=(1,))), "by the event's time"),
        (
            lambda: sales(slice_by("card"), slice_by("card", max_values=2)),
            "two slices .* have the name 'card'",
        ),
        (lambda: sales(slice_by("card"), metrics=()), "has no metrics to slice"),
        (
            lambda: sales(slice_by("card"), label=None, model=anomaly.HalfSpaceTrees()),
            "has no metrics to slice",
        ),
    ],
)
def test_what_can_not_work_is_one_sentence(declare: Any, said: str) -> None:
    with pytest.raises(DeclarationError, match=said) as found:
        declare()
    assert "\n" not in str(found.value)


def test_a_pipeline_reads_what_its_slices_need() -> None:
    declared = sales(
        slice_by("abroad"),
        slice_by("pieces", bins=(2,)),
        slice_by("price", bins=(9.99,)),
        slice_by("card_since_last_1d", bins=(86_400,), bin_names=("known", "new"), name="card"),
    )
    assert declared.model_fields == ["abroad", "pieces"]
    assert declared.read_fields == ["price", "card", "abroad", "pieces"]
    assert declared.number_fields == ["pieces"]
    assert sales().model_fields == []


def test_slices_are_exported() -> None:
    registry = CollectorRegistry()
    worker = WorkerMetrics("sales", registry)
    slices = SlicedMetrics([slice_by("country", max_values=1)], NAMES, ("Accuracy",), Task.BINARY)
    slices.add("m")
    groups = slices.groups_of({"country": ["US", "DE", "US"]}, np.zeros((3, 2)), np.arange(3))
    learner = learner_for(linear_model.LogisticRegression(), NAMES, Task.BINARY)
    op, row, truths = np.zeros(3, np.uint8), np.arange(3), np.array([0.0, 1.0, 1.0])
    slices.score(groups, truths, {"m": learner.run(np.zeros((3, 2)), op, row, truths)})
    worker.on_slices(slices.report())
    labels = {"pipeline": "sales", "slice": "country"}
    assert registry.get_sample_value("anabranch_slice_labels", {**labels, "value": "US"}) == 2
    assert registry.get_sample_value("anabranch_slice_labels", {**labels, "value": "other"}) == 1
    cell = {**labels, "model": "m", "metric": "Accuracy", "value": "US"}
    assert registry.get_sample_value("anabranch_slice_quality", cell) == 0.5


@pytest.fixture
def call(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    return caller(tmp_path, capfd)


DECLARED = """metrics=("LogLoss",),
    slices=[
        slice_by("account", max_values=3),
        slice_by(
            "account_since_last_2h", bins=(7200,), bin_names=("known", "new"), name="account seen"
        ),
    ],"""


def sliced(kept: Kept) -> None:
    kept.declare('metrics=("LogLoss",),', DECLARED)
    file = kept.directory / "flow.py"
    file.write_text(file.read_text().replace("import Event", "import slice_by, Event"))


def printed_state(kept: Kept) -> Any:
    done = kept.call("state", "state", "--json")
    went_well(done)
    places = {place["name"]: place for place in json.loads(done.out)["state_partitions"]}
    return places["models"]["slices"], places["models"]["models"]["LogisticRegression"]["LogLoss"]


def test_a_state_keeps_and_shows_them(tmp_path: Path, call: Call) -> None:
    kept = Kept(tmp_path, call)
    sliced(kept)
    kept.publish(trades(80))
    stops = 0
    while kept.run_until(9, batch=5):
        stops += 1
    assert stops > 2
    slices, quality = printed_state(kept)
    assert set(slices) == {"account", "account seen"}
    assert len(slices["account"]) == 4
    assert "other" in slices["account"]
    assert set(slices["account seen"]) == {"known", "new"}
    counts = {
        name: sum(cell["labels"] for cell in values.values()) for name, values in slices.items()
    }
    assert len(set(counts.values())) == 1
    for values in slices.values():
        mean = sum(
            cell["labels"] * cell["quality"]["LogisticRegression"]["LogLoss"]
            for cell in values.values()
        )
        assert mean / counts["account"] == pytest.approx(quality, rel=1e-9)
    shown = kept.call("state", "state")
    went_well(shown)
    assert "metrics of LogisticRegression by slice" in shown.out
    for word in ("account seen", "known", "new", "other"):
        assert word in shown.out


def test_of_several_workers_too(tmp_path: Path, call: Call) -> None:
    kept = Kept(tmp_path, call)
    sliced(kept)
    kept.publish(trades(80))
    with Command(
        tmp_path, "run", "flow.py", "--bus", "sqlite:bus", "--state", "state", "--until-end",
        "--checkpoint-interval", "1ms", "--processes", "2",
    ) as command:  # fmt: skip
        went_well(command.done(200.0))
    slices, quality = printed_state(kept)
    labels = sum(cell["labels"] for cell in slices["account"].values())
    mean = sum(
        cell["labels"] * cell["quality"]["LogisticRegression"]["LogLoss"]
        for cell in slices["account"].values()
    )
    assert labels > PARTITIONS
    assert mean / labels == pytest.approx(quality, rel=1e-9)
