"""Pickles of models and of what is measured of them, which name no module of this program.

A pickle refers to a class by its module and name, so that it can't be read any more once the module
has moved. Here each class of ours that is pickled has a number (`models.pickled_classes`), by the
extension registry of the standard library (`copyreg`, PEP 307): the pickle holds the number. When a
class moves, its line in the table changes, and nothing else. Classes of River, numpy and users are
pickled as usual, by module and name.

A pickle runs code when it is read. So `unpickled` is for what this program wrote into a state
directory, and `loads` also for a file that the user has named; never for anything that arrived
on a topic.
"""

from __future__ import annotations

import copyreg
import gc
import importlib.metadata
import io
import pickle
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from river import (
    anomaly,
    base,
    compose,
    dummy,
    ensemble,
    feature_extraction,
    forest,
    linear_model,
    naive_bayes,
    neighbors,
    optim,
    preprocessing,
    tree,
)

from anabranch.models.learners.description import parameters
from anabranch.models.pickled_classes import PICKLED_CLASSES
from anabranch.state.errors import StateError

_FIRST_CODE = 0xAB00
"""The codes start here. PEP 307 does not assign this range; if another library in the process had
registered one of them, `copyreg` would raise when this module is imported."""

_PROGRAM, _PIPELINES = "anabranch.", "anabranch.dataflows.pipelines."

# What pickles of version 0.1 begin with, when classes were referred to by module.
_VERSION_0_1 = {
    "models.compiled.CompiledLinear",
    "models.river_adapter.RiverLearner",
    "models.sampled.Sampled",
    "models.segmented.Segmented",
    "models.silent.SilentLearner",
    "models.slices.SliceBy",
    "models.step_record.StepRecord",
    "models.thinned.Thinned",
}


def _register() -> frozenset[tuple[str, str]]:
    classes = set()
    for code, path in PICKLED_CLASSES.items():
        module, _, name = path.rpartition(".")
        copyreg.add_extension(f"{_PROGRAM}{module}", name, _FIRST_CODE + code)
        classes.add((f"{_PROGRAM}{module}", name))
    return frozenset(classes)


_REGISTERED = _register()


class _Unpickler(pickle.Unpickler):
    """Reads classes of ours only if they are in the table."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" in _VERSION_0_1:
            raise pickle.UnpicklingError(
                "it was written by version 0.1: replay its history into a new state directory"
            )
        ours = module.startswith(_PROGRAM) and not module.startswith(_PIPELINES)
        if ours and (module, name) not in _REGISTERED:
            raise pickle.UnpicklingError(f"{module}.{name} is not a class that is kept in pickles")
        return super().find_class(module, name)


def pickled(value: Any) -> bytes:
    """A value as a pickle, for `unpickled`; raises what `pickle.dumps` raises."""
    return pickle.dumps(value, protocol=5)


def unpickled(blob: bytes) -> Any:
    """What `pickled` wrote; raises what `pickle.loads` raises. Only for what this program wrote."""
    return _Unpickler(io.BytesIO(blob)).load()


_LIBRARIES = ("anabranch", "river", "numpy")


@contextmanager
def garbage_collector_paused() -> Iterator[None]:
    """Keep the garbage collector from visiting the objects of a large model again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def dumps(what: str, model: Any) -> bytes:
    """A model, or what was measured of it, as a pickle; ``what`` names it in an error.

    Raises:
        StateError: it can't be pickled.
    """
    try:
        with garbage_collector_paused():
            return pickled(model)
    except Exception as error:
        raise StateError(
            f"{what} can't be pickled: {error}; use named functions of a module in it"
        ) from error


def loads(what: str, blob: bytes) -> Any:
    """The content of a pickle, whose code is run; ``what`` names it in an error.

    Raises:
        StateError: it can't be unpickled here.
    """
    try:
        with garbage_collector_paused():
            return unpickled(blob)
    except Exception as error:
        raise StateError(
            f"{what} can't be unpickled ({error}): it is damaged, not a pickle, or needs code that "
            "is not installed here"
        ) from error


def library_versions() -> dict[str, str]:
    """The versions of Python and of the libraries whose objects are in a pickle of a model."""
    libraries = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"python": platform.python_version()} | libraries


def check_river(what: str, river: str | None) -> None:
    """Refuse what another version of River wrote; ``river`` is that version.

    Raises:
        StateError: it is not the version installed here.

    >>> check_river("m.pickle", "0.1")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    anabranch.state.errors.StateError: m.pickle was written with river 0.1, and ... is installed: \
install river==0.1, or train it again
    """
    installed = importlib.metadata.version("river")
    if river != installed:
        raise StateError(
            f"{what} was written with river {river}, and {installed} is installed: install "
            f"river=={river}, or train it again"
        )


