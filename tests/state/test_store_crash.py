"""A store after kill −9, torn files and a full disk: a complete generation, or one sentence."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from rocksdict import Options, Rdict

from anabranch.state.errors import StateError
from anabranch.state.store import store as store_module
from anabranch.state.store.delta import Delta
from anabranch.state.store.read_only import ReadOnlyStore
from anabranch.state.store.store import Store
from tests.state.test_store import (
    IDENTITY,
    SPAWNED,
    apply,
    compact_all,
    delta_for,
    expected,
    filled,
    plain,
    unreferenced,
)
from tests.support.small_disk import make_read_only, mounted
from tests.support.waiting import GENEROUS_S, wait_until

pytestmark = pytest.mark.stress


def commit_for_ever(path: Path, back: int, acknowledged: Path, started) -> None:
    """Roll back a little, then commit; each generation's number is written once it is synced."""
    acknowledge = os.open(acknowledged, os.O_WRONLY | os.O_APPEND)
    started.send(None)
    store_module._MERGE_BATCH = 3000  # so that merges and large commits are staged, too
    store_module._COMMIT_BATCH = 6000
    store = Store(path, IDENTITY, retained=3)
    with suppress(TooOld):
        restore(store, store.generation - back)
    while True:
        os.write(acknowledge, b"%d\n" % store.generation)
        store.commit(delta_for(store.generation + 1))


class TooOld(Exception):
    """After several rollbacks there is no generation to roll back to."""


def restore(store: Store, generation: int) -> None:
    try:
        store.restore(generation)
    except StateError as error:
        if "no longer kept" not in str(error):
            raise
        raise TooOld from error


class Expected:
    """The states after each generation, each computed once."""

    def __init__(self) -> None:
        self.known: list[dict] = [{}]

    def __call__(self, generation: int) -> dict:
        while len(self.known) <= generation:
            state = {k: dict(v) if isinstance(v, dict) else v for k, v in self.known[-1].items()}
            apply(state, delta_for(len(self.known)))
            self.known.append(state)
        return self.known[generation]


def run_and_kill(path: Path, commits: int, after_s: float, back: int, file: Path) -> int | None:
    """The last generation acknowledged by a writer that is killed ``after_s`` after so many."""
    ours, theirs = SPAWNED.Pipe()
    file.write_bytes(b"")
    writer = SPAWNED.Process(target=commit_for_ever, args=(path, back, file, theirs))
    writer.start()
    ours.recv()
    wait_until(lambda: file.read_bytes().count(b"\n") >= commits, what="commits", every_s=0.001)
    time.sleep(after_s)  # the moment of the kill
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    lines = file.read_bytes().split()
    return int(lines[-1]) if lines else None


def test_a_writer_killed_at_any_moment_leaves_a_complete_generation(tmp_path):
    seed = int.from_bytes(os.urandom(4), "little")
    print("seed", seed)
    rng, want = random.Random(seed), Expected()
    path, last, alive, staged = tmp_path / "s", 0, 0, 0
    for trial in range(250):
        if trial >= 50 and staged:  # a merge that is being staged is not met in every trial
            break
        back = rng.choice((0, 0, 1, 2, 3))
        commits = rng.choice((0, 1, 2, 5, 10, 20, 40))
        acknowledged = run_and_kill(
            path, commits, rng.uniform(0, 0.02), back, tmp_path / "acknowledged"
        )
        if path.exists():
            staged += bool(ReadOnlyStore(path)._read_once(lambda contents: contents.root().staged))
        with Store(path, IDENTITY, retained=3) as store:
            # Killed before its first commit it may have rolled back, and no further.
            at_least = acknowledged if acknowledged is not None else max(last - back, 0)
            assert store.generation >= at_least
            alive += acknowledged is not None
            last = store.generation
            assert plain(store.restore(last)) == want(last)
            assert store.verify() == []
            compact_all(store)
            assert plain(store.restore(last)) == want(last)
            assert unreferenced(store) == set()
    assert alive >= 30
    assert staged
    assert last > 100
    print("killed", alive, "while staging", staged, "generation", last)


def make(path: Path, started) -> None:
    started.send(None)
    Store(path, IDENTITY)
    time.sleep(60)


