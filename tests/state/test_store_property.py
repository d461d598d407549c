"""A store equals a dict after any sequence of operations."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from anabranch.state.errors import StateError
from anabranch.state.store.delta import Delta, Items, Rows
from anabranch.state.store.read_only import ReadOnlyStore
from anabranch.state.store.store import Store
from tests.state.test_store import IDENTITY, apply, compact_all, plain

RETAINED = 3
NAMES = st.sampled_from(["a", "b/c", "b/c/00000000"])
NUMBERS = st.lists(st.integers(0, 9), unique=True, max_size=5).map(
    lambda numbers: np.array(numbers, np.int64)
)


@st.composite
def deltas(draw) -> Delta:
    def rows(index):
        return Rows(index, {"x": np.array([draw(st.integers(0, 99)) for _ in index], np.int64)})

    def items(index):
        return Items(index, [draw(st.none() | st.binary(max_size=3)) for _ in index])

    return Delta(
        rows={name: rows(draw(NUMBERS)) for name in draw(st.sets(NAMES, max_size=2))},
        items={name: items(draw(NUMBERS)) for name in draw(st.sets(NAMES, max_size=2))},
        blobs=draw(st.dictionaries(NAMES, st.binary(max_size=9), max_size=2)),
        cleared=draw(st.sets(NAMES, max_size=1)),
    )


def copied(state: dict) -> dict:
    return {key: dict(v) if isinstance(v, dict) else v for key, v in state.items()}


class Partition(RuleBasedStateMachine):
    """``states`` are those after each generation; ``oldest`` is what must still be there."""

    @initialize()
    def make(self):
        self.directory = Path(tempfile.mkdtemp())
        self.path = self.directory / "s"
        self.store = Store(self.path, IDENTITY, retained=RETAINED)
        self.states = [{}]
        self.adopted = self.highest = 0
        large = Delta(blobs={"large": bytes(300_000)})  # so that merges leave it out at first
        self.commit_one(large)

    @property
    def oldest(self) -> int:
        return max(self.adopted, self.highest - RETAINED, 0)

    def commit_one(self, delta: Delta) -> None:
        state = copied(self.states[-1])
        apply(state, delta)
        assert self.store.commit(delta) == len(self.states)
        self.states.append(state)
        self.highest = max(self.highest, len(self.states) - 1)

    @rule(changes=st.lists(deltas(), min_size=1, max_size=6))
    def commit(self, changes):
        for delta in changes:
            self.commit_one(delta)

    @rule()
    def adopt(self):
        self.store.adopt()
        self.adopted = len(self.states) - 1

    @rule(back=st.integers(0, RETAINED))
    def roll_back(self, back):
        target = max(len(self.states) - 1 - back, self.oldest)
        if target < len(self.states):
            assert plain(self.store.restore(target)) == self.states[target]
            del self.states[target + 1 :]

    @rule()
    def roll_back_to_adopted(self):
        assert plain(self.store.restore(None)) == self.states[self.adopted]
        del self.states[self.adopted + 1 :]
        self.highest = self.adopted

    @rule()
    def restore_a_missing_generation(self):
        for generation in (len(self.states), self.adopted - 1):
            with pytest.raises(StateError):
                self.store.restore(generation)

    @rule()
    def merge(self):
        compact_all(self.store)

    @rule()
    def reopen(self):
        self.store.close()
        self.store = Store(self.path, IDENTITY, retained=RETAINED)

    @rule()
    def crash(self):
        """Continue with the files as a kill leaves them now."""
        with self.store._paused():
            shutil.copytree(self.path, self.directory / "left")
        self.store.close()
        # The engine may still be removing files in there.
        self.path.rename(self.directory / f"old-{len(list(self.directory.iterdir()))}")
        (self.directory / "left").rename(self.path)
        self.store = Store(self.path, IDENTITY, retained=RETAINED)

    @precondition(lambda self: len(self.states) > 1)
    @rule()
    def read_it(self):
        assert plain(ReadOnlyStore(self.path).image()) == self.states[-1]

    @invariant()
    def at_the_last_generation(self):
        assert self.store.generation == len(self.states) - 1

    def teardown(self):
        if hasattr(self, "store"):
            assert self.store.verify() == []
            assert plain(self.store.restore(len(self.states) - 1)) == self.states[-1]
            self.store.close()
            shutil.rmtree(self.directory, ignore_errors=True)


TestPartition = Partition.TestCase
TestPartition.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
