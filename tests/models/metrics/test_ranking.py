"""Rankings: a row per candidate, a list per event; and interleaved lists, compared by choices."""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import bandit, linear_model, naive_bayes, preprocessing

from anabranch import (
    ABTest,
    Bandit,
    Event,
    Interleave,
    Label,
    Pipeline,
    Shadow,
    field,
    hashed,
    inline,
    since_last,
    target,
    window,
)
from anabranch.dataflows.batch.candidates import Candidates
from anabranch.dataflows.bus import TopicPartition
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.bus.partitioner import partition_of_key
from anabranch.dataflows.pipelines.loader import load_pipeline
from anabranch.dataflows.replay.replay import ReplaySettings, replay
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.sharding.router import Router
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.dataflows.source.decoder import BatchDecoder
from anabranch.dataflows.source.event_time_merge import MergedReader
from anabranch.dataflows.source.late_and_duplicate import LateAndDuplicateFilter
from anabranch.dataflows.steps.model_step import ModelStep
from anabranch.dataflows.steps.window_step import WindowStep
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics
from anabranch.models.metrics.ranking import RankQuality, ranks_of
from anabranch.models.rollout.interleaving import interleave, team_draft
from anabranch.models.rollout.policies import Canary, Policy
from anabranch.state.errors import DeclarationError, InputError
from tests.dataflows.source.test_source_resume import run

T0 = 1_700_000_000_000
MINUTE = 60_000
PARTITIONS = 4
ITEMS = [f"i{n}" for n in range(9)]


class Page(Event):
    """Items that are shown to a visitor, with their prices."""

    id: str
    ts: int
    visitor: str
    items: list[str]
    prices: list[float | None]
    hour: float = 0.0


class Choice(Label):
    """What was chosen."""

    id: str
    ts: int
    item: str


FEATURES = (
    field("prices", fill_null=0.0),
    field("hour"),
    hashed("items", buckets=4),
    window("visitor", over=("10m", "2h")),
    window("visitor", "hour", over="1h", stats=("mean", "last")),
    since_last("visitor", within="1h"),
    window("items", over="1h"),
    window("items", "prices", over="1h", stats=("count", "mean")),
    window("items", target(), over="2h"),
)


def shop(**changes: Any) -> Pipeline:
    declared: dict[str, Any] = {
        "name": "shop",
        "event": Page,
        "candidates": "items",
        "label": Choice.target("item", timeout="10m"),
        "features": FEATURES,
        "model": naive_bayes.GaussianNB(),
        "allowed_lateness": "1m",
        "max_clock_skew": "1m",
        "with_features": True,
    }
    return Pipeline(**(declared | changes))


Message = tuple[str, int, str, dict[str, Any]]
"""Topic, time, key, and what it says."""


def traffic(seed: int, pages: int = 120, odd: bool = True) -> list[Message]:
    """Pages and choices, in the order of their times; and some that can't be ranked."""
    chance = random.Random(seed)
    found: list[Message] = []
    now = T0
    for number in range(pages):
        now += chance.choice([0, 1000, 20_000, MINUTE])
        items = chance.sample(ITEMS, chance.randint(1, 5))
        prices: list[Any] = [chance.choice([None, 1.0, 2.5, 7.0]) for _ in items]
        visitor = f"v{chance.randrange(5)}"
        behind = chance.choice([0, 0, 0, 5000, 50_000, 90_000])
        page = {"id": f"p{number}", "ts": now - behind, "visitor": visitor, "items": items,
                "prices": prices, "hour": float(number % 24)}  # fmt: skip
        kind = chance.randrange(12) if odd else 99
        if kind == 0:
            page |= {"items": [], "prices": []}
        elif kind == 1:
            page["items"] = items = [*items, items[0]]
            page["prices"] = [*prices, 1.0]
        elif kind == 2:
            page["prices"] = [*prices, 1.0]
        elif kind == 3:
            page["prices"] = [1e200] * len(items)
        elif kind == 4:
            page["id"] = f"p{max(number - 1, 0)}"
        found.append(("shop.events", now, visitor, page))
        if chance.random() < 0.7:
            delay = chance.choice([0, 3000, 5 * MINUTE, 20 * MINUTE])
            item = chance.choice([*items, "nothing of it"])
            said = {"id": page["id"], "ts": now + delay, "item": item}
            found.append(("shop.labels", now + delay, visitor, said))
            if chance.random() < 0.4:  # and another one
                other = said | {"item": chance.choice(ITEMS), "ts": said["ts"] + 2000}
                found.append(("shop.labels", other["ts"], visitor, other))
    return sorted(
        found, key=lambda message: (message[1], message[0])
    )  # on equal times, events first


