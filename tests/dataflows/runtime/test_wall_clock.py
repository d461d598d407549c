"""The machine's clock is set during a run: it neither stops nor fails its health check."""

from __future__ import annotations

import json
import signal
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from anabranch.dataflows.bus import open_bus
from tests.support.commands import Command
from tests.support.kafka_broker import KafkaBroker
from tests.support.waiting import wait_until
from tests.support.wall_clock import WallClock

pytestmark = pytest.mark.needs("cc")

PIPELINE = """
from anabranch import Event, Pipeline, field, inline
from river import linear_model

class Pay(Event):
    id: str
    ts: int
    amount: float
    fraud: bool

pipeline = Pipeline(
    name="{name}", event=Pay, label=inline("fraud"), features=[field("amount")],
    model=linear_model.LogisticRegression(), allowed_lateness="1d", max_clock_skew="12h",
)
"""


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:{tmp_path / 'bus'}"
        return
    broker: KafkaBroker = request.getfixturevalue("kafka_broker")
    yield broker.url


@pytest.mark.parametrize("hours", [-2, 1])
def test_a_run_goes_on_and_ends_when_the_clock_is_set(tmp_path: Path, url: str, hours: int) -> None:
    name = f"clock-{uuid4().hex[:8]}"
    (tmp_path / "pay.py").write_text(PIPELINE.format(name=name))
    clock = WallClock(tmp_path)
    bus = open_bus(url)
    bus.create_topics({f"{name}.events": 2})
    publisher = bus.publisher()
    sent = 0

    def publish_and_wait() -> None:
        nonlocal sent
        for partition in range(2):
            body = {"id": f"e{sent}", "ts": round(time.time() * 1000), "amount": 1.0, "fraud": True}
            publisher.append(f"{name}.events", [json.dumps(body).encode()], partitions=partition)
            sent += 1
        publisher.flush()
        topic = f"{name}.predictions"
        wait_until(lambda: topic in bus.topics() and sum(bus.end_offsets(topic)) == sent)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ("run", "pay.py", "--bus", url, "--no-state", "--metrics-port", port)
    with Command(tmp_path, *command, **clock.environment) as run:
        publish_and_wait()
        clock.set_s(3600 * hours)
        for _ in range(3):
            publish_and_wait()
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz/live") as answer:
                assert answer.status == 200
        run.send(signal.SIGINT)
        done = run.done()
    assert done.code in (0, 130), done.err
    publisher.close()
    bus.close()
