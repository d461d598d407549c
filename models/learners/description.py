"""River models as text: two models are declared alike exactly if their descriptions are equal."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

from river import base

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_MAX_DEPTH = 20


def parameters(model: base.Base) -> Iterator[tuple[str, Any]]:
    """The constructor parameters of a River object, by name; of a pipeline, its steps."""
    if hasattr(model, "steps"):
        yield from model.steps.items()
        return
    for name, parameter in inspect.signature(type(model).__init__).parameters.items():
        if name != "self" and parameter.kind is not parameter.VAR_KEYWORD:
            yield name, getattr(model, name, None)


def describe(value: Any, depth: int = 0) -> str:
    """The description of a model or a parameter, the same text in every process.

    Unlike `repr` it holds no memory addresses, and sets are sorted.

    >>> from river import linear_model, preprocessing
    >>> describe(preprocessing.Normalizer() | linear_model.PAClassifier())
    'Pipeline(Normalizer=Normalizer(order=2), PAClassifier=PAClassifier(C=1.0, mode=1, \
learn_intercept=True))'
    """
    if depth > _MAX_DEPTH:
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
    """Every parameter of a River model at any depth, as text, by its dotted path.

    >>> from river import linear_model, preprocessing
    >>> texts = parameters_by_path(preprocessing.Normalizer() | linear_model.PAClassifier())
    >>> texts["Normalizer.order"], texts["PAClassifier.C"]
    ('2', '1.0')
    """
    return dict(_by_path(model, ""))


def _by_path(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if not isinstance(value, base.Base) or path.count(".") > _MAX_DEPTH:
        yield path, describe(value)
        return
    if not hasattr(value, "steps"):
        yield path or "model", type(value).__name__
    for name, parameter in parameters(value):
        yield from _by_path(parameter, f"{path}.{name}" if path else name)
