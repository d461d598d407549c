"""Payments with a forest, too large to be pickled at every epoch, so that its rows are logged.

The bounds are so tight that the log exceeds its limit within a second, and a full pickle is due.
"""

from dataclasses import replace
from functools import partial

from river import forest

from anabranch.dataflows.pipelines.payments import pipeline as shipped
from anabranch.models.learners import checkpoint

checkpoint.Bounds = partial(checkpoint.Bounds, replay_s=0.5, share=0.3)  # type: ignore[assignment, misc]

pipeline = replace(shipped, name="payments-forest", model=forest.ARFClassifier(n_models=3, seed=1))
