"""The simulators: the same bytes for a seed, valid messages, and a correct ground truth."""

from __future__ import annotations

import hashlib
import importlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from itertools import islice, pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.pipelines import SHIPPED
from anabranch.producers.arrival_process import DAY_MS, MONDAY_MS, DailyArrivals
from anabranch.producers.batch import Batch
from anabranch.producers.publish import PublishCounts, publish
from anabranch.producers.simulators.by_name import SIMULATORS, simulate
from anabranch.producers.simulators.clicks import SHOWN, TIMEOUT_MS, ClickSettings, ClickWorld
from anabranch.producers.simulators.faults import Faults
from anabranch.producers.simulators.payments import Payments, PaymentSettings, PaymentWorld
from anabranch.producers.simulators.recent_counts import RecentCounts
from anabranch.producers.simulators.trips import TripSettings, TripWorld
from anabranch.state.errors import BusError, InputError

NAMES = list(SIMULATORS)
TOPICS: dict[Any, str] = {"events": "t.events", "labels": "t.labels"}


def digest(batches: Iterable[Batch]) -> str:
    """A hash of everything in the batches, whatever their cuts."""
    total = hashlib.sha256()
    for batch in batches:
        for row in zip(
            batch.values, batch.keys, batch.times.tolist(), batch.labels.tolist(), strict=True
        ):
            total.update(repr(row).encode())
    return total.hexdigest()


def types_of(name: str) -> tuple[Any, Any]:
    """The event and label types of a shipped pipeline."""
    pipeline = importlib.import_module(SHIPPED[name].module).pipeline
    return pipeline.event, pipeline.label.type


def decoded(name: str, events: int, **options: Any) -> tuple[list[Any], list[Any]]:
    """The events and labels of a simulator, decoded as its pipeline does."""
    event_type, label_type = types_of(name)
    events_found, labels_found = [], []
    for batch in simulate(name, events=events, **options):
        for value in batch.only("events").values:
            events_found.append(msgspec.json.decode(value, type=event_type))
        for value in batch.only("labels").values:
            labels_found.append(msgspec.json.decode(value, type=label_type))
    return events_found, labels_found


def auc(truth: np.ndarray, score: np.ndarray) -> float:
    ranks = np.empty(len(score))
    ranks[np.argsort(score)] = np.arange(1, len(score) + 1)
    positive = truth.sum()
    return float(
        (ranks[truth].sum() - positive * (positive + 1) / 2) / (positive * (len(truth) - positive))
    )


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_bytes(name: str) -> None:
    faults = Faults(malformed=0.01, duplicates=0.01, out_of_order=0.1)
    first = digest(simulate(name, seed=7, events=6000, faults=faults))
    assert first == digest(simulate(name, seed=7, events=6000, faults=faults))
    assert first != digest(simulate(name, seed=8, events=6000, faults=faults))


@pytest.mark.parametrize("name", NAMES)
def test_fewer_events_are_a_prefix_of_more(name: str) -> None:
    short, _ = decoded(name, 1500)
    long, _ = decoded(name, 5000)
    assert short == long[:1500]


@pytest.mark.parametrize("name", NAMES)
def test_a_simulator_without_a_number_of_events_is_endless(name: str) -> None:
    assert sum(len(batch.only("events")) for batch in islice(simulate(name), 5)) > 1000


@pytest.mark.parametrize("name", NAMES)
def test_every_message_fits_the_pipeline_and_labels_follow_their_events(name: str) -> None:
    events, labels = decoded(name, 5000, seed=3)
    assert len(events) == 5000
    by_id = {event.id: event for event in events}
    assert len(by_id) == len(events)
    assert len({label.id for label in labels}) == len(labels)
    assert all(label.ts >= by_id[label.id].ts for label in labels)
    if name == "clicks":  # silence means that there was none
        assert 0.15 < len(labels) / len(events) < 0.45
    else:
        assert len(labels) >= 0.9 * len(events)
    assert events[0].ts >= MONDAY_MS
    assert all(a.ts <= b.ts for a, b in pairwise(events))