def bus_with(pipeline: Pipeline, messages: list[Message], partitions: int = 1) -> MemoryBus:
    bus = MemoryBus()
    bus.create_topics(dict.fromkeys(pipeline.inputs, partitions))
    publisher = bus.publisher()
    for topic, time, key, said in messages:
        place = partition_of_key(key.encode(), partitions)
        publisher.append(topic, [json.dumps(said).encode()], partitions=place, times=[time])
    return bus


def outputs(pipeline: Pipeline, bus: MemoryBus) -> dict[str, list[list[bytes]]]:
    return {topic: [log.values for log in bus.logs(topic)] for topic in pipeline.topics.outputs}


def ranked(
    pipeline: Pipeline, messages: list[Message], limit: int = 50, partitions: int = 1
) -> dict[str, list[list[bytes]]]:
    bus = bus_with(pipeline, messages, partitions)
    run_worker(pipeline, bus, SourceOptions(limit=limit, until_end=True))
    return outputs(pipeline, bus)


def messages_of(found: dict[str, list[list[bytes]]], topic: str) -> list[dict[str, Any]]:
    return [json.loads(value) for log in found[topic] for value in log]


# Reference: what is known at each page, and what a model of River's makes of it.


class Reference:
    """One page after the other, with lists of everything that ever happened."""

    def __init__(self) -> None:
        self.visits: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self.shown: dict[str, list[tuple[int, float | None]]] = defaultdict(list)
        self.known: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self.waiting: dict[tuple[str, str], tuple[int, dict[str, float]]] = {}
        self.model = linear_model.LogisticRegression()
        self.watermark = 0
        self.lists: dict[str, list[tuple[str, float]]] = {}
        self.features: dict[tuple[str, str], dict[str, float]] = {}
        self.chosen_at: list[int] = []

    def take(self, topic: str, said: dict[str, Any]) -> None:
        time = said["ts"]
        self.watermark = max(self.watermark, time)
        for key, (began, x) in sorted(self.waiting.items(), key=lambda each: each[1][0]):
            if began + 10 * MINUTE < self.watermark:
                del self.waiting[key]
                self.learn(key, began + 10 * MINUTE, x, False)
        if topic == "shop.labels":
            key = said["id"], said["item"]
            if key in self.waiting:
                began, x = self.waiting.pop(key)
                self.learn(key, max(time, began), x, True)
                places = [item for item, _ in self.lists[said["id"]]]
                self.chosen_at.append(1 + places.index(said["item"]))
            return
        self.page(said, time)

    def page(self, page: dict[str, Any], time: int) -> None:
        visits = self.visits[page["visitor"]]
        before = [at for at, _ in visits if at <= time]
        visits.append((time, page["hour"]))

        def seen(minutes: int) -> float:
            return float(sum(time - minutes * MINUTE < at <= time for at, _ in visits))

        hours = [(at, hour) for at, hour in visits if time - 60 * MINUTE < at <= time]
        last = max(enumerate(hours), key=lambda each: (each[1][0], each[0]))[1][1]
        since = min(time - max(before), 3_600_000) if before else 3_600_000
        scores = []
        for item, price in zip(page["items"], page["prices"], strict=True):
            self.shown[item].append((time, price))
            of_item = [p for at, p in self.shown[item] if time - 60 * MINUTE < at <= time]
            paid = [p for p in of_item if p is not None]
            known = [y for at, y in self.known[item] if time - 120 * MINUTE < at <= time]
            x = {
                "prices": price or 0.0,
                "hour": page["hour"],
                "visitor_10m_count": seen(10),
                "visitor_2h_count": seen(120),
                "visitor_hour_1h_mean": sum(hour for _, hour in hours) / len(hours),
                "visitor_hour_1h_last": last,
                "visitor_since_last_1h": since / 1000,
                "items_1h_count": float(len(of_item)),
                "items_prices_1h_count": float(len(paid)),
                "items_prices_1h_mean": sum(paid) / len(paid) if paid else 0.0,
                "items_target_2h_count": float(len(known)),
                "items_target_2h_mean": sum(known) / len(known) if known else 0.0,
            }
            self.features[page["id"], item] = x
            self.waiting[page["id"], item] = time, x
            scores.append((item, self.model.predict_proba_one(x)[True]))
        order = sorted(scores, key=lambda each: -each[1])
        self.lists[page["id"]] = order

    def learn(self, key: tuple[str, str], time: int, x: dict[str, float], chosen: bool) -> None:
        self.model.learn_one(x, chosen)
        self.known[key[1]].append((time, float(chosen)))


