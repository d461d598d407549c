"""Simulates taxi trips and their durations, which are known at drop-off.

A city has zones with a speed each; demand surges in a zone for an hour or two, and traffic is slow
where many trips start. The duration of a trip is, with noise of median 1::

    minutes = 2 + 60 · distance / speed of the two zones · rush(hour) · crowd · noise

    rush  = 1 + 0.35 · (a bump at 08:00 UTC and one at 17:00, each about an hour and a half wide)
    crowd = 1 + 0.25 · (trips from the zone in the last 30 minutes over the expected number, less 1,
                        between -1 and 2)
    noise = log-normal, sigma 0.12

so the best mean absolute error that any model could reach is known: that of `Trips.expected`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from anabranch.producers.arrival_process import DAY_MS, MONDAY_MS, DailyArrivals, draw, zipf_weights
from anabranch.producers.batch import Batch
from anabranch.producers.simulators.faults import Faults
from anabranch.producers.simulators.recent_counts import RecentCounts
from anabranch.producers.simulators.timeline import Chunk, timeline

NOISE_SIGMA = 0.12
_HALF_HOUR_MS = 1_800_000
_PASSENGER_SHARES = np.array([0.7, 0.17, 0.06, 0.04, 0.02, 0.01])


@dataclass(frozen=True, slots=True, kw_only=True)
class TripSettings:
    """The parameters of the simulated city.

    Attributes:
        zones: their number, in a square of ``side_km`` kilometres.
        rate: mean trips per second of event time.
        start_ms: when the first trip may start, epoch ms.
    """

    zones: int = 30
    side_km: float = 12.0
    rate: float = 1.0
    start_ms: int = MONDAY_MS


@dataclass(frozen=True, slots=True)
class Trips:
    """Trips in order of pick-up, column by column, with the ground truth.

    ``first`` is the number of the first. The columns are ``(n,)``: ``ts`` the pick-up in epoch ms;
    ``zone_from`` and ``zone_to`` indices; ``minutes`` the duration, and ``expected`` its median
    without the noise; ``arrival_ms`` the drop-off in epoch ms.
    """

    first: int
    until_ms: int
    ts: NDArray[np.int64]
    zone_from: NDArray[np.int64]
    zone_to: NDArray[np.int64]
    distance_km: NDArray[np.float64]
    passengers: NDArray[np.int64]
    expected: NDArray[np.float64]
    minutes: NDArray[np.float64]
    arrival_ms: NDArray[np.int64]


class TripWorld:
    """The city of one seed, and its trips."""

    def __init__(self, seed: int, settings: TripSettings) -> None:
        self._settings = settings
        self._random = random = np.random.default_rng([seed, 3])
        self._arrivals = DailyArrivals(settings.rate, 0.5, 16.0)
        self._shares = random.permutation(zipf_weights(settings.zones, 0.5))
        self._place = random.random((settings.zones, 2)) * settings.side_km
        self._speed = random.normal(28.0, 3.0, settings.zones).clip(20.0, 36.0)  # km/h
        self._surge = np.zeros(settings.zones)  # log of demand relative to the mean
        self._recent = RecentCounts(_HALF_HOUR_MS)

    def trips(self, events: int | None = None) -> Iterator[Trips]:
        """The first ``events`` trips, or an endless stream, half an hour at a time."""
        number, now = 0, self._settings.start_ms
        while events is None or number < events:
            until = now + _HALF_HOUR_MS
            times = self._arrivals.arrivals(self._random, now, until)
            limit = None if events is None else events - number
            yield self._draw(times, number, until, limit)
            number, now = number + len(times), until

    def _draw(
        self, times: NDArray[np.int64], first: int, until_ms: int, limit: int | None
    ) -> Trips:
        """Draw the trips that start at ``times``, and keep at most ``limit`` of them."""
        random, zones, count = self._random, self._settings.zones, len(times)
        self._surge = 0.8 * self._surge + random.normal(0.0, 0.35, zones)
        zone_from = draw(random, self._shares * np.exp(self._surge), count)
        zone_to = draw(random, self._shares, count)
        straight = np.hypot(*(self._place[zone_from] - self._place[zone_to]).T)
        distance = np.round((0.8 + straight) * random.uniform(1.1, 1.4, count), 2)
        speed = (self._speed[zone_from] + self._speed[zone_to]) / 2
        slowdown = self._rush(times) * self._crowd(zone_from, times)
        expected = 2 + 60 * distance / speed * slowdown
        noise = np.exp(random.normal(0.0, NOISE_SIGMA, count))
        duration_ms = ((2 + (expected - 2) * noise) * 60_000).astype(np.int64)
        passengers = 1 + draw(random, _PASSENGER_SHARES, count)
        cut = slice(0, limit)
        return Trips(
            first=first,
            until_ms=until_ms,
            ts=times[cut],
            zone_from=zone_from[cut],
            zone_to=zone_to[cut],
            distance_km=distance[cut],
            passengers=passengers[cut],
            expected=expected[cut],
            minutes=np.round(duration_ms / 60_000, 2)[cut],
            arrival_ms=(times + duration_ms)[cut],
        )

    def _rush(self, times: NDArray[np.int64]) -> NDArray[np.float64]:
        hours = (times % DAY_MS) / 3_600_000
        bumps = np.exp(-(((hours - 8) / 1.5) ** 2)) + np.exp(-(((hours - 17) / 1.5) ** 2))
        return np.asarray(1 + 0.35 * bumps)

    def _crowd(self, zones: NDArray[np.int64], times: NDArray[np.int64]) -> NDArray[np.float64]:
        expected = self._shares[zones] * self._settings.rate * _HALF_HOUR_MS / 1000
        over = self._recent.add(zones, times) / expected - 1
        return np.asarray(1 + 0.25 * np.clip(over, -1.0, 2.0))


class _Trip(msgspec.Struct, gc=False):
    id: str
    ts: int
    zone_from: str
    zone_to: str
    distance_km: float
    passengers: int


class _Arrival(msgspec.Struct, gc=False):
    id: str
    ts: int
    minutes: float


def simulate_trips(
    *,
    seed: int = 0,
    events: int | None = None,
    settings: TripSettings | None = None,
    faults: Faults | None = None,
) -> Iterator[Batch]:
    """Trips and arrivals as messages, keyed by the pick-up zone; the same bytes for the same seed.

    ``events`` is the number of trips; None for no end.
    """
    settings = settings or TripSettings()
    world = TripWorld(seed, settings)
    encode = _TripEncoder(settings)
    chunks = (encode(trips) for trips in world.trips(events))
    return timeline(chunks, faults or Faults(), seed)


class _TripEncoder:
    def __init__(self, settings: TripSettings) -> None:
        self._zones = np.array([f"z{n:03d}" for n in range(settings.zones)], object)
        self._zone_keys = np.array([zone.encode() for zone in self._zones], object)
        self._encoder = msgspec.json.Encoder()

    def __call__(self, trips: Trips) -> Chunk:
        ids = [f"t{n:08d}" for n in range(trips.first, trips.first + len(trips.ts))]
        rows = map(
            _Trip,
            ids,
            trips.ts.tolist(),
            self._zones[trips.zone_from].tolist(),
            self._zones[trips.zone_to].tolist(),
            trips.distance_km.tolist(),
            trips.passengers.tolist(),
        )
        keys = self._zone_keys[trips.zone_from].tolist()
        events = Batch.of("events", self._lines(list(rows)), keys, trips.ts)
        arrivals = map(_Arrival, ids, trips.arrival_ms.tolist(), trips.minutes.tolist())
        labels = Batch.of("labels", self._lines(list(arrivals)), keys, trips.arrival_ms)
        return Chunk(trips.until_ms, events, labels, np.arange(len(ids)))

    def _lines(self, rows: list[_Trip] | list[_Arrival]) -> list[bytes]:
        return self._encoder.encode_lines(rows).split(b"\n")[:-1]
