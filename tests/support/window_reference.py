"""The reference implementation of windows: each row is computed from all events that have arrived.

Plain Python, exact rationals where it matters, no state but a list of events; O(n**2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction

from anabranch.state.windows.event_log import INSERT_ONLY, QUERY_ONLY
from anabranch.state.windows.specs import DecayedSpec, DistinctSpec, SinceLastSpec, Spec, WindowSpec

ONE = 2**1074


@dataclass(frozen=True)
class Seen:
    time: int
    value: float
    code: int


@dataclass
class Reference:
    """The events that have arrived, per key, in order of time and then of arrival."""

    specs: list[Spec]
    events: dict[str, list[Seen]] = field(default_factory=dict)

    def update(self, key: str, time: int, value: float, code: int, mode: int = 0) -> list[float]:
        """Add a row; returns its features."""
        if mode != QUERY_ONLY:
            of_key = self.events.setdefault(key, [])
            of_key.append(Seen(time, value, code))
            of_key.sort(key=lambda seen: seen.time)  # stable: equal times stay as they arrived
        seen = self.events.get(key, [])
        if mode == INSERT_ONLY:
            return [math.nan for spec in self.specs for _ in spec.columns()]
        return [x for spec in self.specs for x in features(spec, seen, time, mode != QUERY_ONLY)]


def features(spec: Spec, events: list[Seen], time: int, itself: bool) -> list[float]:
    match spec:
        case WindowSpec():
            if spec.resolution_ms:
                return panes(spec, events, time)
            return [
                statistic(stat, [e.value for e in events if time - width < e.time <= time])
                for width in spec.widths_ms
                for stat in spec.stats
            ]
        case DistinctSpec():
            return [
                float(len({e.code for e in events if time - width < e.time <= time}))
                for width in spec.widths_ms
            ]
        case SinceLastSpec():
            times = [e.time for e in events if e.time <= time]
            if itself:
                times.pop()
            return [min([spec.within_ms, *(time - t for t in times[-1:])]) / 1000]
        case DecayedSpec():
            return decayed(spec, [e for e in events if e.time <= time], time)


def panes(spec: WindowSpec, events: list[Seen], time: int) -> list[float]:
    size = spec.resolution_ms
    own = time // size
    return [
        statistic(
            stat, [e.value for e in events if own - -(-width // size) < e.time // size <= own]
        )
        for width in spec.widths_ms
        for stat in spec.stats
    ]


def decayed(spec: DecayedSpec, events: list[Seen], time: int) -> list[float]:
    chain: list[Seen] = []
    later = time
    for event in reversed(events):
        if later - event.time >= 50 * spec.half_life_ms:
            break
        chain.append(event)
        later = event.time
    weights = [2.0 ** (-(time - e.time) / spec.half_life_ms) for e in chain]
    total = math.fsum(w * e.value for w, e in zip(weights, chain, strict=True))
    count = math.fsum(weights)
    mean = total / count if chain else 0.0
    return [{"mean": mean, "count": count, "sum": total}[stat] for stat in spec.stats]


def statistic(stat: str, values: list[float]) -> float:
    """One statistic of the values in a window, in order of time."""
    n = len(values)
    if n == 0:
        return 0.0
    simple = {"count": n, "min": min(values), "max": max(values), "first": values[0]}
    simple["last"] = values[-1]
    if stat in simple:
        return float(simple[stat])
    # Every double is a whole number of 2**-1074: integers keep the rationals quick.
    exact = [p * (ONE // q) for p, q in (v.as_integer_ratio() for v in values)]
    total = sum(exact)
    if stat == "sum":
        return as_float(Fraction(total, ONE))
    if stat == "mean":
        return as_float(Fraction(total, n * ONE))
    if n < 2:
        return 0.0
    squares = sum(v * v for v in exact)
    variance = as_float(Fraction(n * squares - total * total, n * (n - 1) * ONE * ONE))
    return variance if stat == "var" else math.sqrt(variance)


def as_float(number: Fraction) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf
