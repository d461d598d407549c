"""What a model was declared as, in words: two declarations are the same if these are."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

from river import base

from anabranch.models.learners.learner import Learner
from anabranch.models.learners.linear import CompiledLinear
from anabranch.models.learners.resampling import Sampled
from anabranch.models.learners.river import RiverLearner
from anabranch.models.learners.segmented import Segmented
from anabranch.models.learners.subsampling import Thinned

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_DEEPEST = 20


def parameters(model: base.Base) -> Iterator[tuple[str, Any]]:
    """The parameters that a River object was made with, by name; the steps of a pipeline."""
    if hasattr(model, "steps"):
        yield from model.steps.items()
        return
    for name, parameter in inspect.signature(type(model).__init__).parameters.items():
        if name != "self" and parameter.kind is not parameter.VAR_KEYWORD:
            yield name, getattr(model, name, None)


def described(learner: Learner) -> str:
    """The declaration of a learner's model."""
    if isinstance(learner, Sampled):
        return described(learner.learner)
    if isinstance(learner, Segmented):
        return described(learner.shared)
    if isinstance(learner, Thinned):
        return f"{described(learner.learner)} learning {learner.share:g}"
    if isinstance(learner, CompiledLinear):
        return describe(learner.to_river())
    return describe(learner.model if isinstance(learner, RiverLearner) else type(learner))


def describe(value: Any, depth: int = 0) -> str:
    """A text that is the same in every process, other than `repr`: no addresses, sets sorted.

    >>> from river import linear_model, preprocessing
    >>> describe(preprocessing.Normalizer() | linear_model.PAClassifier())
    'Pipeline(Normalizer=Normalizer(order=2), PAClassifier=PAClassifier(C=1.0, mode=1, \
learn_intercept=True))'
    """
    if depth > _DEEPEST:
        return "…"
    if isinstance(value, base.Base):
        inner = ", ".join(f"{n}={describe(v, depth + 1)}" for n, v in parameters(value))
        return f"{type(value).__name__}({inner})"
    if isinstance(value, Mapping):
        pairs = (f"{describe(k, depth + 1)}: {describe(v, depth + 1)}" for k, v in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(describe(v, depth + 1) for v in value)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(describe(v, depth + 1) for v in value) + "]"
    if inspect.isroutine(value) or isinstance(value, type):
        return str(getattr(value, "__qualname__", type(value).__name__))
    return _ADDRESS.sub("", repr(value))


def parameters_by_path(model: Any) -> dict[str, str]:
    """Every parameter at any depth of a River model, as text, by where it is.

    >>> from river import linear_model, preprocessing
    >>> found = parameters_by_path(preprocessing.Normalizer() | linear_model.PAClassifier())
    >>> found["Normalizer.order"], found["PAClassifier.C"]
    ('2', '1.0')
    """
    return dict(_by_path(model, ""))


def _by_path(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if not isinstance(value, base.Base) or path.count(".") > _DEEPEST:
        yield path, describe(value)
        return
    if not hasattr(value, "steps"):
        yield path or "model", type(value).__name__
    for name, parameter in parameters(value):
        yield from _by_path(parameter, f"{path}.{name}" if path else name)
