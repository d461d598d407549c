"""The shipped payments, with one more feature, of labels, and a wait that ends within a week."""

from dataclasses import replace

from dataflows.features import target, window
from dataflows.pipelines.payments import pipeline as shipped

pipeline = replace(
    shipped,
    features=[*shipped.features, window("merchant", target(), over=("1d", "7d"))],
    label=replace(shipped.label, wait="2d"),
    with_features=True,
)
