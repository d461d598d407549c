"""The generations of a store: committed, rolled back, merged; and which stores are rejected."""

import multiprocessing
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from rocksdict import Options, Rdict

from anabranch.state.errors import StateError
from anabranch.state.store.compaction import choose
from anabranch.state.store.delta import Delta, Items, Rows
from anabranch.state.store.read_only import ReadOnlyStore
from anabranch.state.store.store import Store
from tests.support.waiting import GENEROUS_S

IDENTITY = {"pipeline": "payments", "river": "0.25.0"}
SPAWNED = multiprocessing.get_context("forkserver")
SPAWNED.set_forkserver_preload(["anabranch.state.store.store"])


def delta_for(generation: int, rows: int = 40) -> Delta:
    """A delta with every kind of part that depends on its number alone."""
    rng = np.random.default_rng(generation)
    index = np.sort(rng.choice(3 * rows, rows, replace=False))
    delta = Delta(
        rows={
            "card/0": Rows(index, {"x": rng.normal(size=(rows, 3)), "n": np.full(rows, generation)})
        },
        items={"keys": Items(index, [rng.bytes(8) if at % 5 else None for at in index.tolist()])},
        blobs={"model": rng.bytes(500), f"odd/{generation % 7}": b"%d" % generation},
    )
    if generation % 6 == 0:
        delta.rows["log"] = Rows(np.arange(3), {"y": np.full(3, generation)})
        delta.blobs["forest"] = rng.bytes(9000)  # large enough for a file of its own kind
    if generation % 10 == 0:
        delta.cleared = {"log", "keys"}
    return delta


def plain(image: Delta) -> dict:
    """An image as dicts, so that two can be compared."""
    found: dict = {}
    apply(found, image)
    return found


def apply(state: dict, delta: Delta) -> None:
    """The model: what a delta does to a state in plain dicts."""
    for name in delta.cleared:
        for kind in ("rows", "items", "blobs"):
            state.pop((kind, name), None)
    for name, rows in delta.rows.items():
        cells = state.setdefault(("rows", name), {})
        for at, number in enumerate(rows.index.tolist()):
            cells[number] = {c: values[at].tobytes() for c, values in rows.columns.items()}
    for name, items in delta.items.items():
        cells = state.setdefault(("items", name), {})
        for number, value in zip(items.index.tolist(), items.values, strict=True):
            cells[number] = value
            if value is None:
                del cells[number]
    for name, blob in delta.blobs.items():
        state["blobs", name] = blob


def expected(generation: int) -> dict:
    state: dict = {}
    for number in range(1, generation + 1):
        apply(state, delta_for(number))
    return state


def compact_all(store: Store) -> None:
    """Wait until nothing is left to merge."""
    until = time.monotonic() + GENEROUS_S
    while any(choose(store._segments, store.generation, store._root.adopted, store._retained)):
        store.compact()
        assert time.monotonic() < until


def unreferenced(store: Store) -> set[bytes]:
    """Keys that no generation names, in the database of a store, which is closed for it."""
    named = {key for segment in store._segments for key in segment.all_keys()}
    store.close()
    database = Rdict(str(store.path), Options(raw_mode=True))
    found = set(database.keys())
    database.close()
    assert found >= named
    return found - named - {b"root"}


def filled(path: Path, generations: int, **options: int) -> Store:
    store = Store(path, IDENTITY, **options)
    for number in range(1, generations + 1):
        assert store.commit(delta_for(number)) == number
    return store


def test_commits_are_there_after_reopening(tmp_path):
    with filled(tmp_path / "a" / "card-0", 5) as store:
        assert store.generation == 5
    with Store(tmp_path / "a" / "card-0", IDENTITY) as store:
        assert store.generation == 5
        assert plain(store.restore(5)) == expected(5)
        assert store.verify() == []


def test_a_new_store_is_empty_and_an_empty_delta_is_a_generation(tmp_path):
    with Store(tmp_path / "s", IDENTITY) as store:
        assert store.generation == 0
        assert not store.restore(0)
        assert not store.restore(None)
        assert store.commit(Delta()) == 1
        assert not store.restore(1)
        assert store.verify() == []


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("back", range(9))
def test_rollback_by_each_number_of_retained_generations(tmp_path, back, merged):
    with filled(tmp_path / "s", 37) as store:
        if merged:
            compact_all(store)
        assert plain(store.restore(37 - back)) == expected(37 - back)
        assert store.generation == 37 - back
    with Store(tmp_path / "s", IDENTITY) as store:
        assert store.generation == 37 - back
        assert plain(store.restore(37 - back)) == expected(37 - back)
        for number in range(38 - back, 60):
            store.commit(delta_for(number))
        compact_all(store)
        assert plain(store.restore(59)) == expected(59)
        assert store.verify() == []


