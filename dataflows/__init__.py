"""The Bytewax side: the pipeline declaration, the graph, the bus, the codec and the command line.

What a user needs to declare a pipeline is importable from here; none of it loads the engine.
"""

from dataflows.features import (
    day_of_week,
    decayed,
    distinct,
    field,
    hashed,
    hour_of_day,
    one_hot,
    since_last,
    window,
)
from dataflows.messages import Delayed, Event, Label, inline
from dataflows.pipeline import Pipeline
from models.drift import monitor

__all__ = [
    "Delayed",
    "Event",
    "Label",
    "Pipeline",
    "day_of_week",
    "decayed",
    "distinct",
    "field",
    "hashed",
    "hour_of_day",
    "inline",
    "monitor",
    "one_hot",
    "since_last",
    "window",
]
