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

from state.errors import AnabranchError

SUPERVISED = "ANABRANCH_SUPERVISED"
_GRACE_S = 20.0


class LocalCluster:
    """``processes`` workers of one command line, each told its place and all addresses."""

    def __init__(self, arguments: Sequence[str], processes: int) -> None:
        self._arguments = list(arguments)
        self._processes = processes
        self.metrics_directory = tempfile.mkdtemp(prefix="anabranch-metrics-")
        self._workers: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start all workers."""
        addresses = ",".join(f"127.0.0.1:{port}" for port in free_ports(self._processes))
        for number in range(self._processes):
            command = [
                sys.executable, "-m", "dataflows.cli", *self._arguments,
                "--process-id", str(number), "--addresses", addresses,
            ]  # fmt: skip
            environment = {
                **os.environ,
                SUPERVISED: "1",
                "PROMETHEUS_MULTIPROC_DIR": self.metrics_directory,
            }
            self._workers.append(subprocess.Popen(command, env=environment))

    def wait(self, stopping: Callable[[], bool]) -> None:
        """Return when all workers are done; end them when ``stopping`` says so.

        Raises:
            AnabranchError: one of them failed.
        """
        told = False
        while any(worker.poll() is None for worker in self._workers):
            if stopping() and not told:
                told = True
                self._tell(signal.SIGTERM)
            failed = self._failed()
            if failed is not None:
                self.end()
                raise AnabranchError(failed)
            time.sleep(0.05)
        failed = self._failed()
        if failed is not None:
            raise AnabranchError(failed)

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

    def _failed(self) -> str | None:
        for number, worker in enumerate(self._workers):
            code = worker.poll()
            if code:
                how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
                return (
                    f"worker {number} of {self._processes} ended with {how}, so all were ended; "
                    "its own message stands above"
                )
        return None


def free_ports(count: int) -> list[int]:
    """Ports on 127.0.0.1 that nobody listens on now, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
