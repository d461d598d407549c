"""Simulates impressions shown to visitors in sessions, and which of them are clicked.

A visitor comes, is shown one item after another, stays with a few categories or wanders, and goes.
Whether an impression is clicked is drawn from a probability that is a formula of what a stream
processor can know of the session::

    logit = -3.4 + 0.14 · (impressions of the session before this one, at most 10)
                 - 0.35 · (categories of the session so far, this one's included, less 1)
                 + 1.6 · (time since the session's last impression, at most 60 s, in minutes)
                 - 0.5 · log(position) - 0.6 · (log price, standardised)
                 + 0.6 · (log popularity of the item, standardised)

A session's first impression counts as 60 s after nothing. A click is published when it happens,
within ten minutes; that there was none is told by nothing. The best log loss and ROC AUC that any
model could have are known (`Impressions.probability`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from producers.batch import Batch
from producers.faults import Faults
from producers.rhythm import MONDAY_MS, DailyRhythm, draw, zipf_weights
from producers.timeline import Chunk, timeline

CATEGORIES = (
    "books",
    "music",
    "films",
    "games",
    "shoes",
    "coats",
    "garden",
    "kitchen",
    "toys",
    "phones",
    "bikes",
    "tools",
)
TIMEOUT_MS = 600_000
"""After how long an impression counts as not clicked."""

_LONGEST_SESSION = 40
_LONGEST_DWELL_S = 60.0
_POSITIONS = 10
_ROWS = np.dtype(
    [
        ("ts", np.int64),
        ("visitor", np.int64),
        ("item", np.int64),
        ("position", np.int64),
        ("before", np.int64),
        ("categories", np.int64),
        ("dwell_s", np.float64),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClickSettings:
    """What the simulated shop is like.

    Attributes:
        visitors, items: how many there are.
        rate: mean impressions per second of event time.
        session_mean: mean impressions of a session (geometric, at most 40).
        start_ms: when the first session may begin, epoch ms.
        chunk: impressions that are simulated at once, about.
    """

    visitors: int = 5000
    items: int = 500
    rate: float = 2.0
    session_mean: float = 9.0
    start_ms: int = MONDAY_MS
    chunk: int = 4096


@dataclass(frozen=True, slots=True)
class Impressions:
    """Some impressions in order of time, column by column, with the truth about them.

    ``first`` is the number of the first; ``ts`` epoch ms, ``visitor`` and ``item`` are indices,
    ``position`` counts from 1. ``probability`` is that of a click, ``clicked`` what was drawn and
    ``label_ms`` when that is known. All are ``(n,)``.
    """

    first: int
    until_ms: int
    ts: NDArray[np.int64]
    visitor: NDArray[np.int64]
    item: NDArray[np.int64]
    position: NDArray[np.int64]
    probability: NDArray[np.float64]
    clicked: NDArray[np.bool_]
    label_ms: NDArray[np.int64]


class ClickWorld:
    """The visitors and items of one seed, and what happens between them.

    ``category`` ``(items,)`` indexes `CATEGORIES`; ``price`` ``(items,)`` has two decimals.
    """

    def __init__(self, seed: int, settings: ClickSettings) -> None:
        self._settings = settings
        self._random = random = np.random.default_rng([seed, 2])
        self._rhythm = DailyRhythm(settings.rate / settings.session_mean, 0.6, 19.0)
        self._visitor_shares = random.permutation(zipf_weights(settings.visitors, 0.3))
        self._item_shares = random.permutation(zipf_weights(settings.items, 0.8))
        self.category = random.permutation(np.arange(settings.items) % len(CATEGORIES))
        level = random.normal(3.0, 0.8, len(CATEGORIES))
        log_price = level[self.category] + random.normal(0.0, 0.4, settings.items)
        self.price = np.round(np.exp(log_price), 2)
        self._appeal = 0.6 * _standardised(np.log(self._item_shares)) - 0.6 * _standardised(
            log_price
        )
        # (categories, items): how likely each item is, given the category
        inside = self.category == np.arange(len(CATEGORIES))[:, None]
        self._within = np.where(inside, self._item_shares, 0.0)
        self._ahead = np.empty(0, _ROWS)

    def impressions(self, events: int | None = None) -> Iterator[Impressions]:
        """The first ``events`` impressions, or impressions without end."""
        settings, number, now = self._settings, 0, self._settings.start_ms
        step = max(1000, round(settings.chunk / settings.rate * 1000))
        while events is None or number < events:
            until = now + step
            rows = np.concatenate([self._ahead, self._sessions(now, until)])
            rows = rows[np.argsort(rows["ts"], kind="stable")]
            due = int(np.searchsorted(rows["ts"], until))
            rows, self._ahead = rows[:due], rows[due:]
            yield self._judge(rows, number, until, None if events is None else events - number)
            number, now = number + due, until

    def _sessions(self, start_ms: int, until_ms: int) -> NDArray[np.void]:
        """All impressions of the sessions that begin in this time, some of them after its end."""
        random = self._random
        begun = self._rhythm.arrivals(random, start_ms, until_ms)
        count, width = len(begun), _LONGEST_SESSION
        sizes = np.minimum(random.geometric(1 / self._settings.session_mean, count), width)
        shown = np.arange(width) < sizes[:, None]
        gaps = np.maximum(12.0 * np.exp(random.normal(0.0, 1.0, (count, width))), 0.5)
        gaps[:, 0] = 0.0
        items, categories = self._walk(count)
        rows = np.empty((count, width), _ROWS)
        rows["ts"] = begun[:, None] + (np.cumsum(gaps, axis=1) * 1000).astype(np.int64)
        rows["visitor"] = draw(random, self._visitor_shares, count)[:, None]
        rows["item"] = items
        rows["position"] = random.integers(1, _POSITIONS + 1, (count, width))
        rows["before"] = np.arange(width)
        rows["categories"] = categories
        rows["dwell_s"] = np.minimum(gaps, _LONGEST_DWELL_S)
        rows["dwell_s"][:, 0] = _LONGEST_DWELL_S
        return np.asarray(rows[shown])

    def _walk(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Items of ``count`` sessions and categories seen so far, both ``(count, 40) int64``."""
        random, shape = self._random, (count, _LONGEST_SESSION)
        favourite = random.integers(0, len(CATEGORIES), count)
        faithful = random.beta(2.0, 1.5, count)
        stays = random.random(shape) < faithful[:, None]
        wanders = random.integers(0, len(CATEGORIES), shape)
        category = np.where(stays, favourite[:, None], wanders)
        items = np.empty(shape, np.int64)
        seen = np.zeros(shape, np.int64)
        for index in range(len(CATEGORIES)):
            here = category == index
            items[here] = draw(random, self._within[index], int(here.sum()))
            seen += np.logical_or.accumulate(here, axis=1)
        return items, seen

    def _judge(
        self, rows: NDArray[np.void], first: int, until_ms: int, limit: int | None
    ) -> Impressions:
        """Draw what became of the impressions ``rows``, of which at most ``limit`` are kept."""
        random = self._random
        logit = (
            -3.4
            + 0.14 * np.minimum(rows["before"], 10)
            - 0.35 * (rows["categories"] - 1)
            + 1.6 * rows["dwell_s"] / 60
            - 0.5 * np.log(rows["position"])
            + self._appeal[rows["item"]]
        )
        probability = 1 / (1 + np.exp(-logit))
        clicked = random.random(len(rows)) < probability
        delays = 8.0 * np.exp(random.normal(0.0, 1.0, len(rows)))
        delays_ms = np.minimum((delays * 1000).astype(np.int64) + 1, TIMEOUT_MS - 1)
        cut = slice(0, limit)
        return Impressions(
            first=first,
            until_ms=until_ms,
            ts=rows["ts"][cut],
            visitor=rows["visitor"][cut],
            item=rows["item"][cut],
            position=rows["position"][cut],
            probability=probability[cut],
            clicked=clicked[cut],
            label_ms=(rows["ts"] + np.where(clicked, delays_ms, TIMEOUT_MS))[cut],
        )


