"""Pickles name no module of the program, and read nothing of it that is not in the table."""

from __future__ import annotations

import pickle
import pickletools
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from river import compose, linear_model, preprocessing, tree

from anabranch.models.drift.detectors import monitor
from anabranch.models.learners import pickling
from anabranch.models.learners.checkpoint import Checkpoint
from anabranch.models.learners.compiled import COMPILED, learner_for
from anabranch.models.learners.learner import Learner, Task
from anabranch.models.learners.null import NullLearner
from anabranch.models.learners.pickling import pickled, unpickled
from anabranch.models.learners.resampling import ResampledLearner
from anabranch.models.learners.segmented import SegmentedLearner
from anabranch.models.learners.subsampling import SubsampledLearner
from anabranch.models.metrics.slices import slice_by
from anabranch.models.pickled_classes import PICKLED_CLASSES
from anabranch.models.prequential.model_set import PrequentialSettings
from anabranch.models.prequential.prequential import Prequential
from anabranch.models.prequential.step_record import StepRecord
from anabranch.models.rollout.deployment import Deployment
from anabranch.models.rollout.policies import POLICIES, Canary
from anabranch.models.rollout.serving import Serving
from anabranch.state.errors import StateError

NAMES = ("a", "b")
REFUSED = "written by version 0.1: replay its history into a new state directory"


def modules(blob: bytes) -> set[str]:
    """Names of modules of the program in a pickle: its texts, whatever they are for."""
    texts = {str(argument) for _, argument, _ in pickletools.genops(blob) if argument is not None}
    return {text for text in texts if text.startswith("anabranch")}


def learned(model: Any, task: Task = Task.BINARY) -> Learner:
    learner = learner_for(model, NAMES, task)
    op, row = np.array([1, 1, 0], np.uint8), np.array([0, 1, 0])
    learner.run(np.array([[1.0, 2.0], [3.0, 4.0]]), op, row, np.array([1.0, 0.0, 0.0]))
    return learner


def learners() -> list[Learner]:
    scaled = preprocessing.StandardScaler() | linear_model.LogisticRegression()
    halves = {True: 0.5, False: 0.5}
    return [
        learned(scaled),
        learned(tree.HoeffdingTreeClassifier()),
        NullLearner(NAMES, Task.BINARY),
        ResampledLearner(learned(scaled), halves, seed=1),
        SegmentedLearner(SubsampledLearner(learned(scaled), 0.5), max_segments=3),
    ]


@pytest.mark.parametrize("learner", learners(), ids=lambda each: type(each).__name__)
def test_learners_are_pickled_without_the_names_of_modules(learner: Learner) -> None:
    blob = pickled(learner)
    assert not modules(blob)
    again = unpickled(blob)
    assert (type(again), again.version) == (type(learner), learner.version)
    assert again.describe() == learner.describe()


def test_a_step_with_everything_is_persisted_without_the_names_of_modules() -> None:
    def make() -> Prequential:
        deployment = Deployment("m", ["n"], Canary(), Task.BINARY, "p")
        return Prequential(
            {name: learned(linear_model.LogisticRegression()) for name in ("m", "n")},
            PrequentialSettings(
                metrics=["Accuracy", "LogLoss", "ROCAUC", "F1", "RollingROCAUC"],
                monitors=[monitor("loss"), monitor("a", "KSWIN"), monitor("loss", by="shop")],
                slices=[slice_by("shop")],
                rollouts=Serving(deployment, Task.BINARY),
            ),
        )

    image = make().changes()
    assert "step" in image.blobs
    assert not set().union(*map(modules, (b for b in image.blobs.values() if b[:1] == b"\x80")))
    make().restore(image)


@pytest.mark.parametrize("path", PICKLED_CLASSES.values())
def test_every_class_of_the_table_is_where_the_table_says(path: str) -> None:
    module, _, name = path.rpartition(".")
    found = getattr(import_module(f"anabranch.{module}"), name)
    assert found.__module__ == f"anabranch.{module}"
    assert not modules(pickled(found))


@pytest.mark.parametrize("kind", [*COMPILED, *POLICIES])
def test_what_can_be_registered_can_be_restored(kind: type) -> None:
    """What is pickled without a number in the table is refused when it is read."""
    path = f"{kind.__module__}.{kind.__qualname__}".removeprefix("anabranch.")
    assert path in PICKLED_CLASSES.values()


