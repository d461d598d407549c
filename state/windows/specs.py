"""Declarations of the aggregates over a key's events.

Every one of them is exact as of an event's own time, whatever the order of arrival, as long as the
event is within the allowed lateness; the event itself is included. For a key without events (as a
query-only row may have) an aggregate has the value that its class documents; it is never NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

from anabranch.state.durations import format_duration_ms
from anabranch.state.errors import DeclarationError
from anabranch.state.windows.statistics import STATISTICS

STATS = tuple(STATISTICS)
DECAYED_STATS = ("mean", "count", "sum")
# Half-lives without events after which a decayed key is reset: 2**-50 of its weight is left.
FORGOTTEN_AFTER = 50
LONGEST_MS = 2**53


@dataclass(frozen=True)
class WindowSpec:
    """Statistics over sliding windows: events with time in `(t - width, t]`.

    The statistics, and their values for an empty window, are those of
    `state.windows.statistics.STATISTICS`.

    Sums are compensated (about 32 digits). A variance below 1e-28 of the mean square is 0. While a
    value beyond 1e140 is in a window of two or more events, its std and var are infinite.

    Args:
        value: name of a float64 column; "" for windows that only count.
        widths_ms: of the windows.
        stats: of each window, names in `STATISTICS`.
        resolution_ms: 0 for exact windows; otherwise the width of the panes into which events are
            merged, see `state.windows.panes`.

    >>> WindowSpec("amount", (60_000, 3_600_000), ("count", "max")).columns()
    ['amount_1m_count', 'amount_1m_max', 'amount_1h_count', 'amount_1h_max']
    """

    value: str
    widths_ms: tuple[int, ...]
    stats: tuple[str, ...]
    resolution_ms: int = 0

    def __post_init__(self) -> None:
        _check_widths(self, self.widths_ms)
        unknown = [stat for stat in self.stats if stat not in STATS]
        if unknown or not self.stats:
            raise DeclarationError(f"{self}: statistics are some of {', '.join(STATS)}")
        if len(set(self.stats)) < len(self.stats):
            raise DeclarationError(f"{self}: a statistic is named twice")
        valued = [stat for stat in self.stats if STATISTICS[stat].needs_value]
        if not self.value and valued:
            raise DeclarationError(
                f"{self}: statistics {', '.join(valued)} need a value: name a column; without one "
                "there is 'count'"
            )
        if not 0 <= self.resolution_ms <= LONGEST_MS:
            raise DeclarationError(f"{self}: the resolution can't be negative")

    @property
    def retention_ms(self) -> int:
        """How far back an event looks: the longest width, and a pane where there are panes."""
        return max(self.widths_ms) + self.resolution_ms

    def memories_ms(self) -> list[int]:
        """For each feature how far back it looks."""
        return [width for width in self.widths_ms for _ in self.stats]

    def columns(self) -> list[str]:
        """Names of the features: for each width, for each statistic."""
        return [
            _name(self.value, format_duration_ms(width), stat)
            for width in self.widths_ms
            for stat in self.stats
        ]


@dataclass(frozen=True)
class SinceLastSpec:
    """Seconds since the key's previous event: the latest with time <= own that arrived before.

    When there is none within `within_ms`, the value is the cap, `within_ms / 1000`.

    >>> SinceLastSpec(86_400_000).columns()
    ['since_last_1d']
    """

    within_ms: int

    def __post_init__(self) -> None:
        _check_widths(self, (self.within_ms,))

    @property
    def retention_ms(self) -> int:
        """How far back an event looks."""
        return self.within_ms

    def memories_ms(self) -> list[int]:
        """For each feature how far back it looks."""
        return [self.within_ms]

    def columns(self) -> list[str]:
        """Name of the feature."""
        return [f"since_last_{format_duration_ms(self.within_ms)}"]


@dataclass(frozen=True)
class DistinctSpec:
    """Number of distinct values in sliding windows, exactly; 0 for an empty window.

    `value` names an int64 column of codes: equal codes are equal values.

    >>> DistinctSpec("merchant", (3_600_000,)).columns()
    ['merchant_1h_distinct']
    """

    value: str
    widths_ms: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_widths(self, self.widths_ms)
        if not self.value:
            raise DeclarationError(f"{self}: name the column whose distinct values are counted")

    @property
    def retention_ms(self) -> int:
        """How far back an event looks: the longest width."""
        return max(self.widths_ms)

    def memories_ms(self) -> list[int]:
        """For each feature how far back it looks."""
        return list(self.widths_ms)

    def columns(self) -> list[str]:
        """Names of the features, one per width."""
        return [_name(self.value, format_duration_ms(w), "distinct") for w in self.widths_ms]


@dataclass(frozen=True)
class DecayedSpec:
    """Statistics in which an event's weight halves with every `half_life_ms` of its age.

    `count` is the sum of weights, `sum` the weighted sum, `mean` their quotient; the event itself
    has weight 1. All are 0 for a key without events. A key is reset when 50 half-lives or more lie
    between one event and the next.

    >>> DecayedSpec("amount", 1_800_000).columns()
    ['amount_decay30m_mean', 'amount_decay30m_count', 'amount_decay30m_sum']
    """

    value: str
    half_life_ms: int
    stats: tuple[str, ...] = DECAYED_STATS

    def __post_init__(self) -> None:
        _check_widths(self, (self.half_life_ms * FORGOTTEN_AFTER,))
        unknown = [stat for stat in self.stats if stat not in DECAYED_STATS]
        if unknown or not self.stats or len(set(self.stats)) < len(self.stats):
            raise DeclarationError(f"{self}: statistics are some of {', '.join(DECAYED_STATS)}")
        if not self.value:
            raise DeclarationError(f"{self}: name the column whose values are to be weighted")

    @property
    def retention_ms(self) -> int:
        """How far back an event looks."""
        return FORGOTTEN_AFTER * self.half_life_ms

    def memories_ms(self) -> list[int]:
        """For each feature how far back it looks: before that, a weight is below 1/32."""
        return [5 * self.half_life_ms for _ in self.stats]

    def columns(self) -> list[str]:
        """Names of the features, one per statistic."""
        decay = f"decay{format_duration_ms(self.half_life_ms)}"
        return [_name(self.value, decay, stat) for stat in self.stats]


Spec = WindowSpec | SinceLastSpec | DistinctSpec | DecayedSpec


def _name(value: str, *parts: str) -> str:
    return "_".join((value, *parts) if value else parts)


def _check_widths(spec: Spec, widths_ms: tuple[int, ...]) -> None:
    if not widths_ms or len(set(widths_ms)) < len(widths_ms):
        raise DeclarationError(f"{spec}: name at least one duration, and none twice")
    if not all(0 < width <= LONGEST_MS for width in widths_ms):
        raise DeclarationError(f"{spec}: durations are positive, and below 2**53 ms")
