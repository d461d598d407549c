"""The shipped payments pipeline, with a window over labels and a label timeout of two days."""

from dataclasses import replace

from anabranch.dataflows.declaration.features import target, window
from anabranch.dataflows.pipelines.payments import pipeline as shipped

pipeline = replace(
    shipped,
    features=[*shipped.features, window("merchant", target(), over=("1d", "7d"))],
    label=replace(shipped.label, timeout="2d"),
    with_features=True,
)
