"""Workers that die, refuse, hang or are told to end, and what their supervisor makes of it.

The workers are real processes of a few lines each; `test_cluster` has the real thing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from anabranch.dataflows.runtime.supervisor import (
    LocalWorkers,
    RestartPolicy,
    StopRequest,
    Supervisor,
)
from anabranch.dataflows.runtime.worker import means_lost_worker
from anabranch.dataflows.telemetry.worker_metrics import shared_registry
from anabranch.state.errors import AnabranchError
from anabranch.state.store.lock import holder

pytestmark = pytest.mark.stress

WORKER = """
import os, signal, sys, time
from pathlib import Path
from anabranch.dataflows.runtime.supervised_worker import reporting_errors

stopped = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: stopped.append(1))
signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
here, me = Path(sys.argv[1]), int(os.environ["ANABRANCH_RUN_PROCESS_ID"])
start = len(list(here.glob(f"{me}-*")))
written = here / f"new-{me}"
written.write_text(f"{os.getpid()} {os.environ['ANABRANCH_RUN_ADDRESSES']}")
written.rename(here / f"{me}-{start}")

def others_started():
    while len(list(here.glob(f"*-{start}"))) < 2:
        time.sleep(0.01)

if os.environ["ANABRANCH_RUN_ADDRESSES"].startswith("127.0.0.1:"):
    others_started()
with reporting_errors():
BEHAVIOUR
while not stopped:
    time.sleep(0.01)
"""
QUICK = RestartPolicy(
    stop_timeout_s=120.0, lost_timeout_s=0.1, backoff_s=0.01, max_backoff_s=0.04, max_restarts=3
)
DIE = "os.kill(os.getpid(), 9)"


@dataclass
class Run:
    """A supervised cluster of two whose workers do as told; what was said and who was started."""

    place: Path
    behaviour: str
    addresses: tuple[str, ...] = ()
    policy: RestartPolicy = QUICK
    generation: Callable[[], int] | None = lambda: 17
    on_say: Callable[[], None] = lambda: None
    restarted: int = 0
    said: list[str] = field(default_factory=list)
    stop: StopRequest = field(default_factory=StopRequest)
    registry: CollectorRegistry | None = None

    def __call__(self) -> Run:
        body = "\n".join("    " + line for line in self.behaviour.strip().splitlines())
        command = [sys.executable, "-c", WORKER.replace("BEHAVIOUR", body), str(self.place)]
        members = [1] if self.addresses else [0, 1]
        with LocalWorkers(command, members, self.addresses, policy=self.policy) as cluster:
            self.registry = shared_registry(cluster.metrics_directory)
            Supervisor(
                cluster,
                generation=self.generation,
                say=self.say,
                on_restart=self.count,
                policy=self.policy,
            ).run(self.stop)
        return self

    def say(self, line: str) -> None:
        self.said.append(line)
        self.on_say()

    def count(self) -> None:
        self.restarted += 1

    def starts(self, number: int = 0) -> list[str]:
        """``process-id addresses`` of each start of a worker."""
        found = sorted(self.place.glob(f"{number}-*"), key=lambda p: int(p.name.split("-")[1]))
        return [each.read_text() for each in found]

    def pid(self, number: int, start: int) -> int:
        return int(self.starts(number)[start].split()[0])


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """No worker outlives its supervisor, and signals are handled as before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    for started in tmp_path.glob("[0-9]*-[0-9]*"):
        assert not Path(f"/proc/{started.read_text().split()[0]}").exists()


def test_when_a_worker_is_killed_all_are_started_again(tmp_path: Path) -> None:
    """The first is killed as soon as it has started; the other one would go on for ever."""
    run = Run(tmp_path, f"if me == 1 and start == 0: {DIE}\nif start == 1: sys.exit(0)")()
    assert run.said == [
        f"worker 1 of 2 (process {run.pid(1, 0)}) was killed by SIGKILL; restarting all from "
        "generation 17 in 0.01 s"
    ]
    assert run.restarted == 1
    assert [len(run.starts(number)) for number in (0, 1)] == [2, 2]


