"""The simulators by name; each has the name of the shipped pipeline that reads its messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from anabranch.producers.arrival_process import MONDAY_MS
from anabranch.producers.batch import Batch
from anabranch.producers.simulators.clicks import ClickSettings, simulate_clicks
from anabranch.producers.simulators.faults import Faults
from anabranch.producers.simulators.payments import PaymentSettings, simulate_payments
from anabranch.producers.simulators.trips import TripSettings, simulate_trips
from anabranch.state.errors import InputError


def simulate(
    name: str,
    *,
    seed: int = 0,
    events: int | None = None,
    event_rate: float | None = None,
    start_ms: int = MONDAY_MS,
    drift_at: int | None = None,
    faults: Faults | None = None,
) -> Iterator[Batch]:
    """The messages of the simulator ``name``, the same bytes for the same arguments.

    Args:
        name: payments, clicks or trips.
        seed: of all random draws.
        events: how many events there are, besides their labels; None: no end.
        event_rate: events per second of event time; None: the simulator's own.
        start_ms: when the first event may happen, epoch ms.
        drift_at: the number of the event at which the simulated world changes (payments only).
        faults: what goes wrong on the way to the bus.

    Raises:
        InputError: there is no such simulator, or an option is out of range.
    """
    if name not in SIMULATORS:
        raise InputError(f"there is no simulator {name!r}: choose one of {', '.join(SIMULATORS)}")
    if event_rate is not None and not 0 < event_rate <= 1e6:
        raise InputError(f"{event_rate:g} events per second are out of range: give 0 to 1000000")
    if events is not None and events < 0:
        raise InputError(f"{events} events are out of range: give 0 or more")
    if drift_at is not None and name != "payments":
        raise InputError(f"the simulator {name!r} has no drift: only payments has")
    settings_type, simulator = SIMULATORS[name]
    options: dict[str, Any] = {"start_ms": start_ms}
    if event_rate:
        options["rate"] = event_rate
    if drift_at is not None:
        options["drift_at"] = drift_at
    return simulator(seed=seed, events=events, settings=settings_type(**options), faults=faults)


SIMULATORS: dict[str, tuple[type[Any], Callable[..., Iterator[Batch]]]] = {
    "payments": (PaymentSettings, simulate_payments),
    "clicks": (ClickSettings, simulate_clicks),
    "trips": (TripSettings, simulate_trips),
}
"""Name → the simulator's settings, and the function that simulates with them."""
