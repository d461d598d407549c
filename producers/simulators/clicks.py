"""Simulates a shop that shows items to visitors in sessions, and which items are clicked.

In a session a visitor is shown several pages of items. A session is about one category; its pages
hold items of all categories in random order. One item of a page is clicked, or none; which is drawn
by a multinomial logit, with a utility of 0 for no click::

    utility(item) = -5.0 + 0.14 · (pages of the session before this one, at most 10)
                         + 1.6 · (the item is of the session's category)
                         - 0.6 · (log price, standardised) + 0.6 · (log popularity, standardised)
                         - 0.5 · log(position)

Of the second line the shop knows a relevance: 1 or 0 plus normal noise of 0.5. A click is published
when it happens, within ten minutes; no message says that there was none. The probability of a click
is known for each item, and so is the best order (`Pages.probability`, `Pages.utility`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from anabranch.producers.arrival_process import MONDAY_MS, DailyArrivals, draw, zipf_weights
from anabranch.producers.batch import Batch
from anabranch.producers.simulators.faults import Faults
from anabranch.producers.simulators.timeline import Chunk, timeline

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
"""The time after which an impression counts as not clicked."""

_MAX_SESSION = 40
SHOWN = 8
"""The number of items on a page."""

_ROWS = np.dtype(
    [
        ("ts", np.int64),
        ("visitor", np.int64),
        ("category", np.int64),
        ("before", np.int64),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClickSettings:
    """The parameters of the simulated shop.

    Attributes:
        visitors, items: their number.
        rate: mean pages per second of event time.
        session_mean: mean pages of a session (geometric, at most 40).
        start_ms: when the first session may begin, epoch ms.
        chunk: about how many pages are simulated at once.
    """

    visitors: int = 5000
    items: int = 500
    rate: float = 2.0
    session_mean: float = 9.0
    start_ms: int = MONDAY_MS
    chunk: int = 4096


@dataclass(frozen=True, slots=True)
class Pages:
    """Pages in order of time, with the ground truth.

    ``first`` is the number of the first. ``ts`` (epoch ms) and ``visitor`` (an index) are ``(n,)``.
    ``items``, ``relevance``, ``utility`` (without the position's term) and ``probability`` (of a
    click) are ``(n, SHOWN)``, in the order of the page. ``clicked`` is the position of the clicked
    item, -1 for none, and ``label_ms`` when that is known, both ``(n,)``.
    """

    first: int
    until_ms: int
    ts: NDArray[np.int64]
    visitor: NDArray[np.int64]
    items: NDArray[np.int64]
    relevance: NDArray[np.float64]
    utility: NDArray[np.float64]
    probability: NDArray[np.float64]
    clicked: NDArray[np.int64]
    label_ms: NDArray[np.int64]


class ClickWorld:
    """The visitors and items of one seed, and the pages that visitors see.

    ``category`` ``(items,)`` indexes `CATEGORIES`; ``price`` ``(items,)`` has two decimals.
    """

    def __init__(self, seed: int, settings: ClickSettings) -> None:
        self._settings = settings
        self._random = random = np.random.default_rng([seed, 2])
        self._arrivals = DailyArrivals(settings.rate / settings.session_mean, 0.6, 19.0)
        self._visitor_shares = random.permutation(zipf_weights(settings.visitors, 0.3))
        self._item_shares = random.permutation(zipf_weights(settings.items, 0.8))
        self.category = random.permutation(np.arange(settings.items) % len(CATEGORIES))
        level = random.normal(3.0, 0.8, len(CATEGORIES))
        log_price = level[self.category] + random.normal(0.0, 0.4, settings.items)
        self.price = np.round(np.exp(log_price), 2)
        self._appeal = 0.6 * _standardised(np.log(self._item_shares)) - 0.6 * _standardised(
            log_price
        )
        self._future = np.empty(0, _ROWS)

    def pages(self, events: int | None = None) -> Iterator[Pages]:
        """The first ``events`` pages, or an endless stream."""
        settings, number, now = self._settings, 0, self._settings.start_ms
        step = max(1000, round(settings.chunk / settings.rate * 1000))
        while events is None or number < events:
            until = now + step
            rows = np.concatenate([self._future, self._sessions(now, until)])
            rows = rows[np.argsort(rows["ts"], kind="stable")]
            due = int(np.searchsorted(rows["ts"], until))
            rows, self._future = rows[:due], rows[due:]
            yield self._outcomes(rows, number, until, None if events is None else events - number)
            number, now = number + due, until

    def _sessions(self, start_ms: int, until_ms: int) -> NDArray[np.void]:
        """All pages of the sessions that start in this period, some of them after its end."""
        random = self._random
        starts = self._arrivals.arrivals(random, start_ms, until_ms)
        count, width = len(starts), _MAX_SESSION
        sizes = np.minimum(random.geometric(1 / self._settings.session_mean, count), width)
        shown = np.arange(width) < sizes[:, None]
        gaps = np.maximum(12.0 * np.exp(random.normal(0.0, 1.0, (count, width))), 0.5)
        gaps[:, 0] = 0.0
        rows = np.empty((count, width), _ROWS)
        rows["ts"] = starts[:, None] + (np.cumsum(gaps, axis=1) * 1000).astype(np.int64)
        rows["visitor"] = draw(random, self._visitor_shares, count)[:, None]
        rows["category"] = random.integers(0, len(CATEGORIES), count)[:, None]
        rows["before"] = np.arange(width)
        return np.asarray(rows[shown])

    def _outcomes(
        self, rows: NDArray[np.void], first: int, until_ms: int, limit: int | None
    ) -> Pages:
        """The pages of ``rows`` with their items and outcomes, at most ``limit`` of them."""
        random, count = self._random, len(rows)
        # The smallest of these keys are a weighted sample without replacement.
        keys = random.exponential(1.0, (count, len(self._item_shares))) / self._item_shares
        items = random.permuted(np.argpartition(keys, SHOWN, axis=1)[:, :SHOWN], axis=1)
        fits = self.category[items] == rows["category"][:, None]
        interest = 0.14 * np.minimum(rows["before"], 10)[:, None]
        utility = -5.0 + interest + 1.6 * fits + self._appeal[items]
        weight = np.exp(utility - 0.5 * np.log(np.arange(1, SHOWN + 1)))
        probability = weight / (1.0 + weight.sum(axis=1, keepdims=True))
        position = (random.random((count, 1)) >= np.cumsum(probability, axis=1)).sum(axis=1)
        clicked = np.where(position < SHOWN, position, -1)
        delays = 8.0 * np.exp(random.normal(0.0, 1.0, count))
        delays_ms = np.minimum((delays * 1000).astype(np.int64) + 1, TIMEOUT_MS - 1)
        relevance = np.round(fits + random.normal(0.0, 0.5, (count, SHOWN)), 3)
        cut = slice(0, limit)
        return Pages(
            first=first,
            until_ms=until_ms,
            ts=rows["ts"][cut],
            visitor=rows["visitor"][cut],
            items=items[cut],
            relevance=relevance[cut],
            utility=utility[cut],
            probability=probability[cut],
            clicked=clicked[cut],
            label_ms=(rows["ts"] + np.where(clicked >= 0, delays_ms, TIMEOUT_MS))[cut],
        )


def _standardised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((values - values.mean()) / values.std())


class _Page(msgspec.Struct, gc=False):
    id: str
    ts: int
    visitor: str
    items: list[str]
    categories: list[str]
    prices: list[float]
    relevance: list[float]


class _Click(msgspec.Struct, gc=False):
    id: str
    ts: int
    item: str


def simulate_clicks(
    *,
    seed: int = 0,
    events: int | None = None,
    settings: ClickSettings | None = None,
    faults: Faults | None = None,
) -> Iterator[Batch]:
    """Pages and clicks as messages, keyed by visitor; the same bytes for the same arguments.

    ``events`` is the number of pages; None for no end.
    """
    settings = settings or ClickSettings()
    world = ClickWorld(seed, settings)
    encode = _ClickEncoder(settings, world)
    chunks = (encode(pages) for pages in world.pages(events))
    return timeline(chunks, faults or Faults(), seed)


class _ClickEncoder:
    def __init__(self, settings: ClickSettings, world: ClickWorld) -> None:
        self._visitors = np.array([f"v{n:05d}" for n in range(settings.visitors)], object)
        self._visitor_keys = np.array([visitor.encode() for visitor in self._visitors], object)
        self._items = np.array([f"i{n:04d}" for n in range(settings.items)], object)
        self._categories = np.array(CATEGORIES, object)[world.category]
        self._price = world.price
        self._encoder = msgspec.json.Encoder()

    def __call__(self, pages: Pages) -> Chunk:
        first = pages.first
        ids = [f"p{n:08d}" for n in range(first, first + len(pages.ts))]
        names = self._items[pages.items]
        rows = map(
            _Page,
            ids,
            pages.ts.tolist(),
            self._visitors[pages.visitor].tolist(),
            names.tolist(),
            self._categories[pages.items].tolist(),
            self._price[pages.items].tolist(),
            pages.relevance.tolist(),
        )
        keys = self._visitor_keys[pages.visitor].tolist()
        events = Batch.of("events", self._lines(list(rows)), keys, pages.ts)
        labelled = np.flatnonzero(pages.clicked >= 0)
        when = pages.label_ms[labelled]
        chosen = names[labelled, pages.clicked[labelled]].tolist()
        clicks = [
            _Click(ids[row], time, item)
            for row, time, item in zip(labelled.tolist(), when.tolist(), chosen, strict=True)
        ]
        keys_of_clicks = self._visitor_keys[pages.visitor[labelled]].tolist()
        labels = Batch.of("labels", self._lines(clicks), keys_of_clicks, when)
        return Chunk(pages.until_ms, events, labels, labelled)

    def _lines(self, rows: list[_Page] | list[_Click]) -> list[bytes]:
        return self._encoder.encode_lines(rows).split(b"\n")[:-1]