@pytest.mark.parametrize("name", NAMES)
def test_messages_come_in_order_of_their_times_with_the_key_of_their_event(name: str) -> None:
    key_field = importlib.import_module(SHIPPED[name].module).pipeline.partition_field
    last, keys = 0, {}
    faults = Faults(out_of_order=0.5, delay_s=300)
    for batch in simulate(name, events=3000, faults=faults):
        assert batch.times[0] >= last
        assert (np.diff(batch.times) >= 0).all()
        last = int(batch.times[-1])
        for value, key, time, label in zip(
            batch.values, batch.keys, batch.times.tolist(), batch.labels.tolist(), strict=True
        ):
            message = msgspec.json.decode(value)
            assert time >= message["ts"]
            if label:  # also: never before its event, however late that is
                assert keys[message["id"]] == key
            else:
                keys[message["id"]] = key
                assert message[key_field].encode() == key


def test_payments_fraud_rate_and_delays_are_as_documented() -> None:
    found = list(PaymentWorld(1, PaymentSettings()).payments(60_000))
    probability = np.concatenate([p.probability for p in found])
    fraud = np.concatenate([p.fraud for p in found])
    delays = np.concatenate([p.verdict_ms - p.ts for p in found])
    without_label = np.concatenate([p.verdict_ms for p in found]) < 0
    assert 0.02 < fraud.mean() < 0.05
    error = np.sqrt((probability * (1 - probability)).sum()) / len(fraud)
    assert abs(fraud.mean() - probability.mean()) < 4 * error
    for low, high in ((0.0, 0.02), (0.02, 0.2), (0.2, 0.6), (0.6, 1.0)):  # calibrated throughout
        inside = (probability >= low) & (probability < high)
        p = probability[inside]
        assert abs((fraud[inside] - p).sum()) < 4 * np.sqrt((p * (1 - p)).sum())
    assert auc(fraud, probability) > 0.9
    assert abs(without_label.mean() - 0.05) < 0.005
    assert 18 < np.median(delays[~without_label]) / 60_000 < 22


def test_payments_fraud_moves_to_other_merchants_at_the_drift() -> None:
    def risky(payments: list[Payments], start: int, stop: int) -> set[int]:
        merchant = np.concatenate([p.merchant for p in payments])[start:stop]
        fraud = np.concatenate([p.fraud for p in payments])[start:stop]
        return {m for m, _ in Counter(merchant[fraud].tolist()).most_common(20)}

    still = list(PaymentWorld(2, PaymentSettings()).payments(60_000))
    moved = list(PaymentWorld(2, PaymentSettings(drift_at=30_000)).payments(60_000))
    assert len(risky(still, 0, 30_000) & risky(still, 30_000, 60_000)) >= 12
    assert len(risky(moved, 0, 30_000) & risky(moved, 30_000, 60_000)) <= 5
    for before, after in zip(still, moved, strict=True):  # the world before is the same
        rows = slice(0, max(0, 30_000 - before.first))
        assert (before.fraud[rows] == after.fraud[rows]).all()
        assert (before.verdict_ms[rows] == after.verdict_ms[rows]).all()


