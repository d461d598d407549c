"""Worker processes on this machine: started together, watched, stopped together, restarted.

The engine can't replace a single process of a running cluster. So when one dies the others are
stopped too; with state on disk all resume from what was committed, without it that is the end. A
worker reports to its supervisor by its exit code why it ended.
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
    ERROR_FILE,
    EXIT_INTERRUPTED,
    EXIT_LOST,
    EXIT_REFUSED,
    STOP_SIGNALS,
    SUPERVISED,
)
from anabranch.state.errors import AnabranchError
from anabranch.state.store.lock import hold, holder

_POLL_S = 0.05
_METRICS = "anabranch-metrics-"
_STOPPED = {EXIT_INTERRUPTED, *(-number for number in STOP_SIGNALS)}


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How long a supervisor waits, and how often it restarts workers.

    Attributes:
        stop_timeout_s: after which workers that got a stop signal are killed.
        lost_timeout_s: after which the workers of a cluster that has lost one are killed.
        backoff_s: before the first restart in a row that brought no progress; doubled each time.
        max_backoff_s: its limit.
        max_restarts: restarts in a row without progress, after which the supervisor gives up.
    """

    stop_timeout_s: float = 20.0
    lost_timeout_s: float = 5.0
    backoff_s: float = 1.0
    max_backoff_s: float = 30.0
    max_restarts: int = 10


class StopRequest:
    """Whether the user wants the run to stop: a handler of SIGINT and SIGTERM.

    Args:
        on_first: called from the signal handler at the first signal.
        on_second: called at a second SIGINT.

    Attributes:
        requested: a signal has come.
        immediate: Ctrl-C was pressed again. A second SIGINT within half a second is the same one,
            forwarded by a program in between.
    """

    def __init__(
        self,
        on_first: Callable[[], None] = lambda: None,
        on_second: Callable[[], None] = lambda: None,
    ) -> None:
        self.requested = False
        self.immediate = False
        self._requested_at = 0.0
        self._on_first, self._on_second = on_first, on_second

    def install(self) -> None:
        """Handle SIGINT and SIGTERM from now on."""
        for number in STOP_SIGNALS:
            signal.signal(number, lambda number, _frame: self.on_signal(number))

    def on_signal(self, number: int) -> None:
        """Handle one of the signals."""
        now = time.monotonic()
        if not self.requested:
            self.requested, self._requested_at = True, now
            self._on_first()
        elif number == signal.SIGINT and now - self._requested_at > 0.5:
            self.immediate = True
            self._on_second()


@dataclass(frozen=True, slots=True)
class WorkerLoss:
    """Why workers have ended.

    Attributes:
        what: names the worker to blame and says how it ended.
        user_error: the message of a worker that can't run until the user has acted.
        elsewhere: the workers here only lost others, on other hosts.
    """

    what: str
    user_error: str | None = None
    elsewhere: bool = False