@pytest.mark.parametrize("seed", range(4))
def test_every_candidate_is_a_row_of_its_own(seed):
    """Features, scores and order of each list equal those of a loop over plain lists and River."""
    plain = [each for each in FEATURES if not each.columns()[0].startswith("items#")]
    model = linear_model.LogisticRegression()
    pipeline = shop(features=plain, allowed_lateness="2m", model=model)
    messages = traffic(seed, odd=False)
    found = ranked(pipeline, messages)
    reference = Reference()
    for topic, _, _, said in messages:
        reference.take(topic, said)
    rankings = messages_of(found, "shop.predictions")
    pages = [said["id"] for topic, _, _, said in messages if topic == "shop.events"]
    assert [each["id"] for each in rankings] == pages
    for each in rankings:
        for entry in each["ranking"]:
            mine = reference.features[each["id"], entry["item"]]
            assert entry["features"] == pytest.approx(mine, rel=1e-9), (each["id"], entry["item"])
            assert entry["ranker"] == each["model"] == "LogisticRegression"
        expected = reference.lists[each["id"]]
        assert [entry["item"] for entry in each["ranking"]] == [item for item, _ in expected]
        scores = [entry["score"] for entry in each["ranking"]]
        assert scores == pytest.approx([score for _, score in expected], rel=1e-6)
    assert len(reference.chosen_at) > 20


def test_what_can_not_be_ranked_is_a_dead_letter_with_its_reason():
    pipeline = shop(max_candidates=4)
    found = ranked(pipeline, traffic(5, pages=300))
    reasons = {each["reason"] for each in messages_of(found, "shop.dead-letters")}
    assert reasons >= {
        "no candidates", "repeated candidate", "does not fit the candidates", "number too large",
        "too many candidates", "duplicate id", "late", "label without event",
    }  # fmt: skip
    events = sum(len(log) for log in found["shop.predictions"])
    dead = messages_of(found, "shop.dead-letters")
    dead_letters = {each["offset"] for each in dead if each["topic"] == "shop.events"}
    assert events + len(dead_letters) == 300
    assert not dead_letters & {each["offset"] for each in messages_of(found, "shop.predictions")}


POLICIES: dict[str, Policy] = {
    "interleaved": Interleave(alpha=0.3, report_every=20),
    "partly interleaved": Interleave(split=0.8, alpha=0.3, report_every=5),
    "canary": Canary(steps=(0.5, 1.0), min_labels=5, alpha=0.3),
    "shadow": Shadow(),
}


def challenged(policy: Policy) -> Pipeline:
    linear = preprocessing.StandardScaler() | linear_model.LogisticRegression()
    return shop(challengers={"linear": linear}, rollout=policy)


