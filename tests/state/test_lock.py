"""One run per state directory: locks end with their process, and a new run waits for old workers.

The holders are processes of their own, as in life.
"""

from __future__ import annotations

import os
import resource
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import pytest

from anabranch.state.errors import StateError
from anabranch.state.store.lock import hold, holder, join
from tests.support.waiting import GENEROUS_S

pytestmark = pytest.mark.stress

HOLDER = """
import os, sys
from pathlib import Path
from anabranch.state.store.lock import hold, join

place = Path(sys.argv[2])
with hold(place) if sys.argv[1] == "hold" else join(place):
    {inside}
    print("in", flush=True)
    sys.stdin.read()
"""


@contextmanager
def process(*arguments: object, inside: str = "pass") -> Iterator[subprocess.Popen[str]]:
    """A process that locks a directory, or works in one, until its input is closed."""
    command = [sys.executable, "-c", HOLDER.format(inside=inside), *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as started:
        try:
            yield started
        finally:
            started.kill()


def is_in(started: subprocess.Popen[str]) -> bool:
    """Whether it got the lock (else it has ended)."""
    assert started.stdout is not None
    return started.stdout.readline() == "in\n"


def test_a_second_run_is_rejected_at_once_with_the_process_id_of_the_first(tmp_path: Path) -> None:
    place = tmp_path / "new" / "state"
    with process("hold", place) as first:
        assert is_in(first)
        assert holder(place) == first.pid
        before = time.monotonic()
        with pytest.raises(StateError, match=rf"{place} .*process {first.pid}\)") as refused:
            hold(place).__enter__()
        assert time.monotonic() - before < 10  # it does not wait the 60 s that workers get
        assert "\n" not in str(refused.value)
        assert holder(place) == first.pid  # the failed attempt has no effect
    with hold(place):
        assert holder(place) == os.getpid()
    assert holder(place) is None


def test_the_same_process_can_not_lock_a_directory_twice(tmp_path: Path) -> None:
    with hold(tmp_path), pytest.raises(StateError, match=f"process {os.getpid()}"):
        hold(tmp_path).__enter__()
    with hold(tmp_path):
        pass


def test_a_lock_ends_with_its_process_and_not_with_its_children(tmp_path: Path) -> None:
    """A holder leaves a forked child and an executed one behind when it is killed."""
    children = (
        "import subprocess, time; "
        "child = subprocess.Popen(['sleep', '600'], close_fds=False); "
        "ready, told = os.pipe(); fork = os.fork(); "
        "fork or (os.write(told, b'.'), time.sleep(600)); os.read(ready, 1); "
        "print(child.pid, fork, flush=True)"
    )
    with process("hold", tmp_path, inside=children) as first:
        assert first.stdout is not None
        left = [int(each) for each in first.stdout.readline().split()]
        assert is_in(first)
        assert holder(tmp_path) == first.pid
        first.kill()
        first.wait()
        try:
            assert all(Path(f"/proc/{each}").exists() for each in left)
            with hold(tmp_path, patience_s=0):
                assert holder(tmp_path) == os.getpid()
        finally:
            for each in left:
                os.kill(each, 9)


# Starts as many workers as asked for, when they are in says so, and waits.
WORKERS = """
import subprocess
command = [sys.executable, "-c", WORKER, "join", str(place)]
workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in "12"]
for each in workers: each.stdout.readline()
print(*(each.pid for each in workers), flush=True)
"""


@contextmanager
def orphans(place: Path) -> Iterator[list[int]]:
    """The process ids of two workers whose launcher has been killed."""
    worker = HOLDER.format(inside="import time; print('in', flush=True); time.sleep(600)")
    inside = f"WORKER = {worker!r}" + WORKERS.replace("\n", "\n    ")
    with process("hold", place, inside=inside) as launcher:
        assert launcher.stdout is not None
        found = [int(each) for each in launcher.stdout.readline().split()]
        assert len(found) == 2
        launcher.kill()
        launcher.wait()
        try:
            yield found
        finally:
            for each in found:
                with suppress(ProcessLookupError):
                    os.kill(each, 9)


def test_workers_share_a_directory_and_a_new_run_waits_for_them(tmp_path: Path) -> None:
    with orphans(tmp_path) as workers:
        os.kill(workers[0], 9)
        said: list[str] = []

        def end_the_other(line: str) -> None:
            said.append(line)
            os.kill(workers[1], 9)

        with hold(tmp_path, say=end_the_other):
            assert holder(tmp_path) == os.getpid()
        assert len(said) == 1
        assert "waiting for them, up to 60 s" in said[0]


def test_workers_that_do_not_end_are_an_error_after_the_timeout(tmp_path: Path) -> None:
    with orphans(tmp_path):
        with pytest.raises(StateError, match=r"still in state directory .* after 0\.2 s"):
            hold(tmp_path, patience_s=0.2).__enter__()
        assert holder(tmp_path) is None  # rejected, so not locked
    with hold(tmp_path, patience_s=GENEROUS_S):
        pass


@pytest.mark.parametrize("next_run", [False, True])
def test_a_worker_that_starts_after_its_launcher_has_ended_is_rejected(
    tmp_path: Path, next_run: bool
) -> None:
    """Its parent is not the process that has locked the directory."""
    between = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, *sys.argv[1:]]))"
    code = HOLDER.format(inside="pass")
    with hold(tmp_path) if next_run else nullcontext():
        late = subprocess.run(
            [sys.executable, "-c", between, "-c", code, "join", str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=GENEROUS_S,
        )
    assert late.returncode == 1
    assert f"no longer has the lock of state directory {tmp_path}" in late.stderr


def test_a_worker_of_this_run_joins_while_the_directory_is_locked(tmp_path: Path) -> None:
    with hold(tmp_path), join(tmp_path), process("join", tmp_path) as worker:
        assert is_in(worker)
    with pytest.raises(StateError), join(tmp_path):
        pass


def test_of_many_runs_that_start_together_one_gets_the_lock(tmp_path: Path) -> None:
    for _ in range(3):
        started = [process("hold", tmp_path) for _ in range(6)]
        runs = [each.__enter__() for each in started]
        try:
            answers = [is_in(each) for each in runs]
            assert sum(answers) == 1
            winner = runs[answers.index(True)]
            assert holder(tmp_path) == winner.pid
            for each in runs:
                assert (each is winner) == (not select.select([each.stderr], [], [], 0)[0])
        finally:
            for each in reversed(started):
                each.__exit__(None, None, None)


def test_a_directory_that_can_not_be_created_or_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        with pytest.raises(StateError, match=f"state directory {place} can't be used") as refused:
            hold(place).__enter__()
        assert "\n" not in str(refused.value)
    (tmp_path / "state" / "LOCK").mkdir(parents=True)
    with pytest.raises(StateError, match="can't be used"):
        hold(tmp_path / "state").__enter__()


def test_a_process_without_free_descriptors_gets_one_sentence(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(StateError, match="open files"):
            hold(tmp_path).__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    with hold(tmp_path):
        pass


@pytest.mark.parametrize("content", [b"", b"not a number\n", b"\xff\x00", b"9" * 5000])
def test_the_content_of_the_file_does_not_matter(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "LOCK").write_bytes(content)
    assert holder(tmp_path) is None
    with hold(tmp_path):
        assert holder(tmp_path) == os.getpid()