class LocalWorkers:
    """The workers of a cluster that run on this machine, all started by one command.

    A context manager: at its end no worker is left, and the metrics files are gone.

    Args:
        command: of each worker; environment variables say which one it is.
        processes: their numbers in the cluster.
        addresses: of all workers, given by the user when some are on other hosts; without any all
            are here, on ports that are free at each start.
        environment: what they get beside this process's own.
        policy: how long to wait for them.
    """

    def __init__(
        self,
        command: Sequence[str],
        processes: Sequence[int],
        addresses: Sequence[str] = (),
        *,
        environment: Mapping[str, str] = MappingProxyType({}),
        policy: RestartPolicy = RestartPolicy(),
    ) -> None:
        self._command = list(command)
        self._environment = environment
        self._processes = list(processes)
        self._addresses = list(addresses)
        self._policy = policy
        self._workers: list[subprocess.Popen[bytes]] = []
        self._killed: set[int] = set()
        self._stack = ExitStack()
        remove_stale_metrics()
        self.metrics_directory = tempfile.mkdtemp(prefix=f"{_METRICS}{os.getpid()}-")
        self._stack.enter_context(hold(Path(self.metrics_directory)))

    def __enter__(self) -> LocalWorkers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._signal(signal.SIGTERM)
        self._end_within(self._policy.stop_timeout_s)
        self._stack.close()
        shutil.rmtree(self.metrics_directory, ignore_errors=True)

    @property
    def local(self) -> int:
        """How many workers of the cluster run here."""
        return len(self._processes)

    @property
    def total(self) -> int:
        """How many workers the whole cluster has."""
        return len(self._addresses) or len(self._processes)

    @property
    def workers(self) -> Sequence[subprocess.Popen[bytes]]:
        """The processes that were started last, in the order of their numbers."""
        return tuple(self._workers)

    def start(self) -> None:
        """Start all of them; those of an earlier start must have ended.

        They start with stop signals blocked, and unblock them once they can end cleanly: a worker
        that dies while another waits for it to connect would leave that one waiting.
        """
        self._clean_up()
        local = [f"127.0.0.1:{port}" for port in free_ports(0 if self._addresses else self.total)]
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            for number in self._processes:
                environment = {
                    **os.environ,
                    **self._environment,
                    SUPERVISED: str(os.getpid()),
                    ERROR_FILE: str(self._error_file(number)),
                    "PROMETHEUS_MULTIPROC_DIR": self.metrics_directory,
                    "ANABRANCH_RUN_ADDRESSES": ",".join(self._addresses or local),
                    "ANABRANCH_RUN_PROCESS_ID": str(number),
                }
                self._workers.append(subprocess.Popen(self._command, env=environment))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def wait(self, stop: StopRequest) -> WorkerLoss | None:
        """Return when all workers have ended: None if they ended well, else why they did not.

        Once one is lost the others can't run: they get a moment to end, and are killed then.
        """
        kill_at: float | None = None
        while any(worker.poll() is None for worker in self._workers):
            if self._failed(stopping=stop.requested):
                self._end_within(self._policy.lost_timeout_s)
                break
            if stop.immediate:
                self._end_within(0)
                return None
            if stop.requested and kill_at is None:
                kill_at = time.monotonic() + self._policy.stop_timeout_s
                self._signal(signal.SIGTERM)
            if kill_at is not None and time.monotonic() > kill_at:
                late = self._name(next(w for w in self._workers if w.poll() is None))
                self._end_within(0)
                timeout = f"{self._policy.stop_timeout_s:g} s"
                return WorkerLoss(f"{late} did not stop within {timeout} and was killed")
            time.sleep(_POLL_S)
        return self._loss(stopping=stop.requested)

    def _clean_up(self) -> None:
        """Remove ended workers and the gauges that they set; their counters stay."""
        from prometheus_client.multiprocess import mark_process_dead

        for worker in self._workers:
            mark_process_dead(worker.pid, self.metrics_directory)  # type: ignore[no-untyped-call]
        for number in self._processes:
            self._error_file(number).unlink(missing_ok=True)
        self._workers.clear()
        self._killed.clear()

    def _signal(self, number: signal.Signals) -> None:
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

    def _failed(self, stopping: bool) -> list[subprocess.Popen[bytes]]:
        """Workers that ended badly; one that got a stop signal may end by it."""
        well = {None, 0, *(_STOPPED if stopping else ())}
        return [w for w in self._workers if w.poll() not in well and w.pid not in self._killed]

    def _loss(self, stopping: bool) -> WorkerLoss | None:
        """Which one is to blame: one that was killed first, one that only lost another last."""
        failed = self._failed(stopping)
        if not failed:
            return None
        blame = {EXIT_LOST: 3, EXIT_REFUSED: 1}
        ranks = {w: 0 if w.returncode < 0 else blame.get(w.returncode, 2) for w in failed}
        worst = min(failed, key=lambda w: (ranks[w], w.returncode))
        name, code = self._name(worst), worst.returncode
        if code < 0:
            return WorkerLoss(f"{name} was killed by {_signal_name(-code)}")
        if code == EXIT_REFUSED:
            file = self._error_file(self._number(worst))
            message = file.read_text() if file.exists() else f"{name} can't run"
            return WorkerLoss(f"{name} can't run", user_error=message)
        if code == EXIT_LOST:
            elsewhere = bool(self._addresses)
            return WorkerLoss(f"{name} lost its connection to another one", elsewhere=elsewhere)
        return WorkerLoss(f"{name} failed (its own message is above)")

    def _error_file(self, number: int) -> Path:
        return Path(self.metrics_directory) / f"error-{number}"

    def _number(self, worker: subprocess.Popen[bytes]) -> int:
        return self._processes[self._workers.index(worker)]

    def _name(self, worker: subprocess.Popen[bytes]) -> str:
        return f"worker {self._number(worker)} of {self.total} (process {worker.pid})"


