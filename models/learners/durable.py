"""Whether a River model can be written down and taken up again, and what must be written."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
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

# Read in River 0.26's source, and tested: to predict, score or transform draws no random number
# and leaves nothing behind that a later answer depends on. The first prediction of a forest makes
# its trees, but the first row learned would have made the same.
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

# They hold what they are given, and never make a copy of it while they learn.
_NEVER_CLONE: tuple[type, ...] = (
    anomaly.QuantileFilter,
    anomaly.ThresholdFilter,
    compose.Pipeline,
    compose.TransformerUnion,
)


def _inner(model: base.Base) -> Iterator[Any]:
    """The River objects that `model` was declared with, at any depth of lists and dicts."""
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
    """Whether a model, and all that it is made of, is known to be as it was after predicting.

    If so, the rows that it learned are enough to bring it where it was. False for anything unknown.

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
    found = (_unseeded(v, inside) for v in _inner(model) if isinstance(v, base.Estimator))
    return next((one for one in found if one is not None), None)


def why_not_durable(model: Any) -> str | None:
    """Why the state of a model can't be kept on disk, as the end of a sentence; None if it can.

    Args:
        model: a River object, as declared: it is pickled once, so it should be untrained.

    >>> why_not_durable(forest.ARFClassifier())
    >>> why_not_durable(compose.FuncTransformer(lambda x: x))  # doctest: +ELLIPSIS
    "it can't be pickled (Can't pickle <function <lambda> at ...): use named functions of a module"
    >>> why_not_durable(ensemble.BaggingClassifier(tree.HoeffdingAdaptiveTreeClassifier()))
    'HoeffdingAdaptiveTreeClassifier inside BaggingClassifier has no seed, so what was learned can \
not be learned again the same: give it seed=1'
    """
    if isinstance(model, base.Base):
        if any(isinstance(v, feature_extraction.RandomTreesEmbedding) for v in _all(model)):
            return "RandomTreesEmbedding keeps addresses in memory: use another transformer"
        unseeded = _unseeded(model)
        if unseeded is not None:
            return (
                f"{type(unseeded).__name__} inside {type(model).__name__} has no seed, so what was "
                "learned can not be learned again the same: give it seed=1"
            )
    try:
        pickle.loads(pickle.dumps(model, protocol=5))
    except Exception as error:
        return f"it can't be pickled ({error}): use named functions of a module"
    return None


def _all(model: base.Base) -> Iterator[Any]:
    yield model
    for value in _inner(model):
        yield from _all(value)
