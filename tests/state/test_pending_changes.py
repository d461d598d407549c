"""Persistence of the pending store: only changed rows are written, and nothing differs after."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.state.labels.label_limits import LabelLimits
from anabranch.state.labels.pending_store import PendingStore
from anabranch.state.store.delta import Delta, decode, encode, merge
from tests.state.test_pending import Item, items, rules, run


def stored_and_loaded(deltas: list[Delta]) -> Delta:
    return merge([decode(encode(delta)) for delta in deltas])


def restored(deltas: list[Delta], *arguments: Any) -> PendingStore:
    store = PendingStore(*arguments)
    store.restore(stored_and_loaded(deltas))
    return store


@settings(max_examples=80, deadline=None)
@given(
    items=items,
    rules=rules,
    cuts=st.lists(st.integers(0, 80), max_size=8),
    killed=st.sets(st.integers(0, 8)),
    skipped=st.sets(st.integers(0, 8)),
)
def test_a_store_restored_at_any_cut_continues_the_same(
    items: list[Item],
    rules: LabelLimits,
    cuts: list[int],
    killed: set[int],
    skipped: set[int],
) -> None:
    whole, broken = (PendingStore(1, 1, rules) for _ in range(2))
    deltas: list[Delta] = []
    for number, (low, high) in enumerate(itertools.pairwise([0, *sorted(cuts), 80])):
        if number not in skipped:
            deltas.append(broken.changes())
            if number in killed:
                run(broken, items[low:high])  # lost, and repeated
                broken = restored(deltas, 1, 1, rules)
        assert run(broken, items[low:high]) == run(whole, items[low:high])
        assert (len(broken), broken.watermark) == (len(whole), whole.watermark)
        assert (broken.kept, len(broken.resolved)) == (whole.kept, len(whole.resolved))


def add(store: PendingStore, ids: list[str], start: int = 0) -> None:
    none, size = np.empty(0, np.int64), len(ids)
    features = np.random.default_rng(start).random((size, store.features.shape[1]))
    done = store.join(ids, np.arange(size) + start, features, [], none, np.arange(size))
    store.values[done.row] = 0.5


def label(store: PendingStore, ids: list[str]) -> None:
    none, size = np.empty(0, np.int64), len(ids)
    empty = np.empty((0, store.features.shape[1]))
    store.join([], none, empty, ids, np.zeros(size, np.int64), np.arange(size))


def test_only_touched_rows_are_written() -> None:
    store = PendingStore(2, 1)
    add(store, [f"a{i}" for i in range(1000)])
    assert len(store.changes().rows["waiting"]) == 1000
    assert not store.changes()
    label(store, ["a3", "a4"])
    add(store, ["b"], 5000)
    delta = store.changes()
    assert delta.rows["state"].columns["waits"].tolist() == [0, 1]  # "b" took the row of "a4"
    assert len(delta.rows["waiting"]) == 1


def test_a_row_resolved_between_two_commits_is_not_written() -> None:
    store = PendingStore(24, 1, LabelLimits(max_resolved=0))
    for start in range(0, 3000, 100):
        ids = [str(start + i) for i in range(100)]
        add(store, ids, start)
        label(store, ids)
    delta = store.changes()
    assert len(delta.rows["waiting"]) == 0
    assert sum(map(len, encode(delta).values())) < 5 * 200 + 800


def test_the_stored_state_does_not_grow_with_time() -> None:
    store, deltas, sizes = PendingStore(3, 1, LabelLimits(max_resolved=200)), [], []
    for round_ in range(60):
        ids = [f"{round_}-{i}" for i in range(50)]
        add(store, ids, round_)
        deltas = [merge([*deltas, store.changes()])]
        label(store, ids)
        sizes.append(sum(map(len, encode(deltas[0]).values())))
    assert sizes[-1] <= sizes[10]


def test_arrays_are_as_large_as_the_largest_pending_row() -> None:
    store = PendingStore(1, 1)
    add(store, [str(i) for i in range(5000)])
    label(store, [str(i) for i in range(5000) if i != 40])
    again = restored([store.changes()], 1, 1)
    assert len(again) == 1
    assert len(again.features) == 41
    assert again.values[40, 0] == 0.5


def test_added_and_dropped_models_rewrite_pending_rows() -> None:
    store = PendingStore(1, 1)
    add(store, ["a", "b", "c"])
    label(store, ["b"])
    deltas = [store.changes()]
    store.add_model()
    store.values[0, 1] = 0.25
    deltas.append(store.changes())
    assert "waiting" in deltas[-1].cleared
    label(store, ["c"])
    deltas.append(store.changes())
    again = restored(deltas, 1, 2)
    assert len(again) == 1
    np.testing.assert_array_equal(again.values[0], store.values[0])


def test_an_empty_image_leaves_the_store_empty() -> None:
    store = restored([Delta()], 1, 1)
    assert (len(store), store.watermark) == (0, None)
    add(store, ["a"])
    assert len(store) == 1


def test_many_rows_are_written_and_restored_quickly() -> None:
    """Bounds four times what was measured, on a machine that others use too."""
    store = PendingStore(24, 1)
    add(store, [str(i) for i in range(100_000)])
    start = time.process_time()
    delta = store.changes()
    wrote = time.process_time() - start
    start = time.process_time()
    again = PendingStore(24, 1)
    again.restore(delta)
    assert len(again) == 100_000
    assert wrote < 0.24
    assert time.process_time() - start < 0.6
    assert sum(map(len, encode(delta).values())) / 100_000 < 240


def test_equal_times_time_out_in_the_order_of_arrival() -> None:
    store = PendingStore(1, 1, LabelLimits(timeout_ms=10))
    run(store, [("event", f"e{i}", 5, 0) for i in range(20)])
    again = restored([store.changes()], 1, 1, LabelLimits(timeout_ms=10))
    late: list[Item] = [("event", "late", 99, 0)]
    assert run(again, late) == run(store, late)


def test_after_a_restore_earlier_events_time_out_first() -> None:
    rules = LabelLimits(timeout_ms=100)
    store = PendingStore(1, 1, rules)
    run(store, [("event", "e50", 50, 0), ("event", "e60", 60, 0)])
    again = restored([store.changes()], 1, 1, rules)
    more: list[Item] = [("event", f"e{time}", time, 0) for time in (9, 7, 8, 50, 7)]
    ends: list[Item] = [("event", f"late {time}", time, 0) for time in (108, 150, 199)]
    for each in (more, ends):
        assert run(again, each) == run(store, each)
    assert len(again) == len(ends)