@pytest.mark.parametrize("policy", [None, *POLICIES])
@given(seed=st.integers(0, 10**6), limits=st.sets(st.sampled_from([2, 3, 7, 1000]), min_size=1))
@settings(max_examples=4, deadline=None)
def test_no_cut_shows(policy, seed, limits):
    pipeline = shop() if policy is None else challenged(POLICIES[policy])
    messages = traffic(seed)
    for partitions in (1, 3):
        whole = ranked(pipeline, messages, 1, partitions)
        for limit in limits:
            assert ranked(pipeline, messages, limit, partitions) == whole


@pytest.mark.parametrize("policy", ["interleaved", "partly interleaved"])
def test_no_restart_shows(policy, tmp_path: Path):
    (tmp_path / "flow.py").write_text(
        "from tests.models.metrics.test_ranking import POLICIES, challenged\n"
        f"pipeline = challenged(POLICIES[{policy!r}])\n"
    )
    pipeline, messages = load_pipeline(str(tmp_path / "flow.py")), traffic(8, pages=250)
    whole = ranked(pipeline, messages)
    assert any(b'"promoted"' in v or b'"progress"' in v for v in whole["shop.rollouts"][0])
    chance, bus, stops = random.Random(2), bus_with(pipeline, messages), 0
    state = tmp_path / "state"
    while run(pipeline, bus, state, reads=chance.randrange(5, 40), batch=chance.randrange(1, 9)):
        stops += 1
    assert stops > 3
    assert outputs(pipeline, bus) == whole


def test_two_workers_give_the_features_of_one():
    pipeline, messages = shop(label=Choice.target("item", timeout="1h")), traffic(3, odd=False)
    messages = [each for each in messages if each[0] == "shop.events"]  # labels may come otherwise
    alone = {
        (each["partition"], each["offset"], entry["item"]): entry["features"]
        for each in messages_of(ranked(pipeline, messages, 50, PARTITIONS), "shop.predictions")
        for entry in each["ranking"]
    }
    bus, metrics = bus_with(pipeline, messages, PARTITIONS), WorkerMetrics("shop")
    reader = MergedReader(bus, list(pipeline.inputs), worker_id="0", limit=20)
    reader.add({TopicPartition(t, n): 0 for t in pipeline.inputs for n in range(PARTITIONS)})
    decoder, spread = BatchDecoder(pipeline), Candidates(pipeline)
    late_filter = LateAndDuplicateFilter(pipeline.allowed_lateness, pipeline.dedup_window)
    router, models = Router(pipeline, 3, 2), ModelStep(pipeline, metrics, workers=2)
    shards = {str(n): WindowStep(pipeline, metrics, 2) for n in range(3)}
    made = []
    while (raw := reader.read()) is not None:
        batch = spread.expand(late_filter.apply(spread.check(decoder.decode(raw))))
        for key, item in router.route(batch, batch.span[1]):
            for filled in shards[key].on_batch([item])[0]:
                made += models.on_batch([filled])[0]
    names = pipeline.columns
    found = {
        (int(p), int(o), item): dict(zip(names, row, strict=True))
        for each in made
        for p, o, item, row in zip(
            each.batch.partitions,
            each.batch.offsets,
            each.batch.columns["items"],
            each.batch.features.tolist(),
            strict=True,
        )
    }
    assert found.keys() == alone.keys()
    for place, features in alone.items():
        assert found[place] == features, place


def test_where_the_chosen_ones_stood_is_measured():
    plain = [each for each in FEATURES if "#" not in each.columns()[0]]
    model = linear_model.LogisticRegression()
    pipeline = shop(features=plain, allowed_lateness="2m", model=model)
    messages = traffic(1, odd=False)
    bus, reference = bus_with(pipeline, messages), Reference()
    for topic, _, _, said in messages:
        reference.take(topic, said)
    quality = RankQuality()
    quality.update(np.array(reference.chosen_at))
    metrics = WorkerMetrics("shop")
    run_worker(pipeline, bus, SourceOptions(until_end=True), metrics=metrics)
    read = metrics.registry.get_sample_value
    for name, value in quality.values().items():
        sample = {"pipeline": "shop", "model": "served", "metric": name}
        assert read("anabranch_model_quality", sample) == pytest.approx(value)


