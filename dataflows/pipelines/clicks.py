"""Which of these items will the visitor click? A click says so, or ten minutes without one."""

from __future__ import annotations

from river import linear_model, optim, preprocessing

from anabranch.dataflows.declaration.features import field, since_last, target, window
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.inputs import Event, Label
from anabranch.models.drift.detectors import monitor


class Page(Event):
    """Items that can be shown to a visitor in mid-session; ``ts`` is epoch ms.

    Of each item there is its category, its price, and how relevant the search takes it to be.
    """

    id: str
    ts: int
    visitor: str
    items: list[str]
    categories: list[str]
    prices: list[float]
    relevance: list[float]


class Click(Label):
    """Of the page ``id`` this item was clicked at ``ts``; nothing is published without a click."""

    id: str
    ts: int
    item: str


pipeline = Pipeline(
    name="clicks",
    event=Page,
    candidates="items",
    label=Click.target("item", timeout="10m"),
    features=[
        field("relevance"),
        field("prices"),
        window("visitor", over=("1m", "30m")),
        since_last("visitor", within="1m"),
        window("items", over="1h"),
        window("items", target(), over=("1h", "1d")),
        window("categories", target(), over="1d"),
    ],
    model=preprocessing.StandardScaler()
    | linear_model.LogisticRegression(optimizer=optim.SGD(0.005)),
    metrics=("ROCAUC", "LogLoss"),
    monitors=[monitor("loss", loss="brier", delta=1e-4)],
)
