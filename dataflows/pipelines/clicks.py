"""Will this impression be clicked? Learned from a click, or after ten minutes without one."""

from __future__ import annotations

from river import linear_model, optim, preprocessing

from dataflows.features import distinct, field, since_last, window
from dataflows.messages import Event, Label
from dataflows.pipeline import Pipeline
from models.drift import monitor


class Impression(Event):
    """An item is shown to a visitor at a position from 1; ``ts`` is epoch ms."""

    id: str
    ts: int
    visitor: str
    item: str
    position: int
    category: str
    price: float


class Click(Label):
    """The impression ``id`` was clicked at ``ts``; nothing is published of one that was not."""

    id: str
    ts: int
    clicked: bool


pipeline = Pipeline(
    name="clicks",
    event=Impression,
    label=Click.target("clicked", wait="10m", otherwise=False),
    features=[
        field("position"),
        field("price"),
        window("visitor", "price", over=("1m", "30m"), stats=("count", "mean", "std")),
        since_last("visitor", within="1m"),
        distinct("visitor", "category", over=("1m", "30m")),
        distinct("visitor", "item", over="30m"),
        window("item", "position", over="1h", stats="count"),
    ],
    model=preprocessing.StandardScaler()
    | linear_model.LogisticRegression(optimizer=optim.SGD(0.005)),
    metrics=("ROCAUC", "LogLoss", "Accuracy"),
    monitors=[monitor("loss", loss="brier", delta=1e-4)],
)
