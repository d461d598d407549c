"""The pending store against a plain dict, and the hash of its ids."""

from __future__ import annotations

import itertools
import pickle
import random
import subprocess
import sys
import uuid
from collections import deque
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.state.keys.hashing import hash64
from anabranch.state.labels.label_limits import LabelLimits
from anabranch.state.labels.pending_store import (
    CONFIRMS,
    CONTRADICTS,
    DEFAULTED,
    DROPPED,
    DUPLICATE,
    EARLY,
    EXPIRED,
    LATE,
    LEARN,
    NO_VALUE,
    PREDICT,
    TOO_OLD,
    UNKNOWN,
    UPDATED,
    PendingStore,
)
from anabranch.state.store.delta import Delta, merge

Item = tuple[str, str, int, int]  # "event" or "label", id, time, code (-1: unusable)
Entry = tuple[Any, ...]


class Reference:
    """A plain implementation of the store.

    `waiting` is by id: time, arrival. `resolved`: the entry's number, how, the code; `entries` are
    all that were added, oldest first. `early`: the moment, the label's time, the code.
    """

    def __init__(self, rules: LabelLimits) -> None:
        self.rules = rules
        self.waiting: dict[str, tuple[int, int]] = {}
        self.resolved: dict[str, list[Any]] = {}
        self.entries: deque[tuple[int, int, str]] = deque()  # moment, number, id
        self.early: dict[str, tuple[int, int, int]] = {}
        self.watermark, self.arrivals, self.number = -(10**9), 0, 0
        self.until = 2**60
        timeout_ms = 86_400_000 if rules.timeout_ms is None else rules.timeout_ms
        self.keep_ms = timeout_ms if rules.update_ms is None else rules.update_ms

    def step(self, item: Item) -> list[Entry]:
        what, name, time, code = item
        self.watermark = max(self.watermark, min(time, self.until))
        found = self._expire()
        if what == "event":
            return found + self._event(name, time)
        return found + self._label(name, time, code)

    def _expire(self) -> list[Entry]:
        found: list[Entry] = []
        rules = self.rules
        if rules.timeout_ms is not None:
            for old in sorted(self.waiting, key=self.waiting.__getitem__):
                if self.waiting[old][0] + rules.timeout_ms < self.watermark:
                    found += self._time_out(old, rules.timeout_ms)
        while self.entries and self.entries[0][0] + self.keep_ms < self.watermark:
            self._evict_oldest()
        while self.early:  # oldest first: one that is ahead of event time keeps those behind it
            oldest = next(iter(self.early))
            if self.early[oldest][0] + rules.early_ms >= self.watermark:
                break
            found.append((EXPIRED, oldest, self.early.pop(oldest)[0]))
        return found

    def _time_out(self, name: str, timeout_ms: int) -> list[Entry]:
        assumes = self.rules.has_default
        time = self.waiting.pop(name)[0]
        self._resolve(name, time, "default" if assumes else "none", self.rules.default_code)
        return [(DEFAULTED if assumes else DROPPED, name, time + timeout_ms)]

    def _evict_oldest(self) -> None:
        _, number, name = self.entries.popleft()
        if self.resolved.get(name, [-1])[0] == number:
            del self.resolved[name]

    def _resolve(self, name: str, time: int, how: str, code: int) -> None:
        if self.rules.update_ms is None and len(self.entries) == self.rules.max_resolved:
            self._evict_oldest()
        self.number += 1
        self.entries.append((max(self.watermark, time), self.number, name))
        self.resolved[name] = [self.number, how, code]

    def _event(self, name: str, time: int) -> list[Entry]:
        found: list[Entry] = [(PREDICT, name, time)]
        if name in self.waiting:
            return [*found, ("rejected event", name)]
        if name in self.early:
            _, at, code = self.early.pop(name)
            timeout_ms = self.rules.timeout_ms
            if timeout_ms is not None and at > time + timeout_ms and self.rules.update_ms is None:
                self.waiting[name] = (time, self.arrivals)
                self.arrivals += 1
                return [*found, *self._time_out(name, timeout_ms), (EXPIRED, name, at)]
            self._resolve(name, time, "label", code)
            return [*found, (EARLY, name, max(at, time))]
        self.waiting[name] = (time, self.arrivals)
        self.arrivals += 1
        return found

    def _label(self, name: str, time: int, code: int) -> list[Entry]:
        if code < 0:
            return [("rejected label", name, NO_VALUE)]
        rules, ended = self.rules, []
        if name in self.waiting:
            event_time, _ = self.waiting[name]
            if rules.timeout_ms is None or time <= event_time + rules.timeout_ms:
                del self.waiting[name]
                self._resolve(name, event_time, "label", code)
                return [(LEARN, name, max(time, event_time))]
            ended = self._time_out(name, rules.timeout_ms)  # time is limited
        return ended + self._not_pending(name, time, code)

    def _not_pending(self, name: str, time: int, code: int) -> list[Entry]:
        rules = self.rules
        if name in self.resolved:
            return self._repeated(name, time, code)
        if rules.timeout_ms is not None and time + rules.timeout_ms < self.watermark:
            return [("rejected label", name, TOO_OLD)]
        if not rules.early_ms or not rules.max_early:
            return [("rejected label", name, UNKNOWN)]
        if name in self.early:
            why = DUPLICATE if self.early[name][2] == code else CONTRADICTS
            return [("rejected label", name, why)]
        found: list[Entry] = []
        if len(self.early) == rules.max_early:
            oldest = next(iter(self.early))
            found = [(EXPIRED, oldest, self.early.pop(oldest)[0])]
        self.early[name] = (max(self.watermark, time), time, code)
        return found

    def _repeated(self, name: str, time: int, code: int) -> list[Entry]:
        _, how, known = self.resolved[name]
        corrects = self.rules.update_ms is not None
        if corrects and known != code:
            self.resolved[name][1:] = ["label", code]
            return [(UPDATED, name, time)]
        if how == "label":
            return [("rejected label", name, DUPLICATE if known == code else CONTRADICTS)]
        if corrects:
            self.resolved[name][1] = "label"
            return [("rejected label", name, CONFIRMS)]
        return [("rejected label", name, LATE)]