def test_each_start_has_ports_of_its_own_that_both_workers_know(tmp_path: Path) -> None:
    run = Run(tmp_path, f"if start < 2: {DIE}\nsys.exit(0)")()
    addresses = [[line.split()[1] for line in run.starts(number)] for number in (0, 1)]
    assert addresses[0] == addresses[1]
    assert len(set(addresses[0])) == 3
    for listed in addresses[0]:
        assert len(set(listed.split(","))) == 2


def test_a_refusal_is_the_end_and_said_once(tmp_path: Path) -> None:
    refuse = "from anabranch.state.errors import BusError\nraise BusError('mend this — please')"
    run = Run(tmp_path, refuse)
    with pytest.raises(AnabranchError) as refused:
        run()
    assert str(refused.value) == "mend this — please"
    assert run.said == []
    assert len(run.starts()) == 1


@pytest.mark.parametrize(
    ("mine", "others", "sentence"),
    [
        ("sys.exit(3)", DIE, "worker 1 of 2 (process {1}) was killed by SIGKILL"),
        (DIE, "sys.exit(3)", "worker 0 of 2 (process {0}) was killed by SIGKILL"),
        (DIE, "sys.exit(1)", "worker 0 of 2 (process {0}) was killed by SIGKILL"),
        ("os.abort()", DIE, "worker 1 of 2 (process {1}) was killed by SIGKILL"),
        (
            "sys.exit(1)",
            "sys.exit(3)",
            "worker 0 of 2 (process {0}) failed (its own message is above",
        ),
        ("sys.exit(3)", "sys.exit(3)", "worker 0 of 2 (process {0}) lost its connection to an"),
        ("sys.exit(3)", "pass", "worker 0 of 2 (process {0}) lost its connection to another"),
    ],
)
def test_who_is_to_blame(tmp_path: Path, mine: str, others: str, sentence: str) -> None:
    both = f"if start: sys.exit(0)\nif me == 0: {mine}\n{others}"
    # Only the one that does not end by itself is killed; the others may take their time.
    patience_s = 0.5 if others == "pass" else 120.0
    run = Run(tmp_path, both, policy=RestartPolicy(lost_timeout_s=patience_s, backoff_s=0.0))()
    assert run.said[0].startswith(sentence.format(run.pid(0, 0), run.pid(1, 0)))


def test_who_refuses_a_little_later_than_the_other_one_is_lost_is_heard(tmp_path: Path) -> None:
    late = (
        "from anabranch.state.errors import StateError\nif me == 0: sys.exit(3)\n"
        "time.sleep(0.3)\nraise StateError('the disk is full')"
    )
    with pytest.raises(AnabranchError, match=r"^the disk is full$"):
        Run(tmp_path, late, policy=RestartPolicy(lost_timeout_s=120.0))()


def test_it_gives_up_when_starting_again_brings_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, f"if me == 0: {DIE}", policy=QUICK, generation=lambda: 0)
    with pytest.raises(AnabranchError) as gave_up:
        run()
    assert [line.rpartition("from the beginning in ")[2] for line in run.said] == [
        "0.01 s",
        "0.02 s",
        "0.04 s",
    ]
    assert f"process {run.pid(0, 3)}) was killed by SIGKILL; 3 restarts in a row got no" in str(
        gave_up.value
    )
    assert "\n" not in str(gave_up.value)
    assert len(run.starts()) == 4


def test_progress_makes_it_patient_again(tmp_path: Path) -> None:
    """The generation rises with every second start: never more than two in a row are in vain."""

    def generation() -> int:
        return len(list(tmp_path.glob("0-*"))) // 2

    run = Run(tmp_path, f"if start == 9: sys.exit(0)\n{DIE}")
    run.generation = generation
    run()
    assert len(run.starts()) == 10
    waits = [line.rpartition(" in ")[2] for line in run.said]
    assert waits == ["0.01 s", "0.01 s", "0.02 s"][:1] + ["0.01 s", "0.02 s"] * 4


def test_the_wait_before_a_start_is_bounded(tmp_path: Path) -> None:
    tries = RestartPolicy(lost_timeout_s=0.1, backoff_s=0.001, max_backoff_s=0.003, max_restarts=5)
    run = Run(tmp_path, DIE, policy=tries)
    with pytest.raises(AnabranchError):
        run()
    assert [line.rpartition(" in ")[2] for line in run.said][2:] == ["0.003 s"] * 3


