"""An output topic has one writer: one pipeline, and one run of it at a time."""

from __future__ import annotations

import os
import re
import signal
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from anabranch.dataflows.bus import BusError, open_bus
from anabranch.dataflows.bus.claims import Claim
from anabranch.dataflows.bus.kafka import claims as kafka_claims
from anabranch.dataflows.bus.kafka.claims import KafkaClaims
from tests.support.checkpoint_pipeline import refused
from tests.support.commands import Call, Command, caller
from tests.support.waiting import wait_until

PIPELINE = """
from river import linear_model
from anabranch import Event, Pipeline, Topics, field, inline

class Order(Event):
    id: str
    ts: int
    amount: float
    paid: bool

pipeline = Pipeline(
    name="{name}",
    event=Order,
    label=inline("paid"),
    features=[field("amount")],
    model=linear_model.LogisticRegression(),
    topics=Topics(events="orders-{own}", predictions="scores-{own}"),
)
"""


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:{tmp_path}/bus"
    return str(request.getfixturevalue("kafka_broker").url)


@pytest.fixture
def call(url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    run = caller(tmp_path, capfd)
    return lambda *arguments: run(*arguments, ANABRANCH_BUS=url)


@pytest.fixture
def own(url: str, tmp_path: Path) -> str:
    """The end of this test's topics; pipelines are in risk.py and fraud.py."""
    own = uuid.uuid4().hex[:8]
    for name in ("risk", "fraud"):
        (tmp_path / f"{name}.py").write_text(PIPELINE.format(name=f"{name}-{own}", own=own))
    now = int(time.time() * 1000)
    rows = [f'{{"id":"o{n}","ts":{now},"amount":{n},"paid":true}}'.encode() for n in range(9)]
    bus = open_bus(url)
    bus.create_topics({f"orders-{own}": 1})
    publisher = bus.publisher()
    publisher.append(f"orders-{own}", rows)
    publisher.close()
    bus.close()
    return own


def predictions(url: str, own: str) -> int:
    bus = open_bus(url)
    try:
        name = f"scores-{own}"
        return sum(bus.end_offsets(name)) if name in bus.topics() else 0
    finally:
        bus.close()


def test_two_pipelines_on_one_output(call: Call, own: str, url: str) -> None:
    assert call("run", "risk.py", "--until-end").code == 0
    said = refused(
        call("run", "fraud.py", "--until-end"),
        f"topic scores-{own} is an output of pipeline 'risk-{own}', so pipeline 'fraud-{own}' "
        "can't write there: give it topics of its own with topics=Topics(…)",
    )
    assert predictions(url, own) == 9
    bus = open_bus(url)
    assert f"fraud-{own}.drift" not in bus.topics()
    bus.close()

    command = re.search(r"`anabranch (.*)`", said)
    assert command is not None
    released = call(*command[1].split())
    assert released.out == f"released scores-{own}\n", released.err
    assert call("run", "fraud.py", "--until-end").code == 0
    assert predictions(url, own) == 18
    refused(call("run", "risk.py", "--until-end"), f"of pipeline 'fraud-{own}'")


def test_two_runs_of_one_pipeline(call: Call, own: str, url: str, tmp_path: Path) -> None:
    """At once only with one of them; one after the other each continues from its own state."""
    with Command(tmp_path, "run", "risk.py", "--bus", url) as first:
        wait_until(lambda: predictions(url, own) == 9)
        for options in (["--state", "other"], ["--no-state"]):
            refused(
                call("run", "risk.py", "--until-end", *options),
                f"another run of pipeline 'risk-{own}'",
                f"process {first.process.pid}",
                "stop that run first",
            )
        refused(call("topics", "release", f"scores-{own}"), "stop that run first")
        assert predictions(url, own) == 9
        first.send(signal.SIGTERM)
        assert first.done().code == 0
    assert call("run", "risk.py", "--until-end").code == 0
    assert predictions(url, own) == 9
    assert call("run", "risk.py", "--until-end", "--state", "other").code == 0
    assert predictions(url, own) == 18


def test_what_a_killed_run_has_claimed(call: Call, own: str, url: str, tmp_path: Path) -> None:
    with Command(tmp_path, "run", "risk.py", "--bus", url) as first:
        wait_until(lambda: predictions(url, own) == 9)
        first.send(signal.SIGKILL)
        first.done()
    began = time.monotonic()
    assert call("run", "risk.py", "--until-end").code == 0
    resumed_s = time.monotonic() - began
    if url.startswith("kafka"):
        assert resumed_s < kafka_claims._WATCH_S  # its own claim need not be watched
    assert predictions(url, own) == 9
    with Command(tmp_path, "run", "risk.py", "--bus", url) as second:
        wait_until(lambda: bool(second.process.poll() is None))
        second.send(signal.SIGKILL)
        second.done()
    other = call("run", "risk.py", "--until-end", "--state", "other")
    assert other.code == 0, other.err


class Store:
    """Claims in memory; the first read of one that is ``blind`` finds none."""

    def __init__(self, claims: dict[str, Claim], blind: bool = False) -> None:
        self.claims = claims
        self._blind = blind

    def read(self, topics: Sequence[str], timeout_s: float | None = None) -> dict[str, Claim]:
        if self._blind:
            self._blind = False
            return {}
        return {topic: self.claims[topic] for topic in topics if topic in self.claims}

    def write(self, claims: Mapping[str, Claim | None], timeout_s: float | None = None) -> None:
        for topic, claim in claims.items():
            assert claim is not None
            self.claims[topic] = claim


def test_of_two_runs_that_start_at_once_on_kafka_the_first_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both found no claim; the second to write one keeps it."""
    monkeypatch.setattr(kafka_claims, "_CHECK_S", 0.05)
    signals: list[int] = []
    monkeypatch.setattr(os, "kill", lambda _, number: signals.append(number))
    stored: dict[str, Claim] = {}
    first = KafkaClaims(Store(stored), ["scores"], "risk", "first", print)
    with KafkaClaims(Store(stored, blind=True), ["scores"], "risk", "second", print):
        wait_until(lambda: signals)
        assert stored["scores"].run == "second"
    with pytest.raises(BusError, match="another run of pipeline 'risk'"):
        first.__exit__(None, None, None)
    assert signals == [signal.SIGTERM]
    assert not stored["scores"].active