NAMES = [f"k{i}" for i in range(12)]
_BY_HASH = {int(hash64([name])[0]): name for name in NAMES}


def run(store: PendingStore, items: list[Item]) -> list[Entry]:
    """The same entries, from the store; each row's feature identifies its event."""
    events = [i for i, item in enumerate(items) if item[0] == "event"]
    labels = [i for i, item in enumerate(items) if item[0] == "label"]
    place = {i: at for at, i in enumerate(events)}
    place |= {i: len(events) + at for at, i in enumerate(labels)}
    ids, label_ids = [items[i][1] for i in events], [items[i][1] for i in labels]
    codes = np.array([items[i][3] for i in labels], np.int64)
    done = store.join(
        ids,
        np.array([items[i][2] for i in events], np.int64),
        hash64(ids).view(np.float64).reshape(-1, 1),
        label_ids,
        np.array([items[i][2] for i in labels], np.int64),
        np.array([place[i] for i in range(len(items))], np.int64),
        (codes >= 0).astype(np.uint8),
        codes=codes,
    )
    # The keys of the ring identify the ids of early labels.
    keys = store.early.arrays.keys
    found: list[Entry] = []
    steps = zip(done.kind, done.row, done.source, done.time, strict=True)
    for kind, row, source, time in steps:
        if kind == EXPIRED:
            found.append((kind, _name(int(keys[source % len(keys)])), time))
            continue
        key = int(store.features[row].view(np.uint64)[0])
        if kind == EARLY:
            assert int(keys[source % len(keys)]) == key
        elif source >= 0:
            assert key == hash64([(ids if kind == PREDICT else label_ids)[source]])[0]
        found.append((kind, _name(key), time))
    found += [("rejected event", ids[i]) for i in np.flatnonzero(done.rejected_events)]
    found += [
        ("rejected label", label_ids[i], int(done.rejected_labels[i]))
        for i in np.flatnonzero(done.rejected_labels)
    ]
    return found


def _name(key: int) -> str:
    return _BY_HASH.get(key, str(key))


items = st.lists(
    st.tuples(
        st.sampled_from(["event", "label"]),
        st.sampled_from(NAMES),
        st.integers(0, 40),
        st.sampled_from([0, 0, 1, 1, 1, -1]),
    ),
    max_size=80,
)
rules = st.builds(
    LabelLimits,
    timeout_ms=st.sampled_from([None, 0, 5, 20]),
    has_default=st.booleans(),
    default_code=st.just(0),
    update_ms=st.sampled_from([None, None, 0, 10, 30]),
    early_ms=st.sampled_from([0, 5, 30]),
    max_early=st.sampled_from([0, 1, 3, 100]),
    max_resolved=st.sampled_from([1, 4, 100]),
)