def test_restore_of_none_rolls_back_to_empty_until_a_generation_is_adopted(tmp_path):
    with filled(tmp_path / "s", 30) as store:
        compact_all(store)
        assert not store.restore(None)
        assert store.generation == 0
        assert ReadOnlyStore(tmp_path / "s").summary().deltas == 0
        for number in range(1, 15):
            store.commit(delta_for(number))
        store.adopt()
        for number in range(15, 50):
            store.commit(delta_for(number))
        compact_all(store)
        assert plain(store.restore(None)) == expected(14)
    with Store(tmp_path / "s", IDENTITY) as store:
        assert store.generation == 14
        assert plain(store.restore(None)) == expected(14)
        assert plain(store.restore(14)) == expected(14)


def test_nothing_older_than_the_adopted_generation_is_kept(tmp_path):
    with filled(tmp_path / "s", 6) as store:
        store.adopt()
        with pytest.raises(StateError, match=r"generation 5 .* no longer kept: it has 6;"):
            store.restore(5)
        compact_all(store)
        assert store.summary().deltas == 1


def test_a_token_ahead_of_the_state_is_rejected(tmp_path):
    with filled(tmp_path / "s", 3) as store:
        with pytest.raises(
            StateError, match=r"older than its token.*do not belong together"
        ) as told:
            store.restore(4)
        assert str(tmp_path / "s") in str(told.value)
        assert plain(store.restore(3)) == expected(3)


def test_a_token_older_than_what_is_retained_is_rejected_and_drops_nothing(tmp_path):
    with filled(tmp_path / "s", 40, retained=4) as store:
        compact_all(store)
        with pytest.raises(StateError, match=r"generation 13 .* no longer kept"):
            store.restore(13)
        assert plain(store.restore(40)) == expected(40)


def test_the_adopted_generation_outlives_merges_of_what_came_after(tmp_path):
    with filled(tmp_path / "s", 5, retained=1) as store:
        store.adopt()
        for number in range(6, 19):
            store.commit(delta_for(number))
        compact_all(store)
        assert plain(store.restore(18)) == expected(18)
        assert plain(store.restore(None)) == expected(5)


def test_hundreds_of_commits_to_the_same_rows_stay_few_and_small(tmp_path):
    rng = np.random.default_rng(0)
    index = np.arange(1000)
    with Store(tmp_path / "s", IDENTITY) as store:
        for number in range(1, 501):
            rows = Rows(index, {"x": rng.normal(size=(1000, 25))})
            blob = number.to_bytes(2, "little")
            store.commit(Delta(rows={"a": rows}, blobs={"last": blob}))
        compact_all(store)
        told = store.summary()
        assert told.deltas < 40
        assert told.bytes["a"] < 20 * 210_000
        image = store.restore(500)
        np.testing.assert_array_equal(image.rows["a"].columns["x"], rows.columns["x"])
        assert image.blobs["last"] == blob
    assert sum(file.stat().st_size for file in (tmp_path / "s").iterdir()) < 60_000_000


def test_merging_leaves_no_unreferenced_keys(tmp_path):
    store = filled(tmp_path / "s", 100)
    compact_all(store)
    assert unreferenced(store) == set()


def test_what_was_removed_or_cleared_stays_so_when_it_is_merged_apart_from_its_base(tmp_path):
    large = {f"large/{n}": bytes(1_000_000) for n in range(3)}
    old = delta_for(1)
    old.rows["log"] = Rows(np.arange(9), {"y": np.zeros(9)})
    old.blobs |= large
    with Store(tmp_path / "s", IDENTITY, retained=1) as store:
        store.commit(old)
        state: dict = {}
        apply(state, old)
        for number in range(7, 21):  # clears at 10 and 20, removes in each
            store.commit(delta_for(number))
            apply(state, delta_for(number))
        store.commit(Delta())
        compact_all(store)
        assert not store._segments[1].base  # merged, without the large one
        assert store._segments[1].first < store._segments[1].last
        assert plain(store.restore(16)) == state


def test_large_values_and_large_commits(tmp_path):
    rng = np.random.default_rng(1)
    forest = rng.bytes(90_000_000)
    with Store(tmp_path / "s", IDENTITY, retained=1) as store:
        store.commit(Delta(blobs={"forest": forest, "empty": b""}))
        with store._paused():  # or what is merged would depend on when the compactor runs
            for number in range(6):
                store.commit(Delta(blobs={"small": b"%d" % number}))
        compact_all(store)
        assert store.summary().deltas < 4
        assert store.restore(7).blobs == {"forest": forest, "empty": b"", "small": b"5"}
    with Store(tmp_path / "s", IDENTITY) as store:
        assert store.restore(7).blobs["forest"] == forest
        assert store._root.staged == []


