"""Degenerate feedback loops: scores of what labels come for, and how popular ranked items are."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import linear_model

from anabranch import Distributions, Event, Label, Pipeline, field
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.pipelines.loader import load_pipeline
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics
from anabranch.models.metrics.popularity import CELLS, DECAY_EVERY, Popularity
from anabranch.state.keys.hashing import hash64
from anabranch.state.store.delta import decode, encode, merge
from tests.dataflows.source.test_source_resume import run

T0 = 1_700_000_000_000
PAGES = 6000
ITEMS = [f"i{n}" for n in range(60)]
WATCHED = Distributions(window=200, reference="30m")


class Page(Event):
    """Items that are shown, with what they cost."""

    id: str
    ts: int
    items: list[str]
    prices: list[float]


class Choice(Label):
    """What was chosen."""

    id: str
    ts: int
    item: str


def shop(**changes: Any) -> Pipeline:
    declared: dict[str, Any] = {
        "name": "shop", "event": Page, "candidates": "items", "features": [field("prices")],
        "label": Choice.target("item", timeout="10m"), "model": linear_model.LogisticRegression(),
        "distributions": WATCHED, "metrics": (),
    }  # fmt: skip
    return Pipeline(**(declared | changes))


def shop_bus(loop: bool) -> MemoryBus:
    """A page a second, of five items; the cheapest is chosen. In a loop two are always cheap."""
    chance, bus = random.Random(3), MemoryBus()
    bus.create_topics({"shop.events": 1, "shop.labels": 1})
    publisher = bus.publisher()
    for number in range(PAGES):
        time = T0 + number * 1000
        items = chance.sample(ITEMS[2:], 5)
        prices = [chance.random() for _ in items]
        if loop and number > PAGES * 0.6:
            items[:2], prices[:2] = ITEMS[:2], [prices[0] - 1, prices[1] - 1]
        page = {"id": f"p{number}", "ts": time, "items": items, "prices": prices}
        publisher.append("shop.events", [json.dumps(page).encode()], partitions=0, times=[time])
        chosen = items[int(np.argmin(prices))]
        said = {"id": f"p{number}", "ts": time + 5, "item": chosen}
        publisher.append("shop.labels", [json.dumps(said).encode()], partitions=0, times=[time + 5])
    return bus


def found_of(loop: bool, limit: int = 500, metrics: WorkerMetrics | None = None) -> list[Any]:
    bus = shop_bus(loop)
    run_worker(shop(), bus, SourceOptions(limit=limit, until_end=True), metrics=metrics)
    found = map(json.loads, bus.values("shop.drift"))
    return sorted((s for s in found if s["kind"] == "feedback"), key=lambda s: (s["ts"], str(s)))


def test_a_loop_shows_in_how_popular_the_first_and_the_chosen_are():
    metrics = WorkerMetrics("shop")
    found = found_of(True, metrics=metrics)
    drifted = {each["subject"] for each in found if each["severity"] == "drift"}
    assert drifted == {"popularity of the first", "popularity of the chosen"}
    assert all(each["began"] > T0 + PAGES * 600 for each in found if each["severity"] == "drift")
    assert [found_of(True, limit) for limit in (7, 100)] == [found] * 2
    value = metrics.registry.get_sample_value
    popular = {"pipeline": "shop", "kind": "first", "bucket": "4 or more"}
    assert value("anabranch_feedback_total", popular) > PAGES * 0.2


def test_without_a_loop_there_is_none():
    assert [each for each in found_of(False) if each["severity"] == "drift"] == []


def test_a_run_that_is_stopped_anywhere_gives_the_same_signals(tmp_path: Path):
    flow = "from tests.models.metrics.test_feedback import shop\npipeline = shop()\n"
    (tmp_path / "flow.py").write_text(flow)
    pipeline = load_pipeline(str(tmp_path / "flow.py"))
    bus, chance, stops = shop_bus(True), random.Random(1), 0
    while run(pipeline, bus, tmp_path / "state", reads=chance.randrange(5, 40), batch=100):
        stops += 1
    assert stops > 2
    found = map(json.loads, bus.values("shop.drift"))
    kept = [each for each in found if each["kind"] == "feedback"]
    assert sorted(kept, key=lambda s: (s["ts"], str(s))) == found_of(True)


class Loan(Event):
    """What is asked for."""

    id: str
    ts: int
    income: float


class Repaid(Label):
    """Known of loans that were given."""

    id: str
    ts: int
    repaid: bool


@pytest.mark.parametrize("loop", [False, True])
def test_labels_that_come_for_high_scores_alone_are_a_loop(loop):
    """From the middle on only those get a loan whom the model likes; of the others nobody hears."""
    pipeline = Pipeline(
        name="loans", event=Loan, label=Repaid.target("repaid", timeout="1m"),
        features=[field("income")], model=linear_model.LogisticRegression(),
        distributions=WATCHED, metrics=(),
    )  # fmt: skip
    rng, bus = np.random.default_rng(1), MemoryBus()
    bus.create_topics({"loans.events": 1, "loans.labels": 1})
    publisher = bus.publisher()
    for number in range(6000):
        time, income = T0 + number * 1000, float(rng.normal())
        loan = {"id": f"l{number}", "ts": time, "income": income}
        publisher.append("loans.events", [json.dumps(loan).encode()], partitions=0, times=[time])
        if not loop or number < 4000 or income > 0.5:
            repaid = bool(income + rng.normal() > 0)
            said = json.dumps({"id": f"l{number}", "ts": time + 500, "repaid": repaid}).encode()
            publisher.append("loans.labels", [said], partitions=0, times=[time + 500])
    metrics = WorkerMetrics("loans")
    run_worker(pipeline, bus, SourceOptions(until_end=True), metrics=metrics)
    drifted = {
        (each["kind"], each["subject"])
        for each in map(json.loads, bus.values("loans.drift"))
        if each["severity"] == "drift"
    }
    assert (("feedback", "labelled scores") in drifted) is loop
    assert ("prediction", "prediction") not in drifted
    value = metrics.registry.get_sample_value
    counts = {
        what: sum(
            value("anabranch_feedback_total", {"pipeline": "loans", "kind": what, "bucket": b}) or 0
            for b in (f"{tenth / 10:.1f}" for tenth in range(10))
        )
        for what in ("predictions", "labels", "true labels")
    }
    assert counts["predictions"] == 6000
    assert counts["labels"] == (6000 if not loop else len(list(bus.values("loans.labels"))))
    assert 0 < counts["true labels"] < counts["labels"]


@given(
    numbers=st.lists(st.integers(0, 40), min_size=1, max_size=3000),
    cuts=st.sets(st.integers(0, 2999), max_size=5), again=st.booleans(),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_popularity_is_that_of_a_count_that_fades(numbers, cuts, again):
    hashes = hash64([f"i{n}" for n in numbers])
    counts: dict[int, float] = {}
    want = []
    for seen, cell in enumerate((hashes % np.uint64(CELLS)).tolist(), 1):
        mean = sum(counts.values()) / len(counts) if counts else 0.0
        want.append(np.log2((counts.get(cell, 0.0) + 1) / (mean + 1)))
        counts[cell] = counts.get(cell, 0.0) + 1
        if seen % DECAY_EVERY == 0:
            counts = {key: n * 0.95 for key, n in counts.items() if n * 0.95 >= 0.01}
    popularity, found, kept = Popularity(), [], []
    for part in np.split(hashes, sorted(cut for cut in cuts if cut < len(hashes))):
        found += popularity.of(part).tolist()
        kept.append(decode(encode(popularity.changes())))
        if again:
            popularity = Popularity()
            popularity.restore(merge(kept))
    np.testing.assert_allclose(found, want, atol=1e-9)