def test_a_moved_class_is_read_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """As another build would: the same number, and another module in the table."""
    program = """
import sys, types
from anabranch.models.learners import null, pickling
from anabranch.models.pickled_classes import PICKLED_CLASSES
moved = types.ModuleType("anabranch.models.learners.elsewhere")
moved.NullLearner = null.NullLearner
null.NullLearner.__module__ = moved.__name__
sys.modules[moved.__name__] = moved
code = next(c for c, path in PICKLED_CLASSES.items() if path.endswith(".NullLearner"))
import copyreg
copyreg.remove_extension("anabranch.models.learners.null", "NullLearner", 0xAB00 + code)
copyreg.add_extension(moved.__name__, "NullLearner", 0xAB00 + code)
pickling._REGISTERED |= {(moved.__name__, "NullLearner")}
print(pickling.unpickled(sys.stdin.buffer.read()).version)
"""
    learner = NullLearner(NAMES, Task.BINARY)
    learner.version = 7
    done = subprocess.run(
        [sys.executable, "-c", program], input=pickled(learner), capture_output=True, check=True
    )
    assert done.stdout == b"7\n"


def test_classes_of_the_program_that_are_not_in_the_table_are_not_read() -> None:
    with pytest.raises(pickle.UnpicklingError, match="MemoryBus is not a class that is kept"):
        unpickled(b"\x80\x05\x8c\x1eanabranch.dataflows.bus.memory\x8c\tMemoryBus\x93)\x81.")


def of_version_0_1(path: str, value: Any = None) -> bytes:
    """The pickle of an object of that class, as version 0.1 wrote it: by module and name."""
    module, _, name = path.rpartition(".")
    parent = module.partition(".")[0]
    there = {each: sys.modules.get(each) for each in (parent, module)}
    sys.modules[parent], sys.modules[module] = ModuleType(parent), ModuleType(module)
    kind = type(name, (), {"__module__": module})
    setattr(sys.modules[module], name, kind)
    try:
        return pickle.dumps(kind() if value is None else [(kind(), value)], protocol=5)
    finally:
        for each, module_there in there.items():
            del sys.modules[each]
            if module_there is not None:
                sys.modules[each] = module_there


@pytest.mark.parametrize("path", sorted(pickling._VERSION_0_1))
def test_what_version_0_1_wrote_is_refused_and_the_way_named(path: str) -> None:
    with pytest.raises(pickle.UnpicklingError, match=REFUSED):
        unpickled(of_version_0_1(path))


def test_a_state_of_version_0_1_is_refused_in_one_sentence(tmp_path: Path) -> None:
    checkpoint = Checkpoint("m", learned(linear_model.LogisticRegression()))
    image = checkpoint.changes()
    image.blobs["full"] = of_version_0_1("models.compiled.CompiledLinear")
    with pytest.raises(StateError, match=f"model 'm' can't be read from the state: .*{REFUSED}"):
        checkpoint.restore(image)
    with pytest.raises(StateError, match=REFUSED):
        StepRecord.load(of_version_0_1("models.step_record.StepRecord"))


def test_a_model_that_version_0_1_registered_is_read() -> None:
    """A registry holds pickles of River models, which name no class of the program."""
    model = learned(preprocessing.StandardScaler() | linear_model.LogisticRegression()).to_river()
    assert unpickled(pickle.dumps(model, protocol=5)).learn_one is not None


def clip(x: dict[str, float]) -> dict[str, float]:
    return {name: min(value, 1.0) for name, value in x.items()}


def test_models_of_the_users_own_module_are_pickled_by_name() -> None:
    learner = learned(compose.FuncTransformer(clip) | linear_model.LogisticRegression())
    again = unpickled(pickled(learner))
    assert again.to_river()["clip"].func is clip


def test_a_users_module_may_be_called_models() -> None:
    """Other classes of a module called like one of version 0.1 are the user's."""
    blob = of_version_0_1("models.compiled.Mine")
    module = ModuleType("models.compiled")
    module.Mine = type("Mine", (), {"__module__": "models.compiled"})  # type: ignore[attr-defined]
    sys.modules["models.compiled"] = module
    try:
        assert type(unpickled(blob)) is module.Mine
    finally:
        del sys.modules["models.compiled"]
