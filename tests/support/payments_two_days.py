"""The shipped payments, with one more feature, of labels, and a wait that ends within a week."""

from dataclasses import replace

from anabranch.dataflows.declaration.features import target, window
from anabranch.dataflows.pipelines.payments import pipeline as shipped

pipeline = replace(
    shipped,
    features=[*shipped.features, window("merchant", target(), over=("1d", "7d"))],
    label=replace(shipped.label, timeout="2d"),
    with_features=True,
)
