"""``anabranch export``, from a run's outputs to tables, on both buses."""

from __future__ import annotations

import json
import signal
import sqlite3
import time
import uuid
from pathlib import Path

import polars as pl
import pytest

from anabranch.dataflows.bus import open_bus
from tests.support.commands import Call, Command, caller
from tests.support.exports import PIPELINE, PREDICTIONS, prediction, publish
from tests.support.waiting import wait_until


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:{tmp_path}/bus"
    return str(request.getfixturevalue("kafka_broker").url)


@pytest.fixture
def name(tmp_path: Path) -> str:
    """The name of this test's pipeline, which is in fraud.py."""
    name = f"fraud-{uuid.uuid4().hex[:8]}"
    (tmp_path / "fraud.py").write_text(PIPELINE.replace('"fraud",', f'"{name}",', 1))
    return name


@pytest.fixture
def call(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    return caller(tmp_path, capfd)


def test_what_a_run_publishes(url: str, name: str, call: Call, tmp_path: Path) -> None:
    now = int(time.time() * 1000) - 60_000
    events = [
        {"id": f"e{n}", "ts": now + n, "card": f"c{n % 3}", "amount": n / 2, "fraud": n % 2 == 0}
        for n in range(30)
    ]
    (tmp_path / "events.jsonl").write_text("\n".join(map(json.dumps, events)) + "\n{}")
    environment = {"ANABRANCH_BUS": url}
    assert call("publish", "fraud.py", "events.jsonl", **environment).code == 0
    assert call("run", "fraud.py", "--until-end", "--state", "state", **environment).code == 0
    topics = "predictions,drift,dead_letters"
    for to in ("sqlite:out.db", "parquet:out"):
        done = call("export", "fraud.py", "--to", to, "--topics", topics, **environment)
        assert (done.code, done.out) == (
            0,
            f"exported 30 predictions and 0 drift and 1 dead-letters to {to}\n",
        ), done.err
    with sqlite3.connect(tmp_path / "out.db") as connection:
        table = f"{name.replace('-', '_')}_predictions"
        query = f"SELECT id, feature_amount, feature_card_amount_1h_count FROM {table}"
        rows = connection.execute(query).fetchall()
    found = pl.read_parquet(tmp_path / "out" / "predictions")
    columns = found.select("id", "feature_amount", "feature_card_amount_1h_count")
    assert sorted(rows) == sorted(columns.rows())
    assert sorted(rows) == sorted((f"e{n}", n / 2, n // 3 + 1.0) for n in range(30))


def test_ctrl_c_ends_an_export_that_follows(tmp_path: Path) -> None:
    (tmp_path / "fraud.py").write_text(PIPELINE)
    url = f"sqlite:{tmp_path}/bus"
    bus = open_bus(url)
    publish(bus, PREDICTIONS, [prediction(n) for n in range(100)])
    publish(bus, "fraud.drift", [])
    arguments = ("export", "fraud.py", "--to", "sqlite:out.db", "--follow", "--bus", url)
    with Command(tmp_path, *arguments) as command:

        def count() -> int:
            if not (tmp_path / "out.db").exists():
                return 0
            with sqlite3.connect(tmp_path / "out.db", timeout=60) as connection:
                try:
                    rows = connection.execute("SELECT count(*) FROM fraud_predictions")
                except sqlite3.OperationalError:
                    return 0
                return int(rows.fetchone()[0])

        wait_until(lambda: count() == 100)
        bus.add_partitions(PREDICTIONS, 3)
        more = [prediction(n) for n in range(100, 160)]
        publish(bus, PREDICTIONS, more, partitions=3, keys=60)
        wait_until(lambda: count() == 160)
        command.send(signal.SIGINT)
        done = command.done()
    assert done.code == 0, done.err
    assert "exporting fraud.predictions, fraud.drift to sqlite:out.db" in done.err
    assert done.out == "exported 160 predictions and 0 drift to sqlite:out.db\n"
    bus.close()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--to", "sqlite:x.db"), "topic fraud.predictions does not exist"),
        (("--to", "sqlite:x.db", "--topics", "events"), "'events' is no output of a pipeline"),
        (("--to", "sqlite:x.db", "--topics", ","), "name at least one output"),
        (("--to", "sqlite:x.db", "--topics", "rollouts"), "has no rollouts to export"),
        (("--to", "s3://bucket"), "is no target"),
        (("--to", "parquet:x", "--to-config", "secrets"), "takes no settings"),
        (("--to", "redis://h", "--to-config", "none"), "--to-config none can't be read"),
        (("--to", "redis://h", "--to-config", "secrets"), "color is no setting of Redis"),
    ],
)
def test_a_mistake_is_one_sentence(
    tmp_path: Path, call: Call, arguments: tuple[str, ...], sentence: str
) -> None:
    (tmp_path / "fraud.py").write_text(PIPELINE)
    (tmp_path / "secrets").write_text("color=s3cret\n")
    done = call("export", "fraud.py", *arguments)
    assert done.code == 1
    assert sentence in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert "s3cret" not in done.err
