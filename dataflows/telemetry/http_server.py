"""The HTTP server of a run: Prometheus metrics and health checks on one port.

``/metrics`` are the metrics. ``/healthz/live`` fails where a worker has not reported for a minute:
the run should be restarted. ``/healthz/ready`` fails until all workers have restored their state
and started to read, and so between a crash and the restart.

Nothing that the port meets ends or slows the run: connections are few, each is short, and errors
of clients are not reported. The server is the standard library's, with these limits.
"""

from __future__ import annotations

import io
import logging
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import TCPServer, ThreadingMixIn
from threading import BoundedSemaphore, Lock, Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from anabranch.state.errors import AnabranchError

HEARTBEAT = "anabranch_heartbeat_timestamp_seconds"
"""The gauge that workers set when they report: Unix time, the least of all workers."""

UPTIME = "anabranch_heartbeat_uptime_seconds"
"""The same by the time since this host was started, which is not set: health goes by it."""

READY = "anabranch_ready_workers"
"""The gauge of workers that have reported since they were started."""

SILENT_AFTER_S = 60.0
"""Workers report twice a second, also when there is nothing to read and while a broker is away."""

LOCAL = "127.0.0.1"
"""The address that is served by default: of this machine alone."""

MAX_CONNECTIONS = 32
"""One more closes the oldest of them."""

CONNECTION_S = 10.0
"""After so many seconds a connection is closed, whatever its client does (Prometheus waits 10)."""

_OK, _NOT, _FAILED = "200 OK", "503 Service Unavailable", "500 Internal Server Error"
_TEXT = [("Content-Type", "text/plain; charset=utf-8")]
_IDLE_S = 5.0  # without a byte read or written
_LOG = logging.getLogger("anabranch.metrics")


def serve(
    registry: CollectorRegistry,
    port: int,
    host: str = LOCAL,
    clock: Callable[[], float] = time.monotonic,
    workers: int = 1,
) -> int:
    """Serve on ``port`` (0 picks a free one) of ``host`` in a thread; returns the port.

    ``host`` is an address or a name of this machine; 0.0.0.0 and :: are all of its addresses. The
    run is ready when ``workers`` of this host are. ``clock`` gives seconds since this host was
    started, as `time.monotonic`.

    Raises:
        AnabranchError: the port is taken, or the address is not of this machine.
    """
    metrics = make_wsgi_app(registry)

    def respond(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        try:
            if path == "/metrics" or path == "/":
                body: Iterable[bytes] = metrics(environ, start)
                return body
            status, text = _health(path, registry, clock(), workers)
        except Exception:
            _LOG.warning("%s can't be served", path, exc_info=True)
            status, text = _FAILED, "can't be served: see the log of the run"
        start(status, list(_TEXT))  # the server adds headers to the list
        return [f"{text}\n".encode()]

    try:
        server = _Server(host, port)
    except OSError as error:
        raise AnabranchError(
            f"metrics port {port} can't be opened at {host} ({error.strerror}): choose another "
            "with --metrics-port, or 0 for any free one; --metrics-address must be an address of "
            "this machine"
        ) from error
    server.set_app(respond)
    Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return int(server.server_port)


def _health(path: str, registry: CollectorRegistry, now: float, workers: int) -> tuple[str, str]:
    if path not in ("/healthz/live", "/healthz/ready"):
        return "404 Not Found", "not found: try /metrics, /healthz/live or /healthz/ready"
    beats = _values(registry, UPTIME)
    if path == "/healthz/ready":
        ready = sum(_values(registry, READY))
        if ready < workers:
            return _NOT, f"not ready: {ready:.0f} of {workers} workers have restored their state"
    elif not beats:
        return _OK, "starting: no worker has reported yet"
    silent_s = now - min(beats, default=0.0)
    if silent_s > SILENT_AFTER_S:
        return _NOT, f"a worker has not reported for {silent_s:.0f} s"
    return _OK, "ok"


def _values(registry: CollectorRegistry, name: str) -> list[float]:
    """The values of a gauge that were set."""
    return [
        sample.value
        for metric in registry.collect()
        if metric.name == name
        for sample in metric.samples
        if sample.value > 0
    ]


class _Server(ThreadingMixIn, WSGIServer):
    """Serves a bounded number of connections, each in a thread, and each for a bounded time."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, host: str, port: int) -> None:
        if ":" in host:
            self.address_family = socket.AF_INET6
        self._free = BoundedSemaphore(MAX_CONNECTIONS)
        self._lock = Lock()
        self._opened: dict[socket.socket, float] = {}  # the oldest first
        super().__init__((host, port), _QuietHandler)

    def server_bind(self) -> None:
        """Bind, without asking a name server for a name of the address."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def get_request(self) -> Any:
        """Accept a connection."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(0.1)  # the process has no descriptor left; it would be asked again at once
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread, if need be in place of the oldest one."""
        if not self._free.acquire(blocking=False):
            self._end_older_than(0.0, at_most=1)
            if not self._free.acquire(timeout=1.0):
                self.shutdown_request(request)
                return
        with self._lock:
            self._opened[request] = time.monotonic()
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self._closed(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._closed(request)

    def service_actions(self) -> None:
        """End connections whose time is up; called after each connection, and twice a second."""
        self._end_older_than(CONNECTION_S)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report nothing: a client has left, was too slow, or has sent what is no request."""
        _LOG.debug("a connection to the metrics port failed", exc_info=True)

    def _end_older_than(self, seconds: float, at_most: int = MAX_CONNECTIONS) -> None:
        """Shut connections down, the oldest first; their threads then close them."""
        until = time.monotonic() - seconds
        with self._lock:
            old = [each for each, opened in self._opened.items() if opened <= until][:at_most]
            for each in old:
                del self._opened[each]
                with suppress(OSError):  # the client has left
                    each.shutdown(socket.SHUT_RDWR)

    def _closed(self, request: Any) -> None:
        with self._lock:
            self._opened.pop(request, None)
        self._free.release()


class _QuietHandler(WSGIRequestHandler):
    timeout = _IDLE_S

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: a line for each scrape is of no use."""

    def get_stderr(self) -> Any:
        """Where tracebacks go of writing to a client that does not read."""
        return io.StringIO()