@given(
    scores=st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), min_size=1, max_size=12),
    cuts=st.sets(st.integers(1, 11)),
)
def test_ranks_are_an_order_by_score(scores, cuts):
    groups = np.cumsum([row in cuts for row in range(len(scores))])
    ranks = ranks_of(groups, np.array(scores))
    for group in set(groups.tolist()):
        rows = np.flatnonzero(groups == group)
        assert sorted(ranks[rows].tolist()) == list(range(1, len(rows) + 1))
        by_rank = [scores[row] for row in rows[np.argsort(ranks[rows])]]
        known = [score for score in by_rank if not math.isnan(score)]
        assert known == sorted(known, reverse=True)
        assert all(math.isnan(score) for score in by_rank[len(known) :])


@given(size=st.integers(1, 12), coins=st.integers(0, 2**53 - 1), seed=st.integers(0, 999))
def test_a_draft_is_fair_in_every_turn(size, coins, seed):
    chance = np.random.default_rng(seed)
    ours, theirs = chance.permutation(size), chance.permutation(size)
    order, teams = team_draft(ours, theirs, coins)
    assert sorted(order) == list(range(size))
    for turn in range(0, size - 1, 2):
        assert {teams[turn], teams[turn + 1]} == {False, True}
    for at, (item, is_theirs) in enumerate(zip(order, teams, strict=True)):
        ranking = (theirs if is_theirs else ours).tolist()
        assert item == next(each for each in ranking if each not in order[:at])


def test_who_goes_first_is_drawn_evenly_and_again_for_each_rollout():
    events = 4000
    groups = np.repeat(np.arange(events), 2)
    scores = np.tile([0.9, 0.1], events), np.tile([0.1, 0.9], events)
    lists = np.repeat(np.arange(events, dtype=np.uint64), 2)
    ranks, by_it = interleave(groups, scores, lists, "shop-1")
    assert (by_it[1::2]).all()  # its favourite is the second row
    share = float(np.mean(ranks[1::2] == 1))
    assert abs(share - 0.5) < 4 * 0.5 / math.sqrt(events)
    other, _ = interleave(groups, scores, lists, "shop-2")
    assert 0.4 < float(np.mean(other[1::2] == ranks[1::2])) < 0.6


def rows_of(*pages: dict[str, Any]) -> list[Message]:
    """Pages of two items, a minute after another, with what each says otherwise."""
    found: list[Message] = []
    for at, said in enumerate(pages):
        time = T0 + MINUTE * at
        usual = {"id": f"e{at}", "ts": time, "visitor": "v1", "items": ["x", "y"], "prices": [1, 2]}
        found.append(("shop.events", time, "v1", usual | said))
    return found


@pytest.mark.parametrize("policy", [ABTest(alpha=1e-6), Canary(steps=(0.5,), alpha=1e-6)])
def test_a_list_is_of_one_model_though_its_key_is_its_own_id(policy):
    plain = [field("prices", fill_null=0.0), window("items", over="1h")]  # nothing of a visitor
    linear = preprocessing.StandardScaler() | linear_model.LogisticRegression()
    pipeline = shop(features=plain, challengers={"linear": linear}, rollout=policy)
    lists = messages_of(ranked(pipeline, traffic(4, odd=False)), "shop.predictions")
    rankers = [{entry["ranker"] for entry in each["ranking"]} for each in lists]
    assert all(len(each) == 1 for each in rankers)
    assert {name for each in rankers for name in each} == {"GaussianNB", "linear"}


