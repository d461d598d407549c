"""Simulates card payments, a few of them fraudulent, and verdicts that arrive later.

Cards pay from time to time, mostly in their home country, at merchants with different price levels.
Some cards are stolen: several quick, larger payments follow, mostly abroad and at risky merchants.
Whether a payment is fraud is drawn from a probability that is a formula of what a stream processor
can know::

    logit = -6.2 + 0.7 · (payments of the card in the last 10 minutes - 1, at most 5)
                 + 0.9 · (log amount - the card's mean log amount, 0 to 3)
                 + 0.4 · (night, 00–05 UTC) + 1.3 · (abroad) + 2.8 · (risky merchant)

so the best log loss and ROC AUC that any model could reach are known (`Payments.probability`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from anabranch.producers.arrival_process import DAY_MS, MONDAY_MS, DailyArrivals, draw, zipf_weights
from anabranch.producers.batch import Batch
from anabranch.producers.simulators.faults import Faults
from anabranch.producers.simulators.recent_counts import RecentCounts
from anabranch.producers.simulators.timeline import Chunk, timeline

COUNTRIES = ("US", "DE", "FR", "GB", "ES", "IT", "NL", "PL")
_SHARES = np.array([0.3, 0.18, 0.14, 0.14, 0.08, 0.07, 0.05, 0.04])
_TEN_MINUTES_MS = 600_000
_NIGHT_ENDS_MS = 5 * 3_600_000
_ROWS = np.dtype(
    [
        ("ts", np.int64),
        ("card", np.int64),
        ("merchant", np.int64),
        ("country", np.int64),
        ("amount", np.float64),
        ("risk_draw", np.float64),  # of a thief's payment at a risky merchant: which one; else -1
        ("only_after", np.bool_),  # happens only after the drift
        ("chance", np.float64),  # fraud if below its probability
        ("delay_ms", np.int64),  # of the verdict, -1 for never
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentSettings:
    """The parameters of the simulated world.

    Attributes:
        cards, merchants: their number.
        rate: mean payments per second of event time, without thefts.
        thefts_per_payment: how many cards are stolen for each payment.
        start_ms: when the first event may happen, epoch ms.
        drift_at: number of the payment from which on fraud is at other merchants, at the cheapest
            tenth instead of the most expensive, and twice as many cards are stolen. None: never.
        verdict_median_s: median delay of a verdict, in seconds (log-normal, sigma 1).
        unlabelled: share of payments that never get a verdict.
        chunk: about how many payments are simulated at once.
    """

    cards: int = 2000
    merchants: int = 300
    rate: float = 1.0
    thefts_per_payment: float = 0.006
    start_ms: int = MONDAY_MS
    drift_at: int | None = None
    verdict_median_s: float = 1200.0
    unlabelled: float = 0.05
    chunk: int = 4096


@dataclass(frozen=True, slots=True)
class Payments:
    """Payments in order of time, column by column, with the ground truth.

    ``first`` is the number of the first. The columns are ``(n,)``: ``ts`` epoch ms; ``card``,
    ``merchant`` and ``country`` indices; ``amount`` with two decimals; ``probability`` of fraud and
    ``fraud`` as drawn from it; ``verdict_ms`` when the verdict arrives, -1 for never.
    """

    first: int
    until_ms: int
    ts: NDArray[np.int64]
    card: NDArray[np.int64]
    merchant: NDArray[np.int64]
    country: NDArray[np.int64]
    amount: NDArray[np.float64]
    probability: NDArray[np.float64]
    fraud: NDArray[np.bool_]
    verdict_ms: NDArray[np.int64]


class PaymentWorld:
    """The cards and merchants of one seed, and their payments."""

    def __init__(self, seed: int, settings: PaymentSettings) -> None:
        self._settings = settings
        self._random = random = np.random.default_rng([seed, 1])
        self._arrivals = DailyArrivals(settings.rate)
        self._card_shares = random.permutation(zipf_weights(settings.cards, 0.3))
        self._mean_amount = random.normal(3.2, 0.5, settings.cards)  # log amount
        self._home = draw(random, _SHARES, settings.cards)
        self._merchant_shares = random.permutation(zipf_weights(settings.merchants, 0.9))
        self._price = random.normal(0.0, 0.45, settings.merchants)  # log, added to the card's mean
        by_price = np.argsort(self._price)
        tenth = max(1, settings.merchants // 10)
        self._risky = np.zeros((2, settings.merchants), bool)  # before and after the drift
        self._risky_lists = np.stack([by_price[-tenth:], by_price[:tenth]])
        self._risky[0, self._risky_lists[0]] = self._risky[1, self._risky_lists[1]] = True
        self._recent = RecentCounts(_TEN_MINUTES_MS)
        self._future = np.empty(0, _ROWS)  # a thief's payments after the current chunk

    def payments(self, events: int | None = None) -> Iterator[Payments]:
        """The first ``events`` payments, or an endless stream."""
        settings, number, now = self._settings, 0, self._settings.start_ms
        step = max(1000, round(settings.chunk / settings.rate * 1000))
        while events is None or number < events:
            until = now + step
            rows = np.concatenate([self._future, self._regular_rows(now, until)])
            rows = np.concatenate([rows, self._stolen_rows(now, until)])
            rows = rows[np.argsort(rows["ts"], kind="stable")]
            due = int(np.searchsorted(rows["ts"], until))
            rows, self._future = self._without_later(rows[:due], number), rows[due:]
            yield self._outcomes(rows, number, until, None if events is None else events - number)
            number, now = number + len(rows), until

    def _without_later(self, rows: NDArray[np.void], first: int) -> NDArray[np.void]:
        """The rows without those that happen only after the drift, unless it has come."""
        drift_at, later = self._settings.drift_at, rows["only_after"]
        if drift_at is None:
            return np.asarray(rows[~later])
        return np.asarray(rows[~later | (first + np.cumsum(~later) > drift_at)])

    def _regular_rows(self, start_ms: int, until_ms: int) -> NDArray[np.void]:
        random = self._random
        times = self._arrivals.arrivals(random, start_ms, until_ms)
        rows = np.empty(len(times), _ROWS)
        rows["ts"] = times
        rows["card"] = card = draw(random, self._card_shares, len(rows))
        rows["merchant"] = merchant = draw(random, self._merchant_shares, len(rows))
        abroad = random.random(len(rows)) < 0.03
        away = draw(random, _SHARES, len(rows))
        rows["country"] = np.where(abroad, away, self._home[card])
        noise = random.normal(0.0, 0.4, len(rows))
        rows["amount"] = np.exp(self._mean_amount[card] + self._price[merchant] + noise)
        rows["risk_draw"] = -1.0
        rows["only_after"] = False
        self._draw_outcomes(rows)
        return rows

    def _draw_outcomes(self, rows: NDArray[np.void]) -> None:
        """Draw chance and delay together with the row, so that no other row affects them."""
        random, settings = self._random, self._settings
        rows["chance"] = random.random(len(rows))
        delays_s = settings.verdict_median_s * np.exp(random.normal(0.0, 1.0, len(rows)))
        unlabelled = random.random(len(rows)) < settings.unlabelled
        rows["delay_ms"] = np.where(unlabelled, -1, 1000 + (delays_s * 1000).astype(np.int64))

    def _stolen_rows(self, start_ms: int, until_ms: int) -> NDArray[np.void]:
        """The payments with all cards stolen in this period, some of them after its end."""
        random, settings = self._random, self._settings
        share = 2 * settings.thefts_per_payment  # half of them only after the drift
        starts = replace(self._arrivals, rate=settings.rate * share).arrivals(
            random, start_ms, until_ms
        )
        thefts = len(starts)
        sizes = 3 + random.poisson(3.0, thefts)
        theft = np.repeat(np.arange(thefts), sizes)
        gaps = (1000 * (5 + random.exponential(40.0, len(theft)))).astype(np.int64)
        elapsed = np.cumsum(gaps)
        first = np.cumsum(sizes) - sizes
        card = draw(random, self._card_shares, thefts)
        where = np.where(
            random.random(thefts) < 0.7, draw(random, _SHARES, thefts), self._home[card]
        )
        rows = np.empty(len(theft), _ROWS)
        rows["ts"] = starts[theft] + elapsed - elapsed[first][theft]
        rows["card"] = card[theft]
        rows["country"] = where[theft]
        rows["merchant"] = draw(random, self._merchant_shares, len(rows))
        rows["amount"] = np.exp(
            self._mean_amount[rows["card"]] + random.normal(1.2, 0.5, len(rows))
        )
        at_risky = random.random(len(rows)) < 0.7
        rows["risk_draw"] = np.where(at_risky, random.random(len(rows)), -1.0)
        rows["only_after"] = (random.random(thefts) < 0.5)[theft]
        self._draw_outcomes(rows)
        return rows

    def _outcomes(
        self, rows: NDArray[np.void], first: int, until_ms: int, limit: int | None
    ) -> Payments:
        """The payments of ``rows`` with their outcomes, at most ``limit`` of them."""
        settings = self._settings
        numbers = first + np.arange(len(rows))
        moved = (
            np.zeros(len(rows), np.int64)
            if settings.drift_at is None
            else (numbers >= settings.drift_at).astype(np.int64)
        )
        risky_list = self._risky_lists[moved]
        index = (np.maximum(rows["risk_draw"], 0) * risky_list.shape[1]).astype(np.int64)
        chosen = risky_list[np.arange(len(rows)), index]
        merchant = np.where(rows["risk_draw"] >= 0, chosen, rows["merchant"])
        amount = np.round(np.maximum(rows["amount"], 0.01), 2)
        probability = self._probability(rows, merchant, amount, moved)
        verdict = np.where(rows["delay_ms"] < 0, -1, rows["ts"] + rows["delay_ms"])
        cut = slice(0, limit)
        return Payments(
            first=first,
            until_ms=until_ms,
            ts=rows["ts"][cut],
            card=rows["card"][cut],
            merchant=merchant[cut],
            country=rows["country"][cut],
            amount=amount[cut],
            probability=probability[cut],
            fraud=(rows["chance"] < probability)[cut],
            verdict_ms=verdict[cut],
        )

    def _probability(
        self,
        rows: NDArray[np.void],
        merchant: NDArray[np.int64],
        amount: NDArray[np.float64],
        moved: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """The formula in this module's docstring."""
        card = rows["card"]
        before = np.minimum(self._recent.add(card, rows["ts"]) - 1, 5)
        larger = np.clip(np.log(amount) - self._mean_amount[card], 0.0, 3.0)
        night = rows["ts"] % DAY_MS < _NIGHT_ENDS_MS
        abroad = rows["country"] != self._home[card]
        risky = self._risky[moved, merchant]
        logit = -6.2 + 0.7 * before + 0.9 * larger + 0.4 * night + 1.3 * abroad + 2.8 * risky
        return np.asarray(1 / (1 + np.exp(-logit)))


