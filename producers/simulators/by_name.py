"""The simulators by name, each named for the shipped pipeline that it feeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator

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

    ``events`` is how many events there are (None: no end; labels come besides), ``event_rate`` how
    many per second of event time (None: the simulator's own), ``drift_at`` the number of the event
    at which the world changes (payments only).

    Raises:
        InputError: there is no such simulator, or it can't do what is asked.
    """
    if name not in SIMULATORS:
        raise InputError(f"there is no simulator {name!r}: choose one of {', '.join(SIMULATORS)}")
    if event_rate is not None and not 0 < event_rate <= 1e6:
        raise InputError(f"{event_rate:g} events per second are impossible: give 0 to 1000000")
    if events is not None and events < 0:
        raise InputError(f"{events} events are impossible: give 0 or more")
    if drift_at is not None and name != "payments":
        raise InputError(f"the simulator {name!r} has no drift: only payments has")
    return SIMULATORS[name](seed, events, event_rate, start_ms, drift_at, faults)


def _payments(
    seed: int,
    events: int | None,
    rate: float | None,
    start_ms: int,
    drift_at: int | None,
    faults: Faults | None,
) -> Iterator[Batch]:
    settings = PaymentSettings(
        rate=rate or PaymentSettings().rate, start_ms=start_ms, drift_at=drift_at
    )
    return simulate_payments(seed=seed, events=events, settings=settings, faults=faults)


def _clicks(
    seed: int,
    events: int | None,
    rate: float | None,
    start_ms: int,
    drift_at: int | None,
    faults: Faults | None,
) -> Iterator[Batch]:
    settings = ClickSettings(rate=rate or ClickSettings().rate, start_ms=start_ms)
    return simulate_clicks(seed=seed, events=events, settings=settings, faults=faults)


def _trips(
    seed: int,
    events: int | None,
    rate: float | None,
    start_ms: int,
    drift_at: int | None,
    faults: Faults | None,
) -> Iterator[Batch]:
    settings = TripSettings(rate=rate or TripSettings().rate, start_ms=start_ms)
    return simulate_trips(seed=seed, events=events, settings=settings, faults=faults)


Simulator = Callable[
    [int, int | None, float | None, int, int | None, Faults | None], Iterator[Batch]
]

SIMULATORS: dict[str, Simulator] = {"payments": _payments, "clicks": _clicks, "trips": _trips}
"""Name → what simulates it; see `simulate`."""
