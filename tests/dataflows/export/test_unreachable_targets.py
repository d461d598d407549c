"""A server that goes away while an export follows: it waits, says so, and nothing is lost."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from anabranch.dataflows.bus import Bus
from anabranch.dataflows.export.exporter import Exporter
from anabranch.dataflows.export.open_target import open_target
from anabranch.dataflows.export.target import ExportError, TargetUnreachableError
from tests.support.export_servers import PASSWORD, PostgresServer, RedisServer
from tests.support.exports import PREDICTIONS, Place, exporter, prediction, publish
from tests.support.waiting import wait_until


@pytest.fixture(params=["postgresql", "redis"])
def server_place(
    request: pytest.FixtureRequest, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """A server of the test's own, which it may stop."""
    monkeypatch.setenv("ANABRANCH_EXPORT_PASSWORD", PASSWORD)
    with PostgresServer() if request.param == "postgresql" else RedisServer() as server:
        yield Place(request.param, directory, server)


@pytest.mark.stress
def test_an_export_waits_for_its_target(
    bus: Bus,
    server_place: Place,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("anabranch.dataflows.export.exporter._RETRY_S", 0.1)
    monkeypatch.setattr("anabranch.dataflows.bus.outage_log.SILENT_S", 0.5)
    caplog.set_level(logging.INFO)
    publish(bus, PREDICTIONS, [prediction(n) for n in range(100)], keys=1000)
    server = server_place.server
    assert server is not None
    stop = threading.Event()
    opened = exporter(
        bus, server_place.directory, server_place.url, stop=stop, batch_size=10, interval_s=0.1
    )
    with opened as running, following(running, stop):
        wait_until(lambda: running.exported["predictions"] == 100)
        server.stop()
        publish(bus, PREDICTIONS, [prediction(n) for n in range(100, 200)], keys=1000)
        wait_until(lambda: "does not respond" in caplog.text, what=lambda: caplog.text)
        server.start()
        wait_until(lambda: running.exported["predictions"] == 200)
    assert f"{running._target.name} answers again" in caplog.text
    assert PASSWORD not in caplog.text
    ids = {row["id"] for row in server_place.rows()}
    if server_place.kind == "postgresql":
        assert ids == {f"p{n}" for n in range(200)}
    else:  # the second hundred has the keys of the first
        assert ids == {f"p{n}" for n in range(100, 200)}


def following(running: Exporter, stop: threading.Event) -> Any:
    """The export in a thread, which is stopped in the end."""

    class Following:
        def __enter__(self) -> None:
            self.thread = threading.Thread(target=running.run, args=(True,))
            self.thread.start()

        def __exit__(self, *_: object) -> None:
            stop.set()
            self.thread.join(60)
            assert not self.thread.is_alive()

    return Following()


def test_it_can_be_stopped_while_it_waits(bus: Bus, server_place: Place) -> None:
    publish(bus, PREDICTIONS, [prediction(n) for n in range(10)])
    server = server_place.server
    assert server is not None
    stop = threading.Event()
    with exporter(bus, server_place.directory, server_place.url, stop=stop) as running:
        server.stop()
        stop_soon = threading.Timer(0.5, stop.set)
        stop_soon.start()
        assert not running.run(follow=False)
        assert running.exported == {"predictions": 0}
        server.start()
    stop.clear()
    with exporter(bus, server_place.directory, server_place.url) as running:
        assert running.run(follow=False)
    assert running.exported == {"predictions": 10}


def test_a_batch_that_was_stored_though_its_answer_was_lost(
    bus: Bus, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anabranch.dataflows.export.exporter._RETRY_S", 0.01)
    publish(bus, PREDICTIONS, [prediction(n) for n in range(100)], keys=1000)
    with exporter(bus, place.directory, place.url, batch_size=10) as running:
        target, write, calls = running._target, running._target.write, 0

        def lose_the_answer(batch: Any) -> None:
            nonlocal calls
            calls += 1
            write(batch)
            if calls % 3 == 0:
                raise TargetUnreachableError("lost")

        monkeypatch.setattr(target, "write", lose_the_answer)
        assert running.run(follow=False)
    assert len(place.rows()) == 100
    assert calls == 10


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql://fraud@127.0.0.1:1/db", "does not respond"),
        ("redis://127.0.0.1:1", "does not respond"),
        ("valkey://:s3cret@127.0.0.1:1/0", "does not respond"),
        ("postgresql://fraud:s3cret/x@127.0.0.1/db", "is malformed"),
        ("postgresql://fraud:s3cret@127.0.0.1:port/db", "is malformed"),
        ("postgresql://fraud:a?s3cret@127.0.0.1/db", "is malformed"),
        ("redis://:s3cret/x@127.0.0.1/0", "is malformed"),
        ("redis://:s3cret@127.0.0.1:port/0", "is malformed"),
        ("postgresql://127.0.0.1:1/db?password=s3cret", "does not respond"),
        ("postgresql://127.0.0.1:1/db?passwort=s3cret", "is malformed"),
        ("mysql://fraud:s3cret@db/ml", "is no target"),
        ("s3cret@here", "is no target"),
        ("sqlite:", "write sqlite:FILE.db"),
        ("sqlite:no-such-directory/x.db", "does not exist"),
    ],
)
def test_a_target_that_cannot_be_opened(url: str, reason: str) -> None:
    with pytest.raises(ExportError, match=reason) as raised:
        open_target(url)
    assert "\n" not in str(raised.value)
    assert ":s3cret" not in str(raised.value)
    assert "=s3cret" not in str(raised.value)


def test_a_wrong_password_is_not_shown(
    place: Place, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place.server is None:
        return
    monkeypatch.delenv("ANABRANCH_EXPORT_PASSWORD")
    scheme, _, rest = place.url.partition("://")
    user = "" if place.kind == "redis" else "fraud"
    wrong = f"{scheme}://{user}:wr0ng%2Fone@{rest.rpartition('@')[2]}"
    with pytest.raises(ExportError, match="does not respond") as raised:
        open_target(wrong)
    assert "wr0ng" not in str(raised.value)
    with pytest.raises(ExportError):
        open_target(place.url)
    open_target(place.url, {"password": PASSWORD}).close()


@pytest.mark.parametrize(
    ("library", "url", "extra"),
    [("psycopg", "postgresql://db/ml", "postgresql"), ("redis", "redis://cache", "redis")],
)
def test_a_library_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, library: str, url: str, extra: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(ExportError, match=rf"pip install 'anabranch\[{extra}\]'"):
        open_target(url)
