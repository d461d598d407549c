"""The metrics port: who reaches it, and that nothing that it meets keeps or ends anything."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.registry import Collector

from anabranch.dataflows.bus import open_bus
from anabranch.dataflows.telemetry import http_server
from anabranch.dataflows.telemetry.http_server import MAX_CONNECTIONS, serve
from anabranch.state.errors import AnabranchError
from tests.support.commands import Command, run_command
from tests.support.waiting import wait_until


def scraped(port: int, host: str = "127.0.0.1") -> str:
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=60) as answer:
        return str(answer.read().decode())


def reachable(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=60).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.fixture
def port() -> int:
    registry = CollectorRegistry()
    Gauge("answer", "It", registry=registry).set(42)
    return serve(registry, 0)


@contextlib.contextmanager
def connections(port: int, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
            for _ in range(count)
        ]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_it_listens_on_this_machine_alone_unless_told(port: int) -> None:
    assert reachable("127.0.0.1", port)
    assert not reachable("127.0.0.2", port)
    everywhere = serve(CollectorRegistry(), 0, "0.0.0.0")
    assert reachable("127.0.0.2", everywhere)


def test_an_address_of_another_machine_is_refused_in_a_sentence() -> None:
    for host in ("192.0.2.1", "no.such.host.invalid"):
        with pytest.raises(AnabranchError, match="--metrics-address must be an address of this"):
            serve(CollectorRegistry(), 0, host)


def test_a_run_says_where_its_metrics_are(tmp_path: Path) -> None:
    open_bus(f"sqlite:{tmp_path}/data/bus").create_topics(
        {"payments.events": 1, "payments.labels": 1}
    )
    command = ["run", "payments", "--until-end", "--no-state", "--metrics-port", "0"]
    assert "metrics on http://127.0.0.1:" in run_command(tmp_path, *command).err
    done = run_command(tmp_path, *command, ANABRANCH_RUN_METRICS_ADDRESS="0.0.0.0")
    assert done.code == 0
    assert "metrics on http://0.0.0.0:" in done.err
    assert "/metrics, on all addresses of this machine" in " ".join(done.err.split())


def test_many_idle_connections_keep_few_threads_and_descriptors(port: int) -> None:
    threads, before = threading.active_count(), descriptors()
    with connections(port, 300) as opened:
        # The last one is served at once, in place of older ones.
        assert "answer 42.0" in scraped(port)
        wait_until(lambda: descriptors() - before - len(opened) <= MAX_CONNECTIONS)
        assert threading.active_count() - threads <= MAX_CONNECTIONS
        assert opened[0].recv(1) == b""
    wait_until(lambda: threading.active_count() <= threads and descriptors() <= before)
    assert "answer 42.0" in scraped(port)


@pytest.mark.parametrize("sent", [b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\nHost: x\r\nA: "])
def test_a_connection_that_never_asks_is_closed(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "CONNECTION_S", 0.5)
    port = serve(CollectorRegistry(), 0)
    with connections(port, 1) as (client,):
        client.sendall(sent)
        with contextlib.suppress(ConnectionResetError):
            while client.recv(1000):
                pass


def test_a_client_that_sends_byte_by_byte_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "CONNECTION_S", 0.5)
    port = serve(CollectorRegistry(), 0)
    with connections(port, 1) as (client,):
        client.sendall(b"GET /metrics HTTP/1.1\r\n")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while not threading.Event().wait(0.05):
                client.sendall(b"a")


def test_a_client_that_does_not_read_is_closed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(http_server, "CONNECTION_S", 0.5)
    threads = threading.active_count()
    registry = CollectorRegistry()
    gauge = Gauge("big", "Much", ("name",), registry=registry)
    for number in range(2000):
        gauge.labels("x" * 5000 + str(number))  # more than fits the buffers of a socket
    port = serve(registry, 0)
    with connections(port, 3) as clients:
        for client in clients:
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        wait_until(lambda: threading.active_count() > threads + 1)
        wait_until(lambda: threading.active_count() <= threads + 1)
    assert "Traceback" not in capfd.readouterr().err


def test_garbage_resets_and_half_closed_connections_change_nothing(
    port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    garbage = [
        os.urandom(2000),
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /" + b"x" * 70_000,
        b"\x16\x03\x01\x02",
        b"GET /metrics?" + b"a=1&" * 3000 + b" HTTP/1.1\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\n\r\n",
        b"GET /%ff%00 HTTP/9.9\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.0\r\n:\r\n\xff: \x00\r\n\r\n",
    ]
    for sent in garbage:
        with connections(port, 1) as (client,), contextlib.suppress(OSError):
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
            while client.recv(10_000):
                pass
        with connections(port, 1) as (client,):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with contextlib.suppress(OSError):
                client.sendall(sent)
    with connections(port, 1) as (client,):
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(10_000), b""))
    assert answer.startswith(b"HTTP/1.0 200 OK")
    assert "answer 42.0" in scraped(port)
    assert "Traceback" not in capfd.readouterr().err


def test_a_collector_that_fails_is_a_server_error_and_a_log_record(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Collector):
        def collect(self) -> Iterator[object]:  # type: ignore[override]
            raise RuntimeError("broken")
            yield

        def describe(self) -> list[object]:  # type: ignore[override]
            return []

    registry = CollectorRegistry()
    registry.register(Broken())
    port = serve(registry, 0)
    with pytest.raises(urllib.error.HTTPError, match="500"):
        scraped(port)
    assert "/metrics can't be served" in caplog.text


def test_a_flood_of_connections_does_not_stop_a_run(tmp_path: Path) -> None:
    simulated = run_command(tmp_path, "simulate", "payments", "--events", "500")
    assert simulated.code == 0
    with Command(tmp_path, "run", "payments", "--metrics-port", "0", "--no-state") as command:
        assert command.process.stderr is not None
        line = next(line for line in command.process.stderr if "metrics on" in line)
        port = int(line.split(":")[2].split("/")[0])
        with connections(port, 200):
            wait_until(lambda: 'anabranch_events_total{pipeline="payments"} 500.0' in scraped(port))
            kept = len(os.listdir(f"/proc/{command.process.pid}/task"))
            with connections(port, 200):
                assert 'anabranch_events_total{pipeline="payments"} 500.0' in scraped(port)
                assert len(os.listdir(f"/proc/{command.process.pid}/task")) <= kept + 5
        assert command.process.poll() is None