# Read in River 0.26's source, and tested: to predict, score or transform draws no random number
# and changes nothing that a later prediction depends on. The first prediction of a forest creates
# its trees, but the first row learned would have created the same.
_UNCHANGED_BY_PREDICTING: tuple[type, ...] = (
    anomaly.GaussianScorer,
    anomaly.HalfSpaceTrees,
    anomaly.LocalOutlierFactor,
    anomaly.QuantileFilter,
    anomaly.ThresholdFilter,
    compose.Discard,
    compose.Pipeline,
    compose.Select,
    dummy.NoChangeClassifier,
    dummy.PriorClassifier,
    dummy.StatisticRegressor,
    ensemble.ADWINBaggingClassifier,
    ensemble.BaggingClassifier,
    ensemble.BaggingRegressor,
    ensemble.LeveragingBaggingClassifier,
    ensemble.SRPClassifier,
    ensemble.SRPRegressor,
    ensemble.VotingClassifier,
    forest.AMFClassifier,
    forest.AMFRegressor,
    forest.ARFClassifier,
    forest.ARFRegressor,
    linear_model.LinearRegression,
    linear_model.LogisticRegression,
    linear_model.PAClassifier,
    linear_model.PARegressor,
    linear_model.Perceptron,
    naive_bayes.GaussianNB,
    neighbors.KNNClassifier,
    neighbors.KNNRegressor,
    neighbors.LazySearch,
    optim.initializers.Zeros,
    preprocessing.MaxAbsScaler,
    preprocessing.MinMaxScaler,
    preprocessing.StandardScaler,
    tree.ExtremelyFastDecisionTreeClassifier,
    tree.HoeffdingAdaptiveTreeClassifier,
    tree.HoeffdingAdaptiveTreeRegressor,
    tree.HoeffdingTreeClassifier,
    tree.HoeffdingTreeRegressor,
    tree.splitter.EBSTSplitter,
    tree.splitter.ExhaustiveSplitter,
    tree.splitter.GaussianSplitter,
    tree.splitter.HistogramSplitter,
    tree.splitter.QOSplitter,
    tree.splitter.TEBSTSplitter,
)

# They hold the models they were declared with, and never clone them while they learn.
_NEVER_CLONE: tuple[type, ...] = (
    anomaly.QuantileFilter,
    anomaly.ThresholdFilter,
    compose.Pipeline,
    compose.TransformerUnion,
)


def _inner(model: base.Base) -> Iterator[Any]:
    """The River objects among the parameters of `model`, at any depth of lists and dicts."""
    waiting = [value for _, value in parameters(model)]
    while waiting:
        value = waiting.pop()
        if isinstance(value, base.Base):
            yield value
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value


def unchanged_by_predicting(model: Any) -> bool:
    """Whether a River model, with all models inside it, is known to be unchanged by predicting.

    If so, the rows that it has learned suffice to rebuild it. False for a class that is not known.

    >>> unchanged_by_predicting(preprocessing.StandardScaler() | forest.ARFClassifier())
    True
    >>> random = optim.initializers.Normal(seed=1)
    >>> unchanged_by_predicting(linear_model.LogisticRegression(initializer=random))
    False
    """
    if type(model) not in _UNCHANGED_BY_PREDICTING:
        return False
    relevant = base.Estimator, optim.initializers.Initializer
    return all(unchanged_by_predicting(v) for v in _inner(model) if isinstance(v, relevant))


def _unseeded(model: base.Base, cloned: bool = False) -> Any:
    """A model that would be cloned with a new random seed each time, or None."""
    if cloned and "seed" in (given := dict(parameters(model))) and given["seed"] is None:
        return model
    inside = cloned or not isinstance(model, _NEVER_CLONE)
    models = (_unseeded(v, inside) for v in _inner(model) if isinstance(v, base.Estimator))
    return next((each for each in models if each is not None), None)


def why_not_picklable(model: Any) -> str | None:
    """Why a model can't be kept on disk, as the end of a sentence; None if it can.

    Args:
        model: a River object as declared; it is pickled once, so it should be untrained.

    >>> why_not_picklable(forest.ARFClassifier())
    >>> why_not_picklable(compose.FuncTransformer(lambda x: x))  # doctest: +ELLIPSIS
    "it can't be pickled (Can't pickle <function <lambda> at ...): use named functions of a module"
    >>> why_not_picklable(ensemble.BaggingClassifier(tree.HoeffdingAdaptiveTreeClassifier()))
    'HoeffdingAdaptiveTreeClassifier inside BaggingClassifier has no seed, so learning the same \
rows again would give another model: give it seed=1'
    """
    if isinstance(model, base.Base):
        if any(
            isinstance(v, feature_extraction.RandomTreesEmbedding) for v in river_objects(model)
        ):
            return "RandomTreesEmbedding keeps addresses in memory: use another transformer"
        unseeded = _unseeded(model)
        if unseeded is not None:
            return (
                f"{type(unseeded).__name__} inside {type(model).__name__} has no seed, so "
                "learning the same rows again would give another model: give it seed=1"
            )
    try:
        unpickled(pickled(model))
    except Exception as error:
        return f"it can't be pickled ({error}): use named functions of a module"
    return None


def river_objects(model: Any) -> Iterator[Any]:
    """A River object, and all those among its parameters, at any depth."""
    yield model
    for value in _inner(model):
        yield from river_objects(value)
