"""The shipped pipeline of payments, with its features in every prediction, and one of labels."""

from dataclasses import replace

from anabranch.dataflows.declaration.features import target, window
from anabranch.dataflows.pipelines.payments import pipeline as shipped

of_labels = window("merchant", target(), over=("1h", "1d"))
pipeline = replace(shipped, features=[*shipped.features, of_labels], with_features=True)