def test_clicks_are_calibrated_and_come_within_ten_minutes_and_the_best_order_is_known() -> None:
    found = list(ClickWorld(1, ClickSettings()).pages(40_000))
    probability = np.concatenate([p.probability for p in found])
    utility = np.concatenate([p.utility for p in found])
    clicked = np.concatenate([p.clicked for p in found])
    items = np.concatenate([p.items for p in found])
    delays = np.concatenate([p.label_ms - p.ts for p in found])
    assert all(len(set(row)) == SHOWN for row in items[:500].tolist())
    any_click = clicked >= 0
    assert 0.15 < any_click.mean() < 0.45
    hit = clicked[:, None] == np.arange(SHOWN)
    error = np.sqrt((probability * (1 - probability)).sum(axis=0)) / len(clicked)
    assert (np.abs(hit.mean(axis=0) - probability.mean(axis=0)) < 4 * error).all()
    first, last = hit[any_click][:, 0].mean(), hit[any_click][:, -1].mean()
    assert 2 < first / last < 4  # by position alone: the square root of 8
    assert auc(hit.ravel(), probability.ravel()) > 0.75
    best = (-utility[any_click]).argsort(axis=1).argsort(axis=1) + 1
    ranks = np.take_along_axis(best, clicked[any_click][:, None], axis=1)
    assert (1 / ranks).mean() > 0.55 > (1 / np.arange(1, SHOWN + 1)).mean() + 0.15
    assert (delays[~any_click] == TIMEOUT_MS).all()
    assert (delays[any_click] > 0).all()
    assert (delays[any_click] < TIMEOUT_MS).all()


def test_trips_take_the_expected_time_within_the_noise() -> None:
    found = list(TripWorld(1, TripSettings()).trips(30_000))
    expected = np.concatenate([t.expected for t in found])
    minutes = np.concatenate([t.minutes for t in found])
    took = np.concatenate([(t.arrival_ms - t.ts) / 60_000 for t in found])
    assert np.abs(took - minutes).max() < 0.006
    assert abs((minutes < expected).mean() - 0.5) < 0.015  # it is the median
    spread = np.log((took - 2) / (expected - 2)).std()
    assert abs(spread - 0.12) < 0.005


def test_there_are_more_events_by_day_than_by_night() -> None:
    rhythm = DailyArrivals(1.0, 0.5, 15.0)
    times = rhythm.arrivals(np.random.default_rng(0), MONDAY_MS, MONDAY_MS + DAY_MS)
    assert abs(len(times) / 86_400 - 1) < 0.03
    hours = (times % DAY_MS) // 3_600_000
    afternoon, night = (hours == 15).sum(), (hours == 3).sum()
    assert abs(afternoon / night - 3) < 0.4


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30)), max_size=30),
    st.integers(0, 30),
)
def test_recent_counts_equal_a_plain_count(rows: list[tuple[int, int]], cut: int) -> None:
    rows.sort(key=lambda row: row[1])
    counts, got = RecentCounts(10), []
    for part in (rows[:cut], rows[cut:]):
        keys = np.array([key for key, _ in part], np.int64)
        times = np.array([time for _, time in part], np.int64)
        got += counts.add(keys, times).tolist()
    want = [
        sum(k == key and time - 10 < t for k, t in rows[: at + 1])
        for at, (key, time) in enumerate(rows)
    ]
    assert got == want