class _Payment(msgspec.Struct, gc=False):
    id: str
    ts: int
    card: str
    merchant: str
    amount: float
    country: str


class _Verdict(msgspec.Struct, gc=False):
    id: str
    ts: int
    fraud: bool


def simulate_payments(
    *,
    seed: int = 0,
    events: int | None = None,
    settings: PaymentSettings | None = None,
    faults: Faults | None = None,
) -> Iterator[Batch]:
    """Payments and verdicts as messages, keyed by card; the same bytes for the same arguments.

    ``events`` is the number of payments; None for no end.
    """
    settings = settings or PaymentSettings()
    world = PaymentWorld(seed, settings)
    encode = _PaymentEncoder(settings)
    chunks = (encode(payments) for payments in world.payments(events))
    return timeline(chunks, faults or Faults(), seed)


class _PaymentEncoder:
    def __init__(self, settings: PaymentSettings) -> None:
        self._cards = np.array([f"c{n:05d}" for n in range(settings.cards)], object)
        self._card_keys = np.array([card.encode() for card in self._cards], object)
        self._merchants = np.array([f"m{n:04d}" for n in range(settings.merchants)], object)
        self._countries = np.array(COUNTRIES, object)
        self._encoder = msgspec.json.Encoder()

    def __call__(self, payments: Payments) -> Chunk:
        ids = [f"p{n:08d}" for n in range(payments.first, payments.first + len(payments.ts))]
        rows = map(
            _Payment,
            ids,
            payments.ts.tolist(),
            self._cards[payments.card].tolist(),
            self._merchants[payments.merchant].tolist(),
            payments.amount.tolist(),
            self._countries[payments.country].tolist(),
        )
        keys = self._card_keys[payments.card]
        events = Batch.of("events", self._lines(list(rows)), keys.tolist(), payments.ts)
        labelled = np.flatnonzero(payments.verdict_ms >= 0)
        when = payments.verdict_ms[labelled]
        verdicts = map(
            _Verdict,
            [ids[row] for row in labelled.tolist()],
            when.tolist(),
            payments.fraud[labelled].tolist(),
        )
        labels = Batch.of("labels", self._lines(list(verdicts)), keys[labelled].tolist(), when)
        return Chunk(payments.until_ms, events, labels, labelled)

    def _lines(self, rows: list[_Payment] | list[_Verdict]) -> list[bytes]:
        return self._encoder.encode_lines(rows).split(b"\n")[:-1]
