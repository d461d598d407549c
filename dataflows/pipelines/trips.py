"""How many minutes will this taxi trip take? Learned at drop-off."""

from __future__ import annotations

from river import linear_model, optim, preprocessing

from anabranch.dataflows.declaration.features import decayed, field, hour_of_day, since_last, window
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.inputs import Event, Label
from anabranch.models.drift.detectors import monitor


class Trip(Event):
    """A taxi leaves one zone for another; ``ts`` is epoch ms."""

    id: str
    ts: int
    zone_from: str
    zone_to: str
    distance_km: float
    passengers: int


class Arrival(Label):
    """The trip ``id`` ended at ``ts`` and took this many minutes."""

    id: str
    ts: int
    minutes: float


pipeline = Pipeline(
    name="trips",
    event=Trip,
    label=Arrival.target("minutes", timeout="6h"),
    features=[
        field("distance_km"),
        field("passengers"),
        hour_of_day(cyclic=True),
        window("zone_from", "distance_km", over=("10m", "30m"), stats=("count", "mean")),
        since_last("zone_from", within="1h"),
        decayed("zone_from", "distance_km", half_life="15m", stats=("count",)),
        window("zone_to", "distance_km", over=("30m",), stats=("count", "mean")),
    ],
    model=preprocessing.StandardScaler()
    | linear_model.LinearRegression(optimizer=optim.AdaGrad(0.3)),
    metrics=("MAE", "RMSE", "R2"),
    monitors=[monitor("loss", delta=1e-8, cooldown="6h")],
)