def test_an_id_that_could_be_taken_for_another_is_refused():
    messages = rows_of({"id": "a\x1fb"}, {"id": "a", "items": ["b\x1fx", "y"]}, {"id": "a"})
    for said in ({"id": "a\x1fb", "item": "x"}, {"id": "a", "item": "b\x1fx"}):
        time = T0 + 3 * MINUTE
        messages.append(("shop.labels", time, "v1", said | {"ts": time}))
    found = ranked(shop(), messages)
    assert [each["id"] for each in messages_of(found, "shop.predictions")] == ["a"]
    dead_letters = messages_of(found, "shop.dead-letters")
    assert [each["offset"] for each in dead_letters if each["reason"] == "control character"] == [
        0,
        1,
    ]


def test_an_event_is_a_list_or_one_dead_letter_and_not_both():
    summed = [field("hour"), window("items", "prices", over="1h", stats="sum")]
    large = {"prices": [9e99, 9e99]}
    pages: list[dict[str, Any]] = [large, large, {"items": ["x", "z"]}, {"items": ["u", "z"]}]
    found = ranked(shop(features=summed), rows_of(*pages))
    lists = {each["offset"]: each["ranking"] for each in messages_of(found, "shop.predictions")}
    dead_letters = [
        (each["offset"], each["reason"]) for each in messages_of(found, "shop.dead-letters")
    ]
    assert dead_letters == [(1, "feature too large"), (2, "feature too large")]
    assert lists.keys() == {0, 3}
    assert all(len(each) == 2 for each in lists.values())


def test_an_event_that_is_still_pending_is_rejected_once():
    pipeline = shop(label=Choice.target("item", timeout="1h"), dedup_window="1m")
    pages: list[dict[str, Any]] = [{"id": "e"}, {}, {}, {}, {"id": "e"}]
    dead_letters = messages_of(ranked(pipeline, rows_of(*pages)), "shop.dead-letters")
    assert [(each["offset"], each["reason"]) for each in dead_letters] == [(4, "duplicate id")]
    assert "id 'e' still waits" in dead_letters[0]["detail"]


WRONG: dict[str, dict[str, Any]] = {
    "comparison='unpaired' of Interleave": {"rollout": Interleave(comparison="unpaired")},
    "loss='auc' of Interleave": {"rollout": Interleave(loss="auc")},
    "clip=0.1 of Interleave": {"rollout": Interleave(clip=0.1)},
    "Bandit of pipeline 'shop' pulls an arm for each candidate": {
        "rollout": Bandit(policy=bandit.EpsilonGreedy(epsilon=0.1, seed=1))
    },
    "unknown field 'things'": {"candidates": "things"},
    "must be a list of texts": {"candidates": "visitor"},
    "must be a text": {"candidates": "prices"},
    "key='items' of pipeline 'shop' must be one value": {"key": "items"},
    "max_candidates=0 of pipeline 'shop'": {"max_candidates": 0},
    "max_candidates=5000 of pipeline 'shop'": {"max_candidates": 5000},
    "its label arrives later: give label=Choice.target": {"label": inline("hour")},
    "default=True of the label": {"label": Choice.target("item", default=True)},
    "Interleave of pipeline 'shop' is for rankings": {
        "candidates": None, "features": [field("hour")], "rollout": Interleave(),
        "label": Choice.target("item"),
    },
    "split=0 of Interleave": {"rollout": Interleave(split=0)},
    "split=1.5 of Interleave": {"rollout": Interleave(split=1.5)},
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG)
def test_what_can_not_work_is_one_sentence(words):
    with pytest.raises(DeclarationError) as said:
        shop(**WRONG[words])
    assert words in str(said.value)


def test_without_candidates_a_list_is_no_field_for_features():
    with pytest.raises(DeclarationError, match="neither a number nor text"):
        shop(candidates=None, features=[field("prices")], label=inline("hour"))


def test_a_replay_says_that_it_can_not(tmp_path: Path):
    with pytest.raises(InputError, match="ranks candidates"):
        replay(shop(), ReplaySettings(events="shop.events", rows=tmp_path / "rows.parquet"))
