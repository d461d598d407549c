"""Recent ids are still known after a restore."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.state.labels.recent_ids import RecentIds
from anabranch.state.store.delta import Delta, decode, encode, merge

HORIZON = 1_000


def is_new(seen, ids, times):
    found = seen.is_new(ids, np.maximum.accumulate(np.array(times, np.int64)))
    return [True] * len(ids) if found is None else found.tolist()


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 1_500),
            st.lists(st.integers(0, 40), min_size=1, max_size=30),
            st.booleans(),
        ),
        max_size=30,
    )
)
def test_restored_ids_match_like_the_original(calls):
    whole, kept, deltas, now = RecentIds(HORIZON), RecentIds(HORIZON), [], 0
    for gap, numbers, commit in calls:
        now += gap
        ids = [f"id{n}" for n in numbers]
        times = [now + 10 * i for i in range(len(ids))]
        assert is_new(kept, ids, times) == is_new(whole, ids, times)
        if commit:
            deltas.append(decode(encode(kept.changes())))
            kept = RecentIds(HORIZON)
            kept.restore(merge(deltas))


def test_new_ids_are_written_and_expired_ones_cleared():
    seen = RecentIds(HORIZON)
    seen.restore(Delta())
    deltas = []
    for turn in range(20):
        is_new(seen, [f"{turn}-{n}" for n in range(500)], [turn * HORIZON] * 500)
        delta = seen.changes()
        assert sum(len(rows) for rows in delta.rows.values()) == 500
        deltas.append(delta)
    image = merge(deltas)
    assert sorted(len(rows) for rows in image.rows.values()) == [500, 500]
    back = RecentIds(HORIZON)
    back.restore(image)
    assert is_new(back, ["19-3", "18-3", "17-3"], [19_500] * 3) == [False, False, True]


def test_many_ids_are_restored_into_a_table_that_is_large_enough():
    seen = RecentIds(10**9)
    ids = [str(n) for n in range(100_000)]
    is_new(seen, ids, [5] * len(ids))
    back = RecentIds(10**9)
    back.restore(seen.changes())
    assert not any(is_new(back, ids, [6] * len(ids)))
    assert is_new(back, ["new"], [6]) == [True]
