"""Restored window state gives the same features, bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.state.errors import StateError
from anabranch.state.store.delta import Delta, decode, encode, merge
from anabranch.state.windows.entity_state import EntityState
from anabranch.state.windows.event_log import LATE_ROWS
from anabranch.state.windows.repartition import repartition
from anabranch.state.windows.specs import DecayedSpec, DistinctSpec, SinceLastSpec, WindowSpec
from tests.support.window_fingerprint import fingerprint

SPECS = [
    WindowSpec("amount", (1_000, 20_000), ("count", "sum", "mean", "std", "max", "min", "last")),
    WindowSpec("other", (20_000,), ("sum", "max"), resolution_ms=500),
    DistinctSpec("code", (2_000, 20_000)),
    SinceLastSpec(10_000),
    DecayedSpec("amount", 1_000),
]
LATENESS = 3_000
ONE = {"amount": np.ones(1), "other": np.ones(1), "code": np.ones(1, np.int64)}


def new_state():
    return EntityState(SPECS, LATENESS)


def stream(seed, rows, keys, hot=0.5):
    """Rows of few keys, one of them hot; a fifth come late, some time passes without any."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.choice([0, 1, 5, 40, 4_000], rows, p=[0.2, 0.4, 0.3, 0.09, 0.01]))
    late = rng.random(rows) < 0.2
    times = times - late * rng.integers(0, LATENESS, rows)
    who = np.where(rng.random(rows) < hot, 0, rng.integers(0, keys, rows))
    names = [f"k{n}" for n in who.tolist()]
    amounts = rng.normal(0, 1, rows) * 10.0 ** rng.integers(-3, 9, rows)
    return names, times.astype(np.int64), amounts, rng.integers(0, 7, rows)


def feed(state, rows, start, stop, size):
    names, times, amounts, codes = rows
    out = []
    for at in range(start, stop, size):
        end = min(at + size, stop)
        columns = {
            "amount": amounts[at:end],
            "other": amounts[at:end],
            "code": codes[at:end],
        }
        out.append(state.update(names[at:end], times[at:end], columns))
    return np.concatenate(out) if out else np.zeros((0, len(state.columns())))


def written(state):
    return decode(encode(state.changes()))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    keys=st.sampled_from([1, 5, 60, 700]),
    cuts=st.lists(st.integers(0, 1_500), max_size=6),
    size=st.sampled_from([1, 7, 64, 1_000]),
)
def test_a_restored_state_gives_the_statistics_of_the_original(seed, keys, cuts, size):
    rows = stream(seed, 1_500, keys)
    whole = new_state()
    expected = feed(whole, rows, 0, 1_500, 100)
    state, deltas, at = new_state(), [], 0
    found = []
    for cut in sorted(cuts):
        found.append(feed(state, rows, at, cut, size))
        deltas.append(written(state))
        state = new_state()
        state.restore(merge(deltas))
        at = cut
    found.append(feed(state, rows, at, 1_500, size))
    np.testing.assert_array_equal(np.concatenate(found), expected)
    assert fingerprint(state) == fingerprint(whole)
    assert (state.keys, state.events, state.late_rows) == (
        whole.keys, whole.events, whole.late_rows,
    )  # fmt: skip


def test_many_deltas_merge_to_the_state():
    rows = stream(3, 6_000, 300)
    state, deltas = new_state(), []
    for at in range(0, 6_000, 250):
        feed(state, rows, at, at + 250, 50)
        deltas.append(written(state))
    back = new_state()
    back.restore(merge([merge(deltas[:9]), merge(deltas[9:17]), *deltas[17:]]))
    assert fingerprint(back) == fingerprint(state)


def test_only_what_changed_is_written():
    rows = stream(1, 20_000, 5_000, hot=0.0)
    state = new_state()
    feed(state, rows, 0, 20_000, 1_000)
    state.changes()
    assert len(state.changes().rows["0/slots"]) == 0
    now = rows[1][-1:] + 1
    state.update(["k1"], now, ONE)
    delta = state.changes()
    # The clock hand may sweep a few slots besides.
    assert 1 <= len(delta.rows["0/slots"]) <= 8
    assert 1 <= len(delta.rows["0/chunks"]) <= 4
    assert sum(map(len, encode(delta).values())) < 10_000


def test_released_keys_are_gone_after_a_restore():
    state = new_state()
    state.update(["gone"], np.array([0]), ONE)
    first = written(state)
    state.update(["here"], np.array([10_000_000]), ONE)
    state.evict()
    assert state.keys == 1
    back = new_state()
    back.restore(merge([first, written(state)]))
    assert list(back.slots_by_key()) == ["here"]
    # The released slot is allocated to the next key.
    back.update(["next"], np.array([10_000_000]), ONE)
    assert sorted(back.slots_by_key().values()) == [0, 1]


def test_restoring_an_empty_image():
    state = new_state()
    state.restore(Delta())
    rows = stream(5, 500, 20)
    np.testing.assert_array_equal(
        feed(state, rows, 0, 500, 50), feed(new_state(), rows, 0, 500, 10)
    )


def test_a_broken_chain_is_one_sentence():
    state = new_state()
    feed(state, stream(2, 400, 4), 0, 400, 100)
    image = written(state)
    image.rows["0/slots"].columns["row"] = np.full_like(
        image.rows["0/slots"].columns["row"], 12_345
    )
    with pytest.raises(StateError, match="damaged"):
        new_state().restore(image)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), keys=st.sampled_from([1, 9, 300]), cut=st.integers(0, 1_500))
def test_windows_that_are_split_and_joined_give_equal_statistics(seed, keys, cut):
    rows = stream(seed, 1_500, keys)
    whole = new_state()
    feed(whole, rows, 0, cut, 100)
    shards = [
        [key for key in whole.slots_by_key() if hash_of(key) % 3 == shard] for shard in range(3)
    ]
    split = []
    for listed in shards:
        split.append(new_state())
        split[-1].restore(decode(encode(repartition([(whole, listed)]))))
    joined = new_state()
    joined.restore(repartition([(state, list(state.slots_by_key())) for state in split]))
    for state, listed in zip(split, shards, strict=True):
        assert list(state.slots_by_key()) == listed
    np.testing.assert_array_equal(
        feed(joined, rows, cut, 1_500, 70), feed(whole, rows, cut, 1_500, 100)
    )
    # Late rows are counted three times: each part has the count of all.
    assert contents(joined) == contents(whole)


def hash_of(key):
    return int(key[1:])


def contents(state):
    for aggregate in state.aggregates:
        aggregate.log.meta[LATE_ROWS] = 0
    return fingerprint(state)
