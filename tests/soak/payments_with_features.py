"""The shipped payments pipeline, with features in predictions and a window over labels."""

from dataclasses import replace

from anabranch.dataflows.declaration.features import target, window
from anabranch.dataflows.pipelines.payments import pipeline as shipped

of_labels = window("merchant", target(), over=("1h", "1d"))
pipeline = replace(shipped, features=[*shipped.features, of_labels], with_features=True)