def test_a_kill_during_creation_leaves_a_usable_path(tmp_path):
    rng = random.Random(3)
    made = 0
    for number in range(15):
        ours, theirs = SPAWNED.Pipe()
        maker = SPAWNED.Process(target=make, args=(tmp_path / f"s{number}", theirs))
        maker.start()
        ours.recv()
        time.sleep(rng.uniform(0, 0.02))  # the moment of the kill
        os.kill(maker.pid, signal.SIGKILL)
        maker.join()
        made += (tmp_path / f"s{number}").exists()
        with filled(tmp_path / f"s{number}", 1) as store:
            assert plain(store.restore(1)) == expected(1)
    assert {file.name for file in tmp_path.iterdir()} == {f"s{n}" for n in range(15)}


def crash_image(tmp_path: Path, generations: int) -> Path:
    """The files as a kill leaves them: some flushed, some in the write-ahead log alone."""
    with filled(tmp_path / "open", generations) as store:
        compact_all(store)
        store._database.flush()
        for number in range(generations + 1, generations + 4):
            store.commit(delta_for(number))
        assert all(any(tmp_path.glob(f"open/*.{kind}")) for kind in ("log", "sst", "blob"))
        shutil.copytree(tmp_path / "open", tmp_path / "left")
    return tmp_path / "left"


def one_line(error: StateError) -> str:
    sentence = str(error)
    assert "\n" not in sentence
    return sentence


def outcome(path: Path, last: int) -> str:
    """Open and restore; the sentence, or "whole". Anything that is silently wrong fails."""
    try:
        store = Store(path, IDENTITY)
    except StateError as error:
        return one_line(error)
    with store:
        assert store.generation <= last
        try:
            image = store.restore(last)
        except StateError as error:
            if store.generation == last:
                assert store.verify()
            elif not store.verify():
                assert plain(store.restore(store.generation)) == expected(store.generation)
            return one_line(error)
        assert plain(image) == expected(last)
        return "whole"


def test_flipped_bytes_and_cut_files_are_reported_or_rolled_back_never_silently_wrong(tmp_path):
    whole = crash_image(tmp_path, 25)
    assert outcome(shutil.copytree(whole, tmp_path / "copy"), 28) == "whole"
    rng = random.Random(5)
    told = []
    for file in sorted(file.name for file in whole.iterdir() if file.stat().st_size):
        kind = Path(file).suffix or file.split("-")[0]
        for harm in ("flip", "flip", "flip", "cut", "empty", "remove"):
            shutil.rmtree(tmp_path / "copy")
            harmed = shutil.copytree(whole, tmp_path / "copy") / file
            data = bytearray(harmed.read_bytes())
            if harm == "flip":
                for at in range(8):
                    data[(rng.randrange(len(data)) + at) % len(data)] ^= 0xFF
            harmed.write_bytes(data[: rng.randrange(len(data)) if harm == "cut" else len(data)])
            if harm == "empty":
                harmed.write_bytes(b"")
            if harm == "remove":
                harmed.unlink()
            told.append((kind, harm, outcome(tmp_path / "copy", 28)))
    for line in told:
        print(*line)
    for kind in (".blob", ".sst", ".log", "MANIFEST"):
        assert any(sentence != "whole" for k, _, sentence in told if k == kind), kind
    assert {".blob", ".sst", ".log", "MANIFEST", "CURRENT"} <= {kind for kind, _, _ in told}


def test_a_torn_end_of_the_log_rolls_back_to_the_generation_before(tmp_path):
    whole = crash_image(tmp_path, 25)
    name = max(whole.glob("*.log")).name
    for cut in range(10, (whole / name).stat().st_size, 50):
        torn = tmp_path / f"torn-{cut}"
        shutil.copytree(whole, torn)
        with open(torn / name, "r+b") as file:
            file.truncate((whole / name).stat().st_size - cut)
        with Store(torn, IDENTITY) as store:
            if store.generation == 28:  # a merge was written behind the commit
                assert plain(store.restore(28)) == expected(28)
                continue
            assert store.generation == 27
            with pytest.raises(StateError, match="older than its token"):
                store.restore(28)
            assert plain(store.restore(27)) == expected(27)
            return
    pytest.fail("no cut of the log tore the last commit")


