"""Which of these items will the visitor click? The label is a click, or ten minutes without one."""

from __future__ import annotations

from river import linear_model, optim, preprocessing

from anabranch.dataflows.declaration.features import field, since_last, target, window
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.inputs import Event, Label
from anabranch.models.drift.detectors import monitor


class Page(Event):
    """The items that can be shown to a visitor in a session; ``ts`` is epoch ms.

    Each item comes with its category, its price, and the search engine's relevance score.
    """

    id: str
    ts: int
    visitor: str
    items: list[str]
    categories: list[str]
    prices: list[float]
    relevance: list[float]


class Click(Label):
    """The item of page ``id`` that was clicked at ``ts``; without a click there is no label."""

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