def test_another_identity_is_rejected_and_named(tmp_path):
    filled(tmp_path / "s", 1).close()
    with pytest.raises(StateError, match=r"river 0\.25\.0, here 0\.26\.1;") as told:
        Store(tmp_path / "s", {**IDENTITY, "river": "0.26.1"})
    assert "payments" not in str(told.value)
    with pytest.raises(StateError, match=r"shards \(none\), here 8"):
        Store(tmp_path / "s", {**IDENTITY, "shards": "8"})
    with Store(tmp_path / "s", IDENTITY) as store:  # rejecting it closes it
        assert plain(store.restore(1)) == expected(1)


def test_another_format_is_rejected(tmp_path, monkeypatch):
    from anabranch.state.store import generations

    filled(tmp_path / "s", 1).close()
    monkeypatch.setattr(generations, "FORMAT", 2)
    with pytest.raises(StateError, match="has format 1, this program reads 2"):
        Store(tmp_path / "s", IDENTITY)


def hold(path: Path, answer) -> None:
    store = filled(path, 3)
    answer.send("held")
    answer.recv()
    store.close()


def test_a_store_open_in_another_process_is_rejected_but_can_be_read(tmp_path):
    ours, theirs = SPAWNED.Pipe()
    holder = SPAWNED.Process(target=hold, args=(tmp_path / "s", theirs))
    holder.start()
    assert ours.recv() == "held"
    with pytest.raises(StateError, match="in use by another process"):
        Store(tmp_path / "s", IDENTITY)
    view = ReadOnlyStore(tmp_path / "s")
    assert view.generation == 3
    assert view.verify() == []
    assert plain(view.image()) == expected(3)
    assert plain(view.image(2)) == expected(2)
    with pytest.raises(StateError, match="no longer has generation 9"):
        view.image(9)
    ours.send("go")
    holder.join()
    Store(tmp_path / "s", IDENTITY).close()


def test_reading_while_it_is_written_sees_complete_generations(tmp_path):
    store = filled(tmp_path / "s", 1, retained=2)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set() and store.generation < 5000:
            store.commit(delta_for(store.generation + 1))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        view, states = ReadOnlyStore(tmp_path / "s"), {}
        for _ in range(15):
            assert view.verify() == []
            state = plain(view.image())
            states[
                int(np.frombuffer(next(iter(state["rows", "card/0"].values()))["n"], int)[0])
            ] = 1
        assert store.verify() == []
    finally:
        stop.set()
        writer.join()
        store.close()
    assert len(states) > 1


def test_verify_during_merges(tmp_path):
    with filled(tmp_path / "s", 30, retained=25) as store:
        read = store._contents.__class__._decode
        begun = []

        def merge_then_read(contents, segment, part):
            if not begun:
                begun.append(part)
                store.adopt()
                compact_all(store)
            return read(contents, segment, part)

        store._contents.__class__._decode = merge_then_read
        try:
            assert store.verify() == []
        finally:
            store._contents.__class__._decode = read
        assert store.summary().deltas == 1


def test_the_summary_has_parts_and_identity(tmp_path):
    before = time.time() * 1000 - 1
    with filled(tmp_path / "s", 2) as store:
        told = store.summary()
    assert (told.generation, told.deltas, told.format, told.adopted) == (2, 2, 1, 0)
    assert told.identity == IDENTITY
    assert told.bytes["model"] == 1000
    assert set(told.bytes) == {"card/0", "keys", "model", "odd/1", "odd/2"}
    assert before <= told.committed_ms <= time.time() * 1000
    assert ReadOnlyStore(tmp_path / "s").summary() == told


def test_a_closed_store_raises_and_can_be_closed_again(tmp_path):
    store = filled(tmp_path / "s", 1)
    store.close()
    store.close()
    for act in (lambda: store.commit(Delta()), lambda: store.restore(1), store.verify, store.adopt):
        with pytest.raises(StateError, match="is closed"):
            act()


def test_another_directory_is_rejected_and_unchanged(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "notes.txt", tmp_path / "notes.txt" / "below"):
        with pytest.raises(StateError):
            Store(path, IDENTITY)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(StateError, match="there is no state"):
        ReadOnlyStore(tmp_path / "nowhere").summary()
    assert not (tmp_path / "nowhere").exists()


def test_a_failed_merge_is_reported_by_the_next_commit(tmp_path, caplog):
    store = Store(tmp_path / "s", IDENTITY, retained=1)
    for number in range(1, 8):  # columns that no two deltas share can't be merged
        try:
            rows = Rows(np.array([1]), {f"x{number}": np.array([1.0])})
            store.commit(Delta(rows={"a": rows}))
        except StateError:
            break
    store.compact()
    until = time.monotonic() + GENEROUS_S
    while store._failure is None:
        assert time.monotonic() < until
        store.compact()
    with pytest.raises(StateError, match="can't be written after an error: merging"):
        store.commit(Delta())
    store.close()
    assert len([line for line in caplog.records if "merging" in line.message]) == 1
