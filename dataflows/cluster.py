"""Several worker processes on this machine: started together, watched, and ended together.

The engine can't replace a single process of a running cluster, so when one dies the others are
ended too, and the supervisor says which one it was.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType

from state.errors import AnabranchError

SUPERVISED = "ANABRANCH_SUPERVISED"
"""Set in the environment of a worker that a supervisor has started."""

EXIT_LOST = 3
"""The exit code of a worker that ends because another one is gone: the other one is to blame."""

_GRACE_S = 20.0
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ENDED_BY_US = {130, *(-number for number in _STOP_SIGNALS)}


class LocalCluster:
    """``processes`` workers of one command line, each told its place and all addresses.

    A context manager: on leaving it, no worker is left and the metrics files are gone.
    """

    def __init__(self, arguments: Sequence[str], processes: int) -> None:
        self._arguments = list(arguments)
        self._processes = processes
        self.metrics_directory = tempfile.mkdtemp(prefix="anabranch-metrics-")
        self._workers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()

    def start(self) -> None:
        """Start all workers.

        They start with stop signals blocked, and let them in once they can end cleanly: a worker
        that dies while another waits for it to connect would leave that one waiting.
        """
        addresses = ",".join(f"127.0.0.1:{port}" for port in free_ports(self._processes))
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        try:
            for number in range(self._processes):
                environment = {
                    **os.environ,
                    SUPERVISED: "1",
                    "PROMETHEUS_MULTIPROC_DIR": self.metrics_directory,
                    "ANABRANCH_RUN_ADDRESSES": addresses,
                    "ANABRANCH_RUN_PROCESS_ID": str(number),
                }
                command = [sys.executable, "-m", "dataflows.cli", *self._arguments]
                self._workers.append(subprocess.Popen(command, env=environment))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def wait(self, stopping: Callable[[], bool]) -> None:
        """Return when all workers are done; end them when ``stopping`` says so.

        Raises:
            AnabranchError: one of them failed, or did not end when it was told to.
        """
        give_up_at: float | None = None
        while any(worker.poll() is None for worker in self._workers):
            if stopping() and give_up_at is None:
                give_up_at = time.monotonic() + _GRACE_S
                self._tell(signal.SIGTERM)
            if give_up_at is not None and time.monotonic() > give_up_at:
                raise AnabranchError(f"some workers did not end in {_GRACE_S:g} s and were killed")
            self._check(told=give_up_at is not None)
            time.sleep(0.05)
        self._check(told=give_up_at is not None)

    def end(self) -> None:
        """End what still runs: politely first, then for certain; remove the metrics files."""
        self._tell(signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_S
        for worker in self._workers:
            try:
                worker.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        shutil.rmtree(self.metrics_directory, ignore_errors=True)

    def _tell(self, number: signal.Signals) -> None:
        for worker in self._workers:
            if worker.poll() is None:
                worker.send_signal(number)

    def _check(self, told: bool) -> None:
        """Raise if a worker failed; ``told``: one that was told to end may end by the signal."""
        codes = [worker.poll() or 0 for worker in self._workers]
        # Who was killed comes first, who only lost the others last.
        for number in sorted(range(len(codes)), key=lambda n: (codes[n] == EXIT_LOST, codes[n])):
            code, worker = codes[number], self._workers[number]
            if not code or (told and code in _ENDED_BY_US):
                continue
            who = f"worker {number} of {self._processes} (process {worker.pid})"
            if code > 0:
                raise AnabranchError(f"{who} failed, so all were ended; what it said stands above")
            raise AnabranchError(
                f"{who} was ended by {signal.Signals(-code).name}, so all were ended"
            )


def free_ports(count: int) -> list[int]:
    """Ports on 127.0.0.1 that nobody listens on now, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