def test_without_state_the_first_loss_is_the_end(tmp_path: Path) -> None:
    run = Run(tmp_path, f"if me == 1: {DIE}", generation=None)
    with pytest.raises(AnabranchError) as ended:
        run()
    who = f"worker 1 of 2 (process {run.pid(1, 0)})"
    assert str(ended.value) == f"{who} was killed by SIGKILL, so all were stopped"
    assert len(run.starts()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_during_back_off_ends_at_once(tmp_path: Path, number: signal.Signals) -> None:
    waits = RestartPolicy(lost_timeout_s=0.1, backoff_s=3600.0, max_backoff_s=3600.0)
    run = Run(tmp_path, DIE, policy=waits)
    run.stop.install()
    run.on_say = lambda: os.kill(os.getpid(), number)
    run()
    assert len(run.starts()) == 1


def test_workers_that_are_told_to_end_end_well(tmp_path: Path) -> None:
    run = Run(tmp_path, "if me == 0: os.kill(os.getppid(), signal.SIGTERM)")
    run.stop.install()
    run()
    assert run.said == []


def test_a_worker_that_does_not_end_when_told_is_killed_and_named(tmp_path: Path) -> None:
    hangs = (
        "if me == 0: os.kill(os.getppid(), signal.SIGTERM); os._exit(0)\n"
        "while me == 1: time.sleep(1)"
    )
    run = Run(tmp_path, hangs, policy=RestartPolicy(stop_timeout_s=2.0))
    run.stop.install()
    with pytest.raises(AnabranchError) as ended:
        run()
    assert str(ended.value) == (
        f"worker 1 of 2 (process {run.pid(1, 0)}) did not stop within 2 s and was killed while "
        "all were stopping; the next start resumes from generation 17"
    )


def test_ctrl_c_twice_ends_at_once_and_says_what_comes_next(tmp_path: Path) -> None:
    hangs = "while True: time.sleep(1)"
    run = Run(tmp_path, hangs, policy=RestartPolicy(stop_timeout_s=3600.0))
    run.stop.install()
    ended = threading.Event()

    def press() -> None:
        """Once more than half a second after it was first noticed, whenever that is."""
        while not ended.wait(0.7):
            os.kill(os.getpid(), signal.SIGINT)

    user = threading.Thread(target=press)
    user.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run()
    finally:
        ended.set()
        user.join()
    assert run.said == ["stopped at once; the next start resumes from generation 17"]


def test_a_signal_that_is_sent_on_at_once_does_not_count_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    stop = StopRequest()
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
        stop.on_signal(number)
    assert stop.requested
    assert not stop.immediate


def test_a_worker_lost_while_all_are_ending_is_no_reason_to_start_again(tmp_path: Path) -> None:
    dies = f"if me == 0: os.kill(os.getppid(), 15)\nwhile not stopped: pass\n{DIE}"
    run = Run(tmp_path, dies)
    run.stop.install()
    with pytest.raises(
        AnabranchError, match="SIGKILL while all were stopping; the next start resumes"
    ):
        run()
    assert len(run.starts()) == 1


def test_on_several_hosts_a_lost_one_is_waited_for_however_long(tmp_path: Path) -> None:
    """One local member of two; ten times the other host is away, and restarts would be three."""
    run = Run(
        tmp_path, "sys.exit(3 if start < 10 else 0)", addresses=("10.0.0.1:9000", "10.0.0.2:9000")
    )()
    assert len(run.starts(1)) == 11
    assert not run.starts(0)
    assert {line.split()[1] for line in run.starts(1)} == {"10.0.0.1:9000,10.0.0.2:9000"}
    assert run.said[0].startswith("worker 1 of 2 (process ")
    assert "lost its connection to another one; restarting it from" in run.said[0]


def test_on_several_hosts_a_fault_of_our_own_is_given_up(tmp_path: Path) -> None:
    run = Run(tmp_path, "sys.exit(3 if start < 5 else 1)", addresses=("a:1", "b:1"))
    with pytest.raises(AnabranchError, match="3 restarts in a row"):
        run()
    assert len(run.starts(1)) == 5 + 4


def test_counters_go_on_over_restarts_and_what_the_dead_said_of_now_is_forgotten(
    tmp_path: Path,
) -> None:
    tell = f"""
from prometheus_client import CollectorRegistry, Counter, Gauge
registry = CollectorRegistry()
Counter("events", "", registry=registry).inc(10)
Gauge("lag", "", registry=registry, multiprocess_mode="livesum").set(start + 1)
(here / f"told-{{me}}-{{start}}.mark").touch()
while len(list(here.glob(f"told-*-{{start}}.mark"))) < 2: time.sleep(0.01)
if me == 1 and start == 0: {DIE}
if me == 1: os.kill(os.getppid(), signal.SIGTERM)
"""
    seen: list[float | None] = []

    class Looking(StopRequest):
        def on_signal(self, number: int) -> None:
            assert run.registry is not None
            seen.extend(run.registry.get_sample_value(name) for name in ("events_total", "lag"))
            super().on_signal(number)

    run = Run(tmp_path, tell, stop=Looking())
    run.stop.install()
    run()
    assert seen == [40.0, 4.0]


KILLED = """
import sys, time, tempfile
from anabranch.dataflows.runtime.supervisor import LocalWorkers
with LocalWorkers([sys.executable, "-c", "pass"], [0]) as cluster:
    print(cluster.metrics_directory, flush=True)
    time.sleep(600)
"""


def test_metrics_files_of_a_killed_supervisor_are_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    strange = tmp_path / "anabranch-metrics-of-somebody-else"
    strange.mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True, env=environment
    ) as first:
        assert first.stdout is not None
        left = Path(first.stdout.readline().strip())
        assert holder(left) == first.pid
        with LocalWorkers([sys.executable], [0]):
            assert left.exists()  # its owner lives
        first.kill()
        first.wait()
        assert left.exists()
        with LocalWorkers([sys.executable], [0]) as mine:
            assert not left.exists()
            assert Path(mine.metrics_directory).exists()
    assert [each.name for each in tmp_path.iterdir()] == [strange.name]


