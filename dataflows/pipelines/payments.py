"""Is this card payment fraud? Learned from labels that arrive minutes to hours later.

A payment without a verdict may be fraud that no one investigated. So there is no default label:
with ``default=False`` the model would learn that fraud is rarer than it is.
"""

from __future__ import annotations

from river import linear_model, optim, preprocessing

from anabranch.dataflows.declaration.features import (
    count_distinct,
    decayed,
    field,
    hour_of_day,
    one_hot,
    since_last,
    window,
)
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.inputs import Event, Label
from anabranch.models.drift.declarations import Distributions
from anabranch.models.drift.detectors import monitor


class Payment(Event):
    """A card pays a merchant; ``ts`` is epoch ms."""

    id: str
    ts: int
    card: str
    merchant: str
    amount: float
    country: str


class Verdict(Label):
    """Whether the payment ``id`` was fraud, as known at ``ts``."""

    id: str
    ts: int
    fraud: bool


pipeline = Pipeline(
    name="payments",
    event=Payment,
    label=Verdict.target("fraud", timeout="7d"),
    features=[
        field("amount"),
        hour_of_day(cyclic=True),
        one_hot("country", ("US", "DE", "FR", "GB")),
        window("card", "amount", over=("1m", "10m", "1h"), stats=("count", "mean", "std", "max")),
        window("card", "amount", over="1d", stats=("count", "mean", "std")),
        since_last("card", within="1h"),
        count_distinct("card", "merchant", over="1h"),
        count_distinct("card", "country", over="1d"),
        decayed("card", "amount", half_life="30m", stats=("mean", "count")),
        window("merchant", "amount", over=("1h", "1d"), stats=("count", "mean")),
    ],
    model=preprocessing.StandardScaler()
    | linear_model.LogisticRegression(optimizer=optim.SGD(0.005)),
    metrics=("ROCAUC", "LogLoss", "Accuracy"),
    monitors=[monitor("loss", loss="brier", delta=1e-4)],
    distributions=Distributions(),
)
