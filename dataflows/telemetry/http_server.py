"""The HTTP server of a run: Prometheus metrics and health checks on one port.

``/metrics`` are the metrics. ``/healthz/live`` fails where a worker has not reported for a minute:
the run should be restarted. ``/healthz/ready`` fails until all workers have restored their state
and started to read, and so between a crash and the restart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

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

_OK, _NOT = "200 OK", "503 Service Unavailable"


def serve(
    registry: CollectorRegistry,
    port: int,
    host: str = "0.0.0.0",
    clock: Callable[[], float] = time.monotonic,
    workers: int = 1,
) -> int:
    """Serve on ``port`` (0 picks a free one) in a thread; returns the port.

    The run is ready when ``workers`` of this host are. ``clock`` gives seconds since this host was
    started, as `time.monotonic`.

    Raises:
        AnabranchError: the port is taken.
    """
    metrics = make_wsgi_app(registry)

    def respond(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics" or path == "/":
            body: Iterable[bytes] = metrics(environ, start)
            return body
        status, text = _health(path, registry, clock(), workers)
        start(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{text}\n".encode()]

    try:
        server = make_server(host, port, respond, _Server, handler_class=_QuietHandler)
    except OSError as error:
        raise AnabranchError(
            f"metrics port {port} can't be opened ({error.strerror}): choose another with "
            "--metrics-port, or 0 for any free one"
        ) from error
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
    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: a line for each scrape is of no use."""