def test_faults_add_and_delay_but_remove_nothing() -> None:
    plain = list(simulate("payments", events=4000, seed=1))
    faulty = list(
        simulate(
            "payments",
            events=4000,
            seed=1,
            faults=Faults(malformed=0.05, duplicates=0.1, out_of_order=0.3),
        )
    )
    want = Counter(value for batch in plain for value in batch.values)
    got = Counter(value for batch in faulty for value in batch.values)
    assert all(got[value] >= count for value, count in want.items())
    doubled = sum(got[value] - count for value, count in want.items())
    broken = [value for value in got if value not in want]
    assert abs(doubled / 4000 - 0.1) < 0.02
    assert abs(len(broken) / 4000 - 0.05) < 0.015
    event_type, _ = types_of("payments")
    for value in broken:
        with pytest.raises((msgspec.MsgspecError, UnicodeDecodeError)):
            msgspec.json.decode(value, type=event_type)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: simulate("payment"), "choose one of payments, clicks, trips"),
        (lambda: simulate("clicks", drift_at=5), "has no drift"),
        (lambda: simulate("clicks", event_rate=0.0), "0 events per second"),
        (lambda: simulate("clicks", events=-1), "-1 events"),
        (lambda: Faults(malformed=1.5), "1.5 of malformed"),
        (lambda: publish(MemoryBus(), [], topics=TOPICS, rate=1, speedup=1), "choose one"),
        (lambda: publish(MemoryBus(), [], topics=TOPICS, rate=-3), "above 0"),
    ],
)
def test_a_mistake_is_one_sentence(call: Callable[[], object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        call()


def bus_with_topics(partitions: int = 4) -> MemoryBus:
    bus = MemoryBus()
    bus.create_topics(dict.fromkeys(TOPICS.values(), partitions))
    return bus


def test_publishing_keeps_order_times_and_puts_a_key_in_one_partition() -> None:
    bus = bus_with_topics()
    counts = publish(bus, simulate("payments", events=3000), topics=TOPICS)
    assert counts.events == 3000
    places: dict[bytes | None, set[int]] = defaultdict(set)
    for topic in TOPICS.values():
        for partition, log in enumerate(bus.logs(topic)):
            assert log.times == sorted(log.times)
            for key in log.keys:
                places[key].add(partition)
    assert all(len(partitions) == 1 for partitions in places.values())
    assert len(set().union(*places.values())) == 4
    assert sum(bus.end_offsets("t.labels")) == counts.labels
    for log in bus.logs("t.events"):
        assert [msgspec.json.decode(value)["ts"] for value in log.values] == log.times


class FakeClock:
    """A clock that advances only in `sleep`."""

    def __init__(self, bus: MemoryBus) -> None:
        self.now, self.seen, self._bus = 100.0, [(0.0, 0)], bus

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= 1
        sent = sum(sum(self._bus.end_offsets(topic)) for topic in TOPICS.values())
        self.seen.append((self.now - 100.0, sent))
        self.now += seconds


def test_a_rate_is_kept() -> None:
    bus = bus_with_topics()
    clock = FakeClock(bus)
    counts = publish(
        bus, simulate("payments", events=500), topics=TOPICS, rate=50, clock=clock,
        sleep=clock.sleep,
    )  # fmt: skip
    assert abs((clock.now - 100.0) - counts.messages / 50) < 0.3
    assert all(abs(sent - seconds * 50) <= 50 * 0.3 + 1 for seconds, sent in clock.seen[1:])


def test_a_speedup_keeps_the_spacing_of_message_times() -> None:
    bus = bus_with_topics()
    clock = FakeClock(bus)
    batches = list(simulate("trips", events=500))
    times = np.concatenate([batch.times for batch in batches])
    publish(bus, batches, topics=TOPICS, speedup=60, clock=clock, sleep=clock.sleep)
    assert abs((clock.now - 100.0) - (times[-1] - times[0]) / 60_000) < 0.3
    for seconds, sent in clock.seen[1:]:
        low, high = (np.searchsorted(times, times[0] + (seconds + d) * 60_000) for d in (-0.3, 0.3))
        assert low <= sent <= high


def test_ctrl_c_delivers_and_counts_what_was_appended() -> None:
    bus = bus_with_topics()

    def interrupted() -> Iterable[Batch]:
        yield from islice(simulate("clicks"), 2)
        raise KeyboardInterrupt

    counts = publish(bus, interrupted(), topics=TOPICS)
    assert counts.interrupted
    assert sum(bus.end_offsets("t.events")) == counts.events > 0
    assert sum(bus.end_offsets("t.labels")) == counts.labels > 0


def test_progress_is_reported_and_labels_need_a_topic() -> None:
    bus = bus_with_topics()
    heard: list[int] = []

    def on_progress(counts: PublishCounts) -> None:
        heard.append(counts.messages)

    counts = publish(bus, simulate("clicks", events=9000), topics=TOPICS, on_progress=on_progress)
    assert heard == sorted(heard)
    assert heard[-1] == counts.messages == 9_000 + counts.labels > 9_500
    with pytest.raises(InputError, match="labels to publish, but no topic"):
        publish(bus, simulate("clicks", events=9000), topics={"events": "t.events"})
    with pytest.raises(BusError):
        publish(MemoryBus(), simulate("clicks", events=10), topics=TOPICS)
