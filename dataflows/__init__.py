"""The Bytewax side: the pipeline declaration, the graph, the bus, the codec and the command line.

What a user needs to declare a pipeline is importable from here; none of it loads the engine, and
each name is loaded when it is first asked for, so that the command line starts at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataflows.features import (
        day_of_week,
        decayed,
        distinct,
        field,
        hashed,
        hour_of_day,
        one_hot,
        since_last,
        target,
        window,
    )
    from dataflows.messages import Delayed, Event, Label, Prediction, Ranking, inline
    from dataflows.pipeline import Pipeline
    from models.challenger import Challenger
    from models.drift import monitor
    from models.imbalance import class_weights, oversample, undersample
    from models.policies import ABTest, Bandit, Canary, Guardrails, Interleave, Shadow
    from models.shift_declarations import Distributions, Seasonal, Sliding
    from models.slices import slice_by

__all__ = [
    "ABTest",
    "Bandit",
    "Canary",
    "Challenger",
    "Delayed",
    "Distributions",
    "Event",
    "Guardrails",
    "Interleave",
    "Label",
    "Pipeline",
    "Prediction",
    "Ranking",
    "Seasonal",
    "Shadow",
    "Sliding",
    "class_weights",
    "day_of_week",
    "decayed",
    "distinct",
    "field",
    "hashed",
    "hour_of_day",
    "inline",
    "monitor",
    "one_hot",
    "oversample",
    "since_last",
    "slice_by",
    "target",
    "undersample",
    "window",
]

_HOMES = {
    "ABTest": "models.policies",
    "Bandit": "models.policies",
    "Canary": "models.policies",
    "Challenger": "models.challenger",
    "Delayed": "dataflows.messages",
    "Distributions": "models.shift_declarations",
    "Event": "dataflows.messages",
    "Guardrails": "models.policies",
    "Interleave": "models.policies",
    "Label": "dataflows.messages",
    "Pipeline": "dataflows.pipeline",
    "Prediction": "dataflows.messages",
    "Ranking": "dataflows.messages",
    "Seasonal": "models.shift_declarations",
    "Shadow": "models.policies",
    "Sliding": "models.shift_declarations",
    "class_weights": "models.imbalance",
    "inline": "dataflows.messages",
    "monitor": "models.drift",
    "oversample": "models.imbalance",
    "slice_by": "models.slices",
    "undersample": "models.imbalance",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(_HOMES.get(name, "dataflows.features")), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