def _standardised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((values - values.mean()) / values.std())


class _Impression(msgspec.Struct, gc=False):
    id: str
    ts: int
    visitor: str
    item: str
    position: int
    category: str
    price: float


class _Click(msgspec.Struct, gc=False):
    id: str
    ts: int
    clicked: bool


def simulate_clicks(
    *,
    seed: int = 0,
    events: int | None = None,
    settings: ClickSettings | None = None,
    faults: Faults | None = None,
) -> Iterator[Batch]:
    """Impressions and clicks as messages, keyed by visitor; the same bytes for the same arguments.

    ``events`` is how many impressions there are, None for no end.
    """
    settings = settings or ClickSettings()
    world = ClickWorld(seed, settings)
    encode = _ClickEncoder(settings, world)
    chunks = (encode(impressions) for impressions in world.impressions(events))
    return timeline(chunks, faults or Faults(), seed)


class _ClickEncoder:
    def __init__(self, settings: ClickSettings, world: ClickWorld) -> None:
        self._visitors = np.array([f"v{n:05d}" for n in range(settings.visitors)], object)
        self._visitor_keys = np.array([visitor.encode() for visitor in self._visitors], object)
        self._items = np.array([f"i{n:04d}" for n in range(settings.items)], object)
        self._categories = np.array(CATEGORIES, object)[world.category]
        self._price = world.price
        self._encoder = msgspec.json.Encoder()

    def __call__(self, impressions: Impressions) -> Chunk:
        first, item = impressions.first, impressions.item
        ids = [f"i{n:08d}" for n in range(first, first + len(impressions.ts))]
        rows = map(
            _Impression,
            ids,
            impressions.ts.tolist(),
            self._visitors[impressions.visitor].tolist(),
            self._items[item].tolist(),
            impressions.position.tolist(),
            self._categories[item].tolist(),
            self._price[item].tolist(),
        )
        keys = self._visitor_keys[impressions.visitor].tolist()
        events = Batch.of("events", self._lines(list(rows)), keys, impressions.ts)
        judged = np.flatnonzero(impressions.clicked)
        when = impressions.label_ms[judged]
        clicks = [
            _Click(ids[row], time, True)
            for row, time in zip(judged.tolist(), when.tolist(), strict=True)
        ]
        keys_of_clicks = self._visitor_keys[impressions.visitor[judged]].tolist()
        labels = Batch.of("labels", self._lines(clicks), keys_of_clicks, when)
        return Chunk(impressions.until_ms, events, labels, judged)

    def _lines(self, rows: list[_Impression] | list[_Click]) -> list[bytes]:
        return self._encoder.encode_lines(rows).split(b"\n")[:-1]
