"""Worker processes on this machine: started together, watched, ended together, started again.

The engine can't replace a single process of a running cluster. So when one dies the others are
ended too; with state on disk all go on together from what was kept, without it that is the end.
A worker tells its supervisor by its exit code why it ended.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType

from anabranch.dataflows.runtime.supervised_worker import (
    EXIT_INTERRUPTED,
    EXIT_LOST,
    EXIT_REFUSED,
    REFUSAL,
    STOP_SIGNALS,
    SUPERVISED,
)
from anabranch.state.errors import AnabranchError
from anabranch.state.store.lock import hold, holder

_POLL_S = 0.05
_METRICS = "anabranch-metrics-"
_ENDED_BY_US = {EXIT_INTERRUPTED, *(-number for number in STOP_SIGNALS)}


@dataclass(frozen=True, slots=True)
class Bounds:
    """How patient a supervisor is.

    Workers that were told to end are killed after ``grace_s`` seconds, those of a cluster that has
    lost one after ``broken_s``. Before the nth start in a row that brought nothing it waits
    ``delay_s * 2**(n - 1)`` seconds, at most ``longest_s``, and gives up after ``restarts``.
    """

    grace_s: float = 20.0
    broken_s: float = 2.0
    delay_s: float = 1.0
    longest_s: float = 30.0
    restarts: int = 10


class Stop:
    """What the user has asked for: ``asked`` to end, ``at_once`` when Ctrl-C was pressed again.

    A second SIGINT within half a second is the same one, sent on by a program in between.
    ``first`` and ``again`` are called from the signal handler.
    """

    def __init__(
        self,
        first: Callable[[], None] = lambda: None,
        again: Callable[[], None] = lambda: None,
    ) -> None:
        self.asked = False
        self.at_once = False
        self._asked_at = 0.0
        self._first, self._again = first, again

    def listen(self) -> None:
        """Handle SIGINT and SIGTERM from now on."""
        for number in STOP_SIGNALS:
            signal.signal(number, lambda number, _frame: self.take(number))

    def take(self, number: int) -> None:
        """One of the signals has come."""
        now = time.monotonic()
        if not self.asked:
            self.asked, self._asked_at = True, now
            self._first()
        elif number == signal.SIGINT and now - self._asked_at > 0.5:
            self.at_once = True
            self._again()


@dataclass(frozen=True, slots=True)
class Loss:
    """Why workers have ended: ``what`` names the one to blame and says how it ended.

    ``refusal`` is the sentence of a worker that can't go on until the user has acted;
    ``elsewhere`` says that they only lost workers on other hosts.
    """

    what: str
    refusal: str | None = None
    elsewhere: bool = False


class LocalCluster:
    """The workers of a cluster that run on this machine: one command, each told its place.

    ``members`` are their numbers in the cluster. Its ``addresses`` are given by the user when some
    are on other hosts; without any all are here, at ports that are free at each start.
    ``environment`` is what they get beside this process's own.

    A context manager: on leaving it, no worker is left and the metrics files are gone.
    """

    def __init__(
        self,
        command: Sequence[str],
        members: Sequence[int],
        addresses: Sequence[str] = (),
        *,
        environment: Mapping[str, str] = MappingProxyType({}),
        bounds: Bounds = Bounds(),
    ) -> None:
        self._command = list(command)
        self._environment = environment
        self._members = list(members)
        self._addresses = list(addresses)
        self._bounds = bounds
        self._workers: list[subprocess.Popen[bytes]] = []
        self._killed: set[int] = set()
        self._holding = ExitStack()
        remove_stale_metrics()
        self.metrics_directory = tempfile.mkdtemp(prefix=f"{_METRICS}{os.getpid()}-")
        self._holding.enter_context(hold(Path(self.metrics_directory)))

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._tell(signal.SIGTERM)
        self._end_within(self._bounds.grace_s)
        self._holding.close()
        shutil.rmtree(self.metrics_directory, ignore_errors=True)

    @property
    def members(self) -> int:
        """How many workers of the cluster run here."""
        return len(self._members)

    @property
    def size(self) -> int:
        """How many workers the whole cluster has."""
        return len(self._addresses) or len(self._members)

    @property
    def workers(self) -> Sequence[subprocess.Popen[bytes]]:
        """The processes that were started last, in the order of the members."""
        return tuple(self._workers)

    def start(self) -> None:
        """Start all members; those of an earlier start must have ended.

        They start with stop signals blocked, and let them in once they can end cleanly: a worker
        that dies while another waits for it to connect would leave that one waiting.
        """
        self._forget()
        here = [f"127.0.0.1:{port}" for port in free_ports(0 if self._addresses else self.size)]
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            for number in self._members:
                environment = {
                    **os.environ,
                    **self._environment,
                    SUPERVISED: str(os.getpid()),
                    REFUSAL: str(self._refusal_of(number)),
                    "PROMETHEUS_MULTIPROC_DIR": self.metrics_directory,
                    "ANABRANCH_RUN_ADDRESSES": ",".join(self._addresses or here),
                    "ANABRANCH_RUN_PROCESS_ID": str(number),
                }
                self._workers.append(subprocess.Popen(self._command, env=environment))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def wait(self, stop: Stop) -> Loss | None:
        """Return when all workers have ended: None if that is well, else why it is not.

        Once one is lost the others can't go on: they get a moment to end, and are killed then.
        """
        kill_at: float | None = None
        while any(worker.poll() is None for worker in self._workers):
            if self._failed(told=stop.asked):
                self._end_within(self._bounds.broken_s)
                break
            if stop.at_once:
                self._end_within(0)
                return None
            if stop.asked and kill_at is None:
                kill_at = time.monotonic() + self._bounds.grace_s
                self._tell(signal.SIGTERM)
            if kill_at is not None and time.monotonic() > kill_at:
                late = self._name(next(w for w in self._workers if w.poll() is None))
                self._end_within(0)
                return Loss(f"{late} did not end in {self._bounds.grace_s:g} s and was killed")
            time.sleep(_POLL_S)
        return self._loss(told=stop.asked)

    def _forget(self) -> None:
        """Forget ended workers, and what they said of how things stand (but not what they did)."""
        from prometheus_client.multiprocess import mark_process_dead

        for worker in self._workers:
            mark_process_dead(worker.pid, self.metrics_directory)  # type: ignore[no-untyped-call]
        for number in self._members:
            self._refusal_of(number).unlink(missing_ok=True)
        self._workers.clear()
        self._killed.clear()

    def _tell(self, number: signal.Signals) -> None:
        for worker in self._workers:
            if worker.poll() is None:
                worker.send_signal(number)

    def _end_within(self, seconds: float) -> None:
        """Wait for all, and kill those that still run after so many seconds."""
        deadline = time.monotonic() + seconds
        for worker in self._workers:
            try:
                worker.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                self._killed.add(worker.pid)
                worker.kill()
                worker.wait()

    def _failed(self, told: bool) -> list[subprocess.Popen[bytes]]:
        """Workers that ended badly; ``told``: one that was told to end may end by the signal."""
        well = {None, 0, *(_ENDED_BY_US if told else ())}
        return [w for w in self._workers if w.poll() not in well and w.pid not in self._killed]

    def _loss(self, told: bool) -> Loss | None:
        """Who is to blame: who was killed comes first, who only lost the others last."""
        failed = self._failed(told)
        if not failed:
            return None
        blame = {EXIT_LOST: 3, EXIT_REFUSED: 1}
        ranks = {w: 0 if w.returncode < 0 else blame.get(w.returncode, 2) for w in failed}
        worst = min(failed, key=lambda w: (ranks[w], w.returncode))
        who, code = self._name(worst), worst.returncode
        if code < 0:
            return Loss(f"{who} was ended by {_signal_name(-code)}")
        if code == EXIT_REFUSED:
            place = self._refusal_of(self._number(worst))
            told_why = place.read_text() if place.exists() else f"{who} can't go on"
            return Loss(f"{who} can't go on", refusal=told_why)
        if code == EXIT_LOST:
            elsewhere = bool(self._addresses)
            return Loss(f"{who} lost its connection to another one", elsewhere=elsewhere)
        return Loss(f"{who} failed (what it said stands above)")

    def _refusal_of(self, number: int) -> Path:
        return Path(self.metrics_directory) / f"refusal-{number}"

    def _number(self, worker: subprocess.Popen[bytes]) -> int:
        return self._members[self._workers.index(worker)]

    def _name(self, worker: subprocess.Popen[bytes]) -> str:
        return f"worker {self._number(worker)} of {self.size} (process {worker.pid})"


class Supervisor:
    """Keeps the local members of a cluster running, for as long as starting again helps.

    ``generation`` tells how far the state on disk has come; without it there is none, and the
    first loss is the end. ``warn``, or ``say``, is told in one line of each loss, and
    ``on_restart`` is called when all are started again.
    """

    def __init__(
        self,
        cluster: LocalCluster,
        *,
        generation: Callable[[], int] | None,
        say: Callable[[str], None],
        warn: Callable[[str], None] | None = None,
        on_restart: Callable[[], None] = lambda: None,
        bounds: Bounds = Bounds(),
    ) -> None:
        self._cluster = cluster
        self._generation = generation
        self._say, self._warn = say, warn or say
        self._on_restart = on_restart
        self._bounds = bounds
        self._in_vain = 0  # starts in a row that brought the state no further
        self._to_blame = 0  # those of them that ended by a fault of our own

    def run(self, stop: Stop) -> None:
        """Run until the workers are done or ``stop`` says so.

        Raises:
            AnabranchError: one refused to go on, or starting again did not help.
            KeyboardInterrupt: the user wanted the end at once.
        """
        while True:
            before = self._reached()
            self._cluster.start()
            loss = self._cluster.wait(stop)
            if stop.at_once:
                self._say("ended at once; " + self._next_start())
                raise KeyboardInterrupt
            if loss is None:
                return
            if loss.refusal is not None:
                raise AnabranchError(loss.refusal)
            if stop.asked:
                raise AnabranchError(f"{loss.what} while all were ending; {self._next_start()}")
            delay_s = self._delay(loss, before)
            them = "all" if self._cluster.members > 1 else "it"
            self._warn(f"{loss.what}; starting {them} again from {self._whence()} in {delay_s:g} s")
            if not _pause(delay_s, stop):
                return
            self._on_restart()

    def _delay(self, loss: Loss, before: int) -> float:
        """How long to wait before the next start, in seconds.

        Raises:
            AnabranchError: there should be none.
        """
        if self._generation is None:
            raise AnabranchError(f"{loss.what}, so all were ended")
        if self._reached() > before:
            self._in_vain = self._to_blame = 0
        if self._to_blame >= self._bounds.restarts and not loss.elsewhere:
            raise AnabranchError(
                f"{loss.what}; {self._to_blame} restarts in a row came no further than "
                f"{self._whence()}, so this is the end: mend what was said above, then start again"
            )
        delay_s = self._bounds.delay_s * 2.0 ** min(self._in_vain, 30)
        self._in_vain += 1
        self._to_blame += not loss.elsewhere
        return min(delay_s, self._bounds.longest_s)

    def _reached(self) -> int:
        return self._generation() if self._generation is not None else 0

    def _whence(self) -> str:
        reached = self._reached()
        return f"generation {reached:,}" if reached else "the beginning"

    def _next_start(self) -> str:
        if self._generation is None:
            return "a new start begins anew, as no state is kept"
        return f"the next start goes on from {self._whence()}"


def free_ports(count: int) -> list[int]:
    """Ports on 127.0.0.1 that nobody listens on now, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def remove_stale_metrics() -> None:
    """Remove the metrics files that supervisors have left behind which were killed."""
    for place in Path(tempfile.gettempdir()).glob(f"{_METRICS}*"):
        owner = place.name.removeprefix(_METRICS).partition("-")[0]
        if owner.isdigit() and not _lives(int(owner)) and holder(place) is None:
            shutil.rmtree(place, ignore_errors=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _pause(seconds: float, stop: Stop) -> bool:
    """Wait; False as soon as the user wants the end. A handler must not set what is waited for."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not stop.asked:
        time.sleep(min(left, _POLL_S))
    return not stop.asked


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