def harm_record(path: Path, part: str, harm) -> None:
    """Change a record behind RocksDB's checksums."""
    database = Rdict(str(path), Options(raw_mode=True))
    keys = list(database.keys())
    (key,) = [key for key in keys if f"/{part}/".encode() in key]
    changed = harm(database[key])
    if changed is None:
        del database[key]
    else:
        database[key] = changed
    database.close()


@pytest.mark.parametrize("part", ["r/card/0", "b/model", "i/keys"])
@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (
            lambda record: bytes([record[0] ^ 1]) + record[1:],
            "has a wrong checksum",
        ),
        (lambda record: record[:-1], "has a wrong checksum"),
        (lambda record: None, "is missing"),
    ],
    ids=["changed", "cut", "removed"],
)
def test_a_changed_record_is_reported_by_name(tmp_path, part, harm, told):
    filled(tmp_path / "s", 1).close()
    harm_record(tmp_path / "s", part, harm)
    with Store(tmp_path / "s", IDENTITY) as store:
        sentence = f"damaged: record '{part}' of generation 1 {told}"
        (problem,) = store.verify()
        assert sentence in problem
        with pytest.raises(StateError, match=told):
            store.restore(1)
    assert sentence in ReadOnlyStore(tmp_path / "s").verify()[0]


@pytest.mark.parametrize("key", ["root", "m/0000000000000001/0000000000000001"])
def test_a_damaged_root_or_manifest_is_rejected(tmp_path, key):
    filled(tmp_path / "s", 1).close()
    database = Rdict(str(tmp_path / "s"), Options(raw_mode=True))
    record = database[key.encode()]
    for harmed in (record[:-1] + b"?", b"", record[:3], b"\0" * 4):
        database[key.encode()] = harmed
        database.close()
        with pytest.raises(StateError, match=r"is damaged: (its root record|the manifest of)"):
            Store(tmp_path / "s", IDENTITY)
        assert len(ReadOnlyStore(tmp_path / "s").verify()) == 1
        database = Rdict(str(tmp_path / "s"), Options(raw_mode=True))
    database.close()


LEFT_OPEN = """
import sys
from pathlib import Path
from tests.state.test_store import IDENTITY, delta_for
from anabranch.state.store.store import Store
stores = [Store(Path(sys.argv[1]) / str(n), IDENTITY, retained=1) for n in range(4)]
for number in range(1, 30):
    for store in stores:
        store.commit(delta_for(number, 3000))
"""


def test_a_process_that_ends_without_closing_ends_well(tmp_path):
    command = [sys.executable, "-c", LEFT_OPEN, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=GENEROUS_S, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    for number in range(4):
        assert ReadOnlyStore(tmp_path / str(number)).generation == 29
        assert ReadOnlyStore(tmp_path / str(number)).verify() == []


@pytest.fixture
def small_disk(tmp_path):
    with mounted(tmp_path / "disk", 40) as disk:
        yield disk


@pytest.mark.parametrize("size", [50_000, 3_000_000])
def test_a_full_disk_is_reported_and_earlier_commits_are_intact(small_disk, size):
    path, ballast = small_disk / "s", small_disk / "ballast"
    ballast.write_bytes(bytes(24_000_000))  # space to merge in, afterwards
    rng = np.random.default_rng(0)
    store = Store(path, IDENTITY, retained=2)
    blobs = [b""]

    def fill() -> None:
        for number in range(1, 2000):
            blob = rng.bytes(size)
            store.commit(Delta(blobs={f"b{number}": blob}))
            blobs.append(blob)

    with pytest.raises(StateError, match=f"state at {path}.*disk is full") as told:
        fill()
    assert one_line(told.value)
    with pytest.raises(StateError, match="can't be written after an error"):
        store.commit(Delta())
    store.close()
    ballast.unlink()
    with Store(path, IDENTITY, retained=2) as store:
        assert store.generation >= len(blobs) - 1 > 0
        image = store.restore(len(blobs) - 1)
        assert image.blobs == {f"b{n}": blob for n, blob in enumerate(blobs) if n}
        assert store.verify() == []
        assert store.commit(Delta()) == len(blobs)


def test_a_disk_that_turns_read_only_is_reported(small_disk):
    filled(small_disk / "s", 2).close()
    make_read_only(small_disk)
    with pytest.raises(StateError, match="Read-only file system"):
        Store(small_disk / "s", IDENTITY)
    with pytest.raises(StateError, match="Read-only file system"):
        Store(small_disk / "t", IDENTITY)