def split(entries: list[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Steps in order, and rejections in any."""
    rejections = [entry for entry in entries if str(entry[0]).startswith("rejected")]
    return [entry for entry in entries if entry not in rejections], sorted(rejections)


@settings(max_examples=200, deadline=None)
@given(
    items=items,
    rules=rules,
    cuts=st.lists(st.integers(0, 80), max_size=6),
    limits=st.lists(st.sampled_from([2**60, 0, 8, 20, 33]), min_size=7, max_size=7),
)
def test_equals_a_dict_for_any_cuts_and_time_limits(
    items: list[Item], rules: LabelLimits, cuts: list[int], limits: list[int]
) -> None:
    store, reference = PendingStore(1, 1, rules), Reference(rules)
    bounds = [0, *sorted(cuts), 80]
    for (low, high), until in zip(itertools.pairwise(bounds), limits, strict=False):
        piece = items[low:high]
        store.limit_time(until)
        reference.until = until
        got = run(store, piece)
        want = [entry for item in piece for entry in reference.step(item)]
        assert split(got) == split(want)
        assert len(store) == len(reference.waiting)
        assert len(store.early) == len(reference.early)
        assert len(store.resolved) == len(reference.resolved)
        assert store.kept == (0 if rules.update_ms is None else len(reference.resolved))
        store = pickle.loads(pickle.dumps(store))


@pytest.mark.parametrize("update_ms", [None, 2_000])
def test_many_ids(update_ms: int | None) -> None:
    """Sizes at which the tables are rebuilt, and long probe sequences."""
    rng = random.Random(4)
    rules = LabelLimits(3_000, True, 0, update_ms, 900, max_early=150, max_resolved=4_000)
    store, reference = PendingStore(1, 0, rules), Reference(rules)
    for start in range(0, 24_000, 1_500):
        piece: list[Item] = []
        for i in range(start, start + 1_500):
            piece.append(("event", str(hash64([f"id-{i}"])[0]), i + rng.randrange(-400, 400), 0))
            if rng.random() < 0.7:
                labelled = max(0, i - rng.randrange(-1_500, 4_000))
                piece.append(("label", str(hash64([f"id-{labelled}"])[0]), i, rng.randrange(2)))
        _BY_HASH.update({int(hash64([item[1]])[0]): item[1] for item in piece})
        want = [entry for item in piece for entry in _step_if_due(reference, item)]
        got = run(store, piece)
        assert [e for e in got if not str(e[0]).startswith("rejected")] == [
            e for e in want if not str(e[0]).startswith("rejected")
        ]
    assert len(store) == len(reference.waiting) > 1_000
    assert len(store.resolved) == len(reference.resolved) > 1_000
    assert len(store.early) == len(reference.early) > 50


def _step_if_due(reference: Reference, item: Item) -> list[Entry]:
    """`step`, but expiring only when something can be due."""
    now, rules = max(reference.watermark, item[2]), reference.rules
    assert rules.timeout_ms is not None
    oldest = min((time for time, _ in reference.waiting.values()), default=10**9) + rules.timeout_ms
    settled = (reference.entries[0][0] if reference.entries else 10**9) + reference.keep_ms
    held = min((h[0] for h in reference.early.values()), default=10**9) + rules.early_ms
    if min(oldest, settled, held) < now:
        return reference.step(item)
    reference.watermark = now
    if item[0] == "event":
        return reference._event(item[1], item[2])
    return reference._label(*item[1:])


@pytest.mark.parametrize("start", [-(2**29), 0, 1_736_121_600_000])
def test_timeouts_of_any_length_are_in_the_order_of_events(start: int) -> None:
    """Times over weeks, in bursts and gaps: rows pass through several levels of the queue."""
    rng = random.Random(start)
    rules = LabelLimits(timeout_ms=7 * 86_400_000, has_default=True, max_resolved=100)
    store, reference = PendingStore(1, 0, rules), Reference(rules)
    now, ended, image = start, 0, Delta()
    for number in range(60):
        now += rng.choice([0, 50, 3_000_000, 86_400_000, 3 * 86_400_000])
        piece: list[Item] = []
        for i in range(20):
            now += rng.choice([0, 1, 255, 70_000])
            late = rng.choice([0, 0, 1, 100_000, 8 * 86_400_000])
            piece.append(("event", f"{start} {number} {i}", now - late, 0))
            if rng.random() < 0.3:
                labelled = f"{start} {rng.randrange(number + 1)} {rng.randrange(20)}"
                piece.append(("label", labelled, now, 0))
        _BY_HASH.update({int(hash64([item[1]])[0]): item[1] for item in piece})
        want = [entry for item in piece for entry in reference.step(item)]
        assert split(run(store, piece)) == split(want)
        ended += sum(entry[0] == DEFAULTED for entry in want)
        if number % 7 == 3:
            image = merge([image, store.changes()])
            store = PendingStore(1, 0, rules)
            store.restore(image)
    assert ended > 300


def test_one_jump_in_time_can_time_out_everything() -> None:
    """More timeouts than the call has events or labels."""
    store = PendingStore(1, 0, LabelLimits(timeout_ms=10))
    run(store, [("event", f"e{i}", i // 100, 0) for i in range(1_000)])
    got = run(store, [("event", "late", 10_000, 0)])
    assert [e[0] for e in got] == [DROPPED] * 1_000 + [PREDICT]
    assert [e[2] for e in got[:-1]] == sorted(e[2] for e in got[:-1])
    assert store.watermark == 10_000


@pytest.mark.parametrize("batch", [1, 37, 1000])
@pytest.mark.parametrize("update_ms", [None, 10**9])
def test_at_most_50_bytes_per_pending_prediction(batch: int, update_ms: int | None) -> None:
    """At every size of the arrays, and right after they grew."""
    store = PendingStore(1, 1, LabelLimits(update_ms=update_ms))
    none, worst, sizes = np.empty(0, np.int64), 0.0, set()
    size, last = 0, 3_000 if batch == 1 else 200_000
    while size < last:
        ids = [str(size + i) for i in range(batch)]
        times = np.arange(size, size + batch)
        store.join(ids, times, np.zeros((batch, 1)), [], none, np.arange(batch))
        size += batch
        if store.overhead_bytes not in sizes and size > 16:
            sizes.add(store.overhead_bytes)
            worst = max(worst, store.overhead_bytes / len(store))
    assert len(sizes) > 15
    assert 39 < worst <= 50


def test_resolved_ids_take_59_bytes_at_most_and_are_bounded() -> None:
    store = PendingStore(1, 1, LabelLimits(max_resolved=10_000))
    none = np.empty(0, np.int64)
    for start in range(0, 30_000, 500):
        ids, times = [str(start + i) for i in range(500)], np.arange(start, start + 500)
        order = np.arange(1000)
        store.join(ids, times, np.zeros((500, 1)), ids, times, order)
        if len(store.resolved) > 64:
            assert store.resolved.nbytes / len(store.resolved) <= 59
    assert len(store.resolved) == 10_000
    assert none.size == len(store) == 0


def test_predictions_follow_their_models() -> None:
    store = PendingStore(1, 2)
    row = join_one(store)
    store.values[row] = [1.0, 2.0]
    store.labels[row] = [0, 1]
    store.add_model()
    assert np.isnan(store.values[row, 2])
    store.drop_model(0)
    assert store.values[row, 0] == 2.0
    assert store.labels[row].tolist() == [1, 255]


def join_one(store: PendingStore) -> int:
    none = np.empty(0, np.int64)
    done = store.join(["a"], np.array([1]), np.ones((1, 1)), [], none, np.array([0]))
    return int(done.row[0])


def test_xxh64_by_its_published_values() -> None:
    known = {
        "": 0xEF46DB3751D8E999,
        "a": 0xD24EC4F1A98C6E5B,
        "abc": 0x44BC2CF5AD770999,
        "Nobody inspects the spammish repetition": 0xFBCEA83C8A378BF1,
    }
    assert hash64(list(known)).tolist() == list(known.values())
    assert hash64([]).tolist() == []
    assert hash64([""]).tolist() == [0xEF46DB3751D8E999]


@given(st.lists(st.text(st.characters(), max_size=50), max_size=8))
@settings(max_examples=60, deadline=None)
def test_a_hash_depends_on_its_own_text_only(texts: list[str]) -> None:
    assert hash64(texts).tolist() == [hash64([text])[0] for text in texts]


def test_a_lone_surrogate_does_not_stop_the_stream() -> None:
    assert hash64(["\ud800", "ok"])[1] == hash64(["ok"])[0]


def test_the_same_in_another_process() -> None:
    code = (
        "from anabranch.state.keys.hashing import hash64; print(hash64(['card-1', 'é']).tolist())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == str(hash64(["card-1", "é"]).tolist())


@pytest.mark.parametrize("make", [str, lambda i: f"user-{i:012d}", lambda i: str(uuid.UUID(int=i))])
def test_hashes_spread_evenly_and_do_not_meet(make: Any) -> None:
    hashes = hash64([make(i) for i in range(100_000)])
    assert len(np.unique(hashes)) == 100_000
    for part in (hashes % np.uint64(64), hashes >> np.uint64(58)):
        counts = np.bincount(part.astype(np.int64), minlength=64)
        # Chi-squared with 63 degrees of freedom: above 130 once in a million.
        assert ((counts - 100_000 / 64) ** 2 / (100_000 / 64)).sum() < 130
