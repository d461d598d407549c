"""Real-time machine learning on event streams: the public API.

Everything that a pipeline file, or a program beside it, needs is importable from here: the
declaration, the typed messages that a run publishes and `read_outputs` to read them, errors, the
buses and the model registry. A name is loaded when it is first used, so importing this package is
cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anabranch.dataflows.bus import open_bus
    from anabranch.dataflows.bus.memory import MemoryBus
    from anabranch.dataflows.codec.output_reader import (
        OutputReader,
        read_outputs,
    )
    from anabranch.dataflows.declaration.conditions import became
    from anabranch.dataflows.declaration.features import (
        count_distinct,
        day_of_week,
        decayed,
        field,
        hashed,
        hour_of_day,
        one_hot,
        since_last,
        target,
        window,
    )
    from anabranch.dataflows.declaration.formats import (
        Avro,
        CloudEvents,
        Connect,
        Csv,
        Custom,
        Debezium,
        Format,
        Json,
        JsonSchema,
        MessagePack,
        Protobuf,
    )
    from anabranch.dataflows.declaration.message_places import (
        coordinates,
        header,
        message_key,
    )
    from anabranch.dataflows.declaration.pipeline import Pipeline
    from anabranch.dataflows.declaration.shape import (
        Cast,
        path,
    )
    from anabranch.dataflows.declaration.topics import Topics, pattern
    from anabranch.dataflows.messages.inputs import (
        Delayed,
        Event,
        Inline,
        Label,
        inline,
    )
    from anabranch.dataflows.messages.outputs import (
        Cause,
        ComparedModels,
        DeadLetter,
        DriftSignal,
        Moved,
        Prediction,
        Ranked,
        Ranking,
        RolloutMessage,
    )
    from anabranch.models.drift.declarations import (
        Distributions,
        Seasonal,
        Sliding,
    )
    from anabranch.models.drift.detectors import monitor
    from anabranch.models.learners.imbalance import (
        class_weights,
        oversample,
        undersample,
    )
    from anabranch.models.metrics.slices import slice_by
    from anabranch.models.registry.registry import Registry
    from anabranch.models.rollout.challenger import Challenger
    from anabranch.models.rollout.policies import (
        ABTest,
        Bandit,
        Canary,
        Guardrails,
        Interleave,
        Shadow,
    )
    from anabranch.state.errors import (
        AnabranchError,
        BusError,
        DeclarationError,
        InputError,
        StateError,
    )

_PUBLIC = {
    "anabranch.dataflows.bus": ("open_bus",),
    "anabranch.dataflows.bus.memory": ("MemoryBus",),
    "anabranch.dataflows.declaration.features": (
        "count_distinct",
        "day_of_week",
        "decayed",
        "field",
        "hashed",
        "hour_of_day",
        "one_hot",
        "since_last",
        "target",
        "window",
    ),
    "anabranch.dataflows.codec.output_reader": (
        "OutputReader",
        "read_outputs",
    ),
    "anabranch.dataflows.declaration.conditions": ("became",),
    "anabranch.dataflows.declaration.formats": (
        "Avro",
        "CloudEvents",
        "Connect",
        "Csv",
        "Custom",
        "Debezium",
        "Format",
        "Json",
        "JsonSchema",
        "MessagePack",
        "Protobuf",
    ),
    "anabranch.dataflows.declaration.message_places": (
        "coordinates",
        "header",
        "message_key",
    ),
    "anabranch.dataflows.declaration.pipeline": ("Pipeline",),
    "anabranch.dataflows.declaration.shape": (
        "Cast",
        "path",
    ),
    "anabranch.dataflows.declaration.topics": ("Topics", "pattern"),
    "anabranch.dataflows.messages.inputs": (
        "Delayed",
        "Event",
        "Inline",
        "Label",
        "inline",
    ),
    "anabranch.dataflows.messages.outputs": (
        "Cause",
        "ComparedModels",
        "DeadLetter",
        "DriftSignal",
        "Moved",
        "Prediction",
        "Ranked",
        "Ranking",
        "RolloutMessage",
    ),
    "anabranch.models.drift.declarations": (
        "Distributions",
        "Seasonal",
        "Sliding",
    ),
    "anabranch.models.drift.detectors": ("monitor",),
    "anabranch.models.learners.imbalance": (
        "class_weights",
        "oversample",
        "undersample",
    ),
    "anabranch.models.metrics.slices": ("slice_by",),
    "anabranch.models.registry.registry": ("Registry",),
    "anabranch.models.rollout.challenger": ("Challenger",),
    "anabranch.models.rollout.policies": (
        "ABTest",
        "Bandit",
        "Canary",
        "Guardrails",
        "Interleave",
        "Shadow",
    ),
    "anabranch.state.errors": (
        "AnabranchError",
        "BusError",
        "DeclarationError",
        "InputError",
        "StateError",
    ),
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = [
    "ABTest",
    "AnabranchError",
    "Avro",
    "Bandit",
    "BusError",
    "Canary",
    "Cast",
    "Cause",
    "Challenger",
    "CloudEvents",
    "ComparedModels",
    "Connect",
    "Csv",
    "Custom",
    "DeadLetter",
    "Debezium",
    "DeclarationError",
    "Delayed",
    "Distributions",
    "DriftSignal",
    "Event",
    "Format",
    "Guardrails",
    "Inline",
    "InputError",
    "Interleave",
    "Json",
    "JsonSchema",
    "Label",
    "MemoryBus",
    "MessagePack",
    "Moved",
    "OutputReader",
    "Pipeline",
    "Prediction",
    "Protobuf",
    "Ranked",
    "Ranking",
    "Registry",
    "RolloutMessage",
    "Seasonal",
    "Shadow",
    "Sliding",
    "StateError",
    "Topics",
    "became",
    "class_weights",
    "coordinates",
    "count_distinct",
    "day_of_week",
    "decayed",
    "field",
    "hashed",
    "header",
    "hour_of_day",
    "inline",
    "message_key",
    "monitor",
    "one_hot",
    "open_bus",
    "oversample",
    "path",
    "pattern",
    "read_outputs",
    "since_last",
    "slice_by",
    "target",
    "undersample",
    "window",
]


def __getattr__(name: str) -> Any:
    if name == "distinct":
        from anabranch.state.errors import DeclarationError

        raise DeclarationError("distinct(…) is now called count_distinct(…)")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
