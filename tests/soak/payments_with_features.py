"""The shipped pipeline of payments, with its features in every prediction."""

from dataclasses import replace

from dataflows.pipelines.payments import pipeline as shipped

pipeline = replace(shipped, with_features=True)
