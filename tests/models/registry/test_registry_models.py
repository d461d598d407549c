"""River models through the registry and files predict and continue as if never moved."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from river import (
    anomaly,
    compose,
    ensemble,
    forest,
    linear_model,
    naive_bayes,
    neighbors,
    optim,
    preprocessing,
    tree,
)

from anabranch.models.learners.compiled import learner_for
from anabranch.models.learners.learner import Task
from anabranch.models.learners.linear import CompiledLinear
from anabranch.models.registry.compatibility import (
    check_by_trial,
    check_columns,
    check_model,
    known_features,
    same_declaration,
)
from anabranch.models.registry.diff import diff_versions
from anabranch.models.registry.registry import Registry
from anabranch.models.registry.river_file import read_river_file, write_river_file
from anabranch.models.registry.version import Version, seal
from anabranch.state.errors import InputError, StateError
from tests.support.registered_models import (
    COLUMNS,
    FEATURES,
    TARGETS,
    about,
    go_on,
    learned,
    river_of,
)

LOGREG, LINREG = linear_model.LogisticRegression, linear_model.LinearRegression
SCALER = preprocessing.StandardScaler

RIVER = [
    (Task.BINARY, forest.ARFClassifier(n_models=2, seed=1, grace_period=20)),
    (Task.BINARY, SCALER() | forest.AMFClassifier(n_estimators=2, seed=1)),
    (Task.BINARY, tree.HoeffdingTreeClassifier(grace_period=20, delta=0.1)),
    (Task.BINARY, ensemble.BaggingClassifier(LOGREG(), n_models=2, seed=1)),
    (Task.BINARY, naive_bayes.GaussianNB()),
    (Task.BINARY, neighbors.KNNClassifier(engine=neighbors.LazySearch(window_size=50))),
    (Task.BINARY, SCALER() | linear_model.PAClassifier()),
    (Task.BINARY, LOGREG(optimizer=optim.FTRLProximal())),
    (Task.REGRESSION, tree.HoeffdingTreeRegressor(grace_period=20)),
    (Task.REGRESSION, forest.ARFRegressor(n_models=2, seed=1, grace_period=20)),
    (Task.ANOMALY, anomaly.HalfSpaceTrees(n_trees=3, window_size=20, seed=1)),
]
COMPILED = [
    (Task.BINARY, LOGREG()),
    (Task.BINARY, SCALER() | LOGREG(optimizer=optim.Adam(0.01), l2=1e-3)),
    (Task.BINARY, SCALER(with_std=False) | LOGREG(optimizer=optim.AdaGrad())),
    (Task.REGRESSION, SCALER() | LINREG(intercept_lr=0.1)),
    (Task.REGRESSION, LINREG(optimizer=optim.Adam())),
]


def names(value: Any) -> str:
    return getattr(value, "value", None) or str(value)


def through_files(model: Any, task: Task, directory: Path) -> Any:
    """Registered, exported, read by plain River, imported into another registry, loaded."""
    registry, other = Registry.of(directory / "one"), Registry.of(directory / "two")
    version = registry.add(model, about(model, task=task))
    file = directory / "m.pickle"
    write_river_file(file, registry.pickle(version), version)
    with file.open("rb") as stream:
        assert type(pickle.load(stream)) is type(model)
    found = read_river_file(file)
    assert found.about == version
    read = found.unpickle()
    check_model(read, task, "m")
    check_by_trial(read, task, COLUMNS, "m")
    return other.load(other.add(read, about(read, task=task)))


@pytest.mark.parametrize(("task", "model"), RIVER, ids=names)
def test_a_river_model_predicts_and_continues_bit_for_bit(
    task: Task, model: Any, tmp_path: Path
) -> None:
    learner = learned(model.clone(), task)
    moved = learner_for(through_files(river_of(learner), task, tmp_path), COLUMNS, task)
    here, there = go_on(learner), go_on(moved)
    assert here.values.tobytes() == there.values.tobytes()


@pytest.mark.parametrize(("task", "model"), COMPILED, ids=names)
def test_a_compiled_model_continues_compiled_and_as_river(
    task: Task, model: Any, tmp_path: Path
) -> None:
    learner = learned(model.clone(), task)
    assert isinstance(learner, CompiledLinear)
    river = through_files(river_of(learner), task, tmp_path)
    moved = learner_for(river, COLUMNS, task)
    assert isinstance(moved, CompiledLinear)
    here = go_on(learner).values
    np.testing.assert_allclose(go_on(moved).values, here, rtol=0, atol=1e-12)
    half, as_river = len(FEATURES) // 2, []
    for row, target in zip(FEATURES[half:].tolist(), TARGETS[task][half:].tolist(), strict=True):
        x = dict(zip(COLUMNS, row, strict=True))
        binary = task is Task.BINARY
        as_river.append(river.predict_proba_one(x)[True] if binary else river.predict_one(x))
        river.learn_one(x, target == 1.0 if binary else target)
    np.testing.assert_allclose(as_river, here, rtol=1e-12, atol=1e-12)


def test_a_learner_from_the_registry_continues_its_count(tmp_path: Path) -> None:
    registry, learner = Registry(tmp_path), learned(LOGREG(), Task.BINARY)
    version = registry.add(river_of(learner), about(river_of(learner), rows=learner.version))
    again = registry.learner(version, COLUMNS, Task.BINARY)
    assert again.version == learner.version == len(FEATURES) // 2
    assert go_on(again).values.tobytes() == go_on(learner).values.tobytes()


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    model = river_of(learned(LOGREG(), Task.BINARY))
    registry, file, told = Registry(tmp_path / "r"), tmp_path / "m.p", tmp_path / "m.p.json"
    version = registry.add(model, about(model))
    write_river_file(file, registry.pickle(version), version)
    whole, said = file.read_bytes(), told.read_bytes()
    cases: list[tuple[Path, bytes, type[Exception], str]] = [
        (file, whole[:50], StateError, "m.p is damaged, or m.p.json belongs to another file"),
        (file, b"", StateError, "is damaged"),
        (file, whole + b"x", StateError, "is damaged"),
        (told, said[:100], StateError, "m.p.json is damaged"),
        (told, b"{}", StateError, "not the description of a model"),
        (told, b"\xff\xfe", StateError, "not the description of a model"),
        (told, said.replace(b'"trades"', b'"clicks"'), StateError, "checksum does not match"),
    ]
    for path, content, kind, words in cases:
        path.write_bytes(content)
        with pytest.raises(kind, match=words):
            read_river_file(file)
        file.write_bytes(whole)
        told.write_bytes(said)
    with pytest.raises(InputError, match=r"--river 0.1 contradicts"):
        read_river_file(file, "0.1")
    told.write_bytes(seal(msgspec.structs.replace(version, versions={"river": "0.1"})))
    with pytest.raises(StateError, match=r"m.p was written with river 0\.1"):
        read_river_file(file)
    told.unlink()
    with pytest.raises(InputError, match="not known which River wrote it"):
        read_river_file(file)
    with pytest.raises(StateError, match=r"was written with river 0\.1"):
        read_river_file(file, "0.1")
    for address in ("https://example.org/m.pickle", "kafka://localhost/models"):
        with pytest.raises(InputError, match="not a local file"):
            read_river_file(Path(address))
    with pytest.raises(InputError, match="can't be read: No such file"):
        read_river_file(tmp_path / "nothing")
    for content in (b"", b"hello", whole[:50], b"\x80\x05c__main__\nNothing\n."):
        file.write_bytes(content)
        with pytest.raises(InputError, match="can't be unpickled"):
            read_river_file(file, version.river).unpickle()


def river_learned(model: Any, rows: int = 100, labels: tuple[Any, Any] = (False, True)) -> Any:
    for row, target in zip(FEATURES[:rows].tolist(), TARGETS[Task.BINARY].tolist(), strict=False):
        model.learn_one(dict(zip(COLUMNS, row, strict=True)), labels[int(target)])
    return model


def test_objects_other_than_models_of_the_task_are_refused() -> None:
    for thing in ({"a": 1}, 7, LOGREG, None):
        with pytest.raises(InputError, match="not a River model"):
            check_model(thing, Task.BINARY, "m")
    with pytest.raises(InputError, match="LinearRegression can't do a binary task"):
        check_model(LINREG(), Task.BINARY, "m")
    with pytest.raises(InputError, match="can't do a regression task"):
        check_model(SCALER() | LOGREG(), Task.REGRESSION, "m")
    with pytest.raises(InputError, match="has no seed"):
        check_model(
            ensemble.BaggingClassifier(tree.HoeffdingAdaptiveTreeClassifier()), Task.BINARY, "m"
        )


def test_a_model_of_other_classes_or_that_predicts_nan_is_refused() -> None:
    check_by_trial(river_learned(naive_bayes.GaussianNB()), Task.BINARY, COLUMNS, "m")
    check_by_trial(river_learned(naive_bayes.GaussianNB(), labels=(0, 1)), Task.BINARY, COLUMNS, "")
    odd = river_learned(naive_bayes.GaussianNB(), labels=("bad", "good"))
    with pytest.raises(InputError, match=r"learned the classes 'good', 'bad', and the label"):
        check_by_trial(odd, Task.BINARY, COLUMNS, "m")
    ruined = LINREG()
    ruined.learn_one({"a": 1e200}, 1e200)
    ruined.intercept = float("nan")
    with pytest.raises(InputError, match="predicts NaN or infinity"):
        check_by_trial(ruined, Task.REGRESSION, COLUMNS, "m")


def test_a_multiclass_model_is_tried_with_one_of_its_classes() -> None:
    bayes = river_learned(naive_bayes.GaussianNB(), labels=("no", "yes"))
    before = pickle.dumps(bayes)
    check_model(bayes, Task.MULTICLASS, "m")
    check_by_trial(bayes, Task.MULTICLASS, COLUMNS, "m")
    check_by_trial(naive_bayes.GaussianNB(), Task.MULTICLASS, COLUMNS, "m")
    assert pickle.dumps(bayes) == before  # a copy was tried
    with pytest.raises(InputError, match="more than two classes"):
        check_model(LOGREG(), Task.MULTICLASS, "m")


class Picky(linear_model.LogisticRegression):  # type: ignore[misc]
    """Needs a feature."""

    def predict_proba_one(self, x: dict[str, float]) -> Any:
        return super().predict_proba_one({"city": x["city"]})


def test_a_model_that_fails_on_the_features_is_refused() -> None:
    with pytest.raises(InputError, match=r"does not work with the features of the pipeline.*city"):
        check_by_trial(Picky(), Task.BINARY, COLUMNS, "m")


@pytest.mark.parametrize(
    "model",
    [
        SCALER() | LOGREG(),
        LOGREG(optimizer=optim.AdaGrad()),
        SCALER() | naive_bayes.GaussianNB(),
        tree.HoeffdingTreeClassifier(grace_period=20, delta=0.3),
        ensemble.BaggingClassifier(LOGREG(), n_models=2, seed=1),
        forest.ARFClassifier(n_models=5, seed=1, grace_period=20),
        compose.Select("a", "b", "c") | SCALER() | LOGREG(),
    ],
    ids=str,
)
def test_known_features(model: Any) -> None:
    known = known_features(river_learned(model.clone()))
    assert set(known) == set(COLUMNS)
    assert known_features(model.clone()) == []
    with pytest.raises(InputError, match="features that the pipeline does not have: c;"):
        check_columns(known, ["a", "b", "d"], "m")
    assert check_columns(known, ["a", "b", "c", "d"], "m") == ["d"]


def test_a_trained_model_has_the_same_declaration() -> None:
    for task, model in (*RIVER, *COMPILED):
        trained = river_of(learned(model.clone(), task))
        assert same_declaration(trained, model, task, COLUMNS), model
    other = forest.ARFClassifier(n_models=3, seed=1, grace_period=20)
    trained = river_of(learned(RIVER[0][1].clone(), Task.BINARY))
    assert not same_declaration(trained, other, Task.BINARY, COLUMNS)


def test_diff_of_versions() -> None:
    def told(model: Any, version: int, **more: Any) -> Version:
        return about(river_of(learned(model, Task.BINARY)), version=version, **more)

    first = told(LOGREG(l2=0.1), 1, metrics={"LogLoss": 0.5, "Accuracy": 1.0}, rows=10)
    same = diff_versions(first, first)
    assert not any((same.lineage, same.metrics, same.parameters, same.columns, same.weights))
    second = told(
        LOGREG(l2=0.2), 2, metrics={"LogLoss": 0.4, "Accuracy": 1.0}, rows=20, parent="m@1",
        columns=["a", "b", "d"],
    )  # fmt: skip
    found = diff_versions(first, second)
    assert found.parameters == {"l2": ("0.1", "0.2")}
    assert found.metrics == {"LogLoss": (0.5, 0.4)}
    assert found.columns == {"c": ("c", None), "d": (None, "d")}
    assert found.lineage["labels learned"] == ("10", "20")
    assert found.lineage["parent"] == (None, "m@1")
    assert "features" in found.lineage
    changes = [abs(each.change) for each in found.weights]
    assert changes == sorted(changes, reverse=True)
    assert {each.feature for each in found.weights} <= {*COLUMNS, "(intercept)"}
    largest = found.weights[0]
    assert largest.before == first.weights[largest.feature]
    assert largest.after == second.weights[largest.feature]