WAITING = """
import os, signal, sys, threading
import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.run import cli_main
from bytewax.testing import TestingSink, TestingSource
from anabranch.dataflows.runtime.supervised_worker import end_with_supervisor

stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
end_with_supervisor(stop, unresponsive_s=0.3, orphan_s=0.3)
flow = Dataflow("flow")
op.output("out", op.input("in", flow, TestingSource([1])), TestingSink([]))
print(os.getpid(), flush=True)
cli_main(flow, process_id=1, addresses=["127.0.0.1:1", "127.0.0.1:0"])
"""
SUPERVISOR = """
import os, subprocess, sys
os.environ["ANABRANCH_SUPERVISED"] = str(os.getpid())
worker = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
sys.exit(worker.wait())
"""


@pytest.mark.parametrize("how", ["told", "orphaned"])
def test_a_worker_that_waits_for_another_one_to_connect_still_ends(how: str) -> None:
    """The engine waits without looking at Python's signal handlers."""
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, WAITING],
        stdout=subprocess.PIPE,
        text=True,
    ) as supervisor:
        assert supervisor.stdout is not None
        worker = int(supervisor.stdout.readline())
        assert "error connecting to worker 0" in supervisor.stdout.readline()
        try:
            if how == "told":
                os.kill(worker, signal.SIGTERM)
                assert supervisor.wait(120) == 130
            else:
                supervisor.kill()
                assert supervisor.wait(120)
                wait_for_the_end_of(worker)
        finally:
            supervisor.kill()
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)


def wait_for_the_end_of(process: int) -> None:
    deadline = time.monotonic() + 120
    while Path(f"/proc/{process}").exists():
        if "\nState:\tZ" in Path(f"/proc/{process}/status").read_text():
            return  # whoever has inherited it takes its time
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("said", "lost"),
    [
        ("(src/run.rs:292:17) thread panicked: a thread panic of the engine", True),
        ("panicked at communication/src/allocator/zero_copy: MergeQueue poisoned.", True),
        ("division by zero", False),
    ],
)
def test_a_lost_worker_is_known_by_what_the_engine_says(said: str, lost: bool) -> None:
    wrapped = RuntimeError("(src/run.rs:292:17)")
    wrapped.__cause__ = RuntimeError(said)
    assert means_lost_worker(wrapped) is lost
    assert means_lost_worker(RuntimeError(said)) is lost