class Supervisor:
    """Keeps the local workers of a cluster running, for as long as restarting them helps.

    Args:
        workers: to start and watch.
        generation: how far the state on disk is; None without state: the first loss is the end.
        say: gets a line when all are stopped at once.
        warn: gets a line for each loss; by default `say`.
        on_restart: called when all are started again.
        policy: how often, and how long to wait before it.
    """

    def __init__(
        self,
        workers: LocalWorkers,
        *,
        generation: Callable[[], int] | None,
        say: Callable[[str], None],
        warn: Callable[[str], None] | None = None,
        on_restart: Callable[[], None] = lambda: None,
        policy: RestartPolicy = RestartPolicy(),
    ) -> None:
        self._workers = workers
        self._generation = generation
        self._say, self._warn = say, warn or say
        self._on_restart = on_restart
        self._policy = policy
        self._no_progress = 0  # starts in a row that brought the state no further
        self._own_failures = 0  # those of them that ended by a failure on this host

    def run(self, stop: StopRequest) -> None:
        """Run until the workers are done or ``stop`` is requested.

        Raises:
            AnabranchError: a worker can't run, or restarting did not help.
            KeyboardInterrupt: the user wants to stop at once.
        """
        while True:
            before = self._committed()
            self._workers.start()
            loss = self._workers.wait(stop)
            if stop.immediate:
                self._say("stopped at once; " + self._next_start())
                raise KeyboardInterrupt
            if loss is None:
                return
            if loss.user_error is not None:
                raise AnabranchError(loss.user_error)
            if stop.requested:
                raise AnabranchError(f"{loss.what} while all were stopping; {self._next_start()}")
            delay_s = self._backoff(loss, before)
            them = "all" if self._workers.local > 1 else "it"
            where = self._resume_point()
            self._warn(f"{loss.what}; restarting {them} from {where} in {delay_s:g} s")
            if not _sleep(delay_s, stop):
                return
            self._on_restart()

    def _backoff(self, loss: WorkerLoss, before: int) -> float:
        """How long to wait before the next start, in seconds.

        Raises:
            AnabranchError: there should be none.
        """
        if self._generation is None:
            raise AnabranchError(f"{loss.what}, so all were stopped")
        if self._committed() > before:
            self._no_progress = self._own_failures = 0
        if self._own_failures >= self._policy.max_restarts and not loss.elsewhere:
            raise AnabranchError(
                f"{loss.what}; {self._own_failures} restarts in a row got no further than "
                f"{self._resume_point()}: fix what is reported above, then start again"
            )
        delay_s = self._policy.backoff_s * 2.0 ** min(self._no_progress, 30)
        self._no_progress += 1
        self._own_failures += not loss.elsewhere
        return min(delay_s, self._policy.max_backoff_s)

    def _committed(self) -> int:
        return self._generation() if self._generation is not None else 0

    def _resume_point(self) -> str:
        committed = self._committed()
        return f"generation {committed:,}" if committed else "the beginning"

    def _next_start(self) -> str:
        if self._generation is None:
            return "the next start is from scratch, as no state is kept"
        return f"the next start resumes from {self._resume_point()}"


def free_ports(count: int) -> list[int]:
    """Ports on 127.0.0.1 that no process listens on now, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def remove_stale_metrics() -> None:
    """Remove the metrics files of supervisors that were killed."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_METRICS}*"):
        owner = directory.name.removeprefix(_METRICS).partition("-")[0]
        if owner.isdigit() and not _is_running(int(owner)) and holder(directory) is None:
            shutil.rmtree(directory, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _sleep(seconds: float, stop: StopRequest) -> bool:
    """Wait; False as soon as a stop is requested.

    It polls: a signal handler must not set an event that the main thread waits for.
    """
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not stop.requested:
        time.sleep(min(left, _POLL_S))
    return not stop.requested


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
