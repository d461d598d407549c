"""What exports write: each message once, in columns, whatever ends them."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from anabranch.dataflows.bus import Bus, open_bus
from anabranch.dataflows.export.exporter import Exporter
from anabranch.dataflows.export.target import Batch, ExportError
from tests.support.commands import Command, run_command
from tests.support.export_servers import PASSWORD, PostgresServer
from tests.support.exports import (
    BEGAN_MS,
    DEAD,
    DRIFT,
    HOUR_MS,
    PIPELINE,
    PREDICTIONS,
    Place,
    drift_signal,
    export,
    exporter,
    messages_of,
    prediction,
    publish,
)
from tests.support.kafka_broker import KafkaBroker
from tests.support.waiting import wait_until


def check_each_message_once(bus: Bus, place: Place, topic: str = PREDICTIONS) -> None:
    """Compare the target with the topic."""
    rows = place.rows()
    if place.kind == "redis":
        newest: dict[str, Any] = {}
        for partition, offset, key, message in messages_of(bus, topic):
            at = f"{topic}:{key.decode()}" if key else ""
            if at not in newest or newest[at][2]["ts"] <= message["ts"]:
                newest[at] = (partition, offset, message)
        assert {row["at"]: (row["id"], int(row["output_offset"])) for row in rows} == {
            at: (message["id"], offset) for at, (_, offset, message) in newest.items()
        }
        ends = place.server.connect().hgetall(f"anabranch:positions:{topic}")  # type: ignore[union-attr]
        assert [int(ends[str(n)]) for n in range(len(ends) - 1)] == bus.end_offsets(topic)
        return
    expected = Counter(
        (p, o, message["id"], message["features"]["amount"], message["score"])
        for p, o, _, message in messages_of(bus, topic)
    )
    assert expected == Counter(
        (
            row["output_partition"], row["output_offset"], row["id"], row["feature_amount"],
            row["score"],
        )
        for row in rows
    )  # fmt: skip


@pytest.mark.stress
def test_an_export_that_is_killed_again_and_again(bus: Bus, place: Place) -> None:
    publish(bus, PREDICTIONS, [prediction(n) for n in range(3000)], keys=1500)
    publish(bus, DRIFT, [drift_signal(0)])
    arguments = ("export", "fraud.py", "--to", place.url, "--batch-size", 20, "--bus", bus.url)
    seen = 0
    for _ in range(2):
        with Command(place.directory, *arguments, **place.environment) as command:
            before = seen

            def progressed(before: int = before) -> bool:
                nonlocal seen
                seen = len(place.rows())
                return seen > before or command.process.poll() is not None

            wait_until(progressed, every_s=0.01)
            command.process.kill()
            command.process.wait()
    with Command(place.directory, *arguments, **place.environment) as command:
        done = command.done()
    assert done.code == 0, done.err
    assert done.out.startswith("exported ")
    check_each_message_once(bus, place)
    assert len(place.rows("drift")) == 1


@pytest.mark.stress
@pytest.mark.kafka
def test_a_killed_export_from_kafka(
    directory: Path, kafka_broker: KafkaBroker, postgres_server: PostgresServer
) -> None:
    """With topics of other names than in the other tests: the broker is shared."""
    name = f"fraud-{uuid.uuid4().hex[:8]}"
    (directory / "fraud.py").write_text(PIPELINE.replace('"fraud",', f'"{name}",', 1))
    bus = open_bus(kafka_broker.url)
    topic = f"{name}.predictions"
    publish(bus, topic, [prediction(n) for n in range(2000)])
    arguments = ("export", "fraud.py", "--to", postgres_server.url, "--topics", "predictions",
                 "--batch-size", 20, "--bus", bus.url)  # fmt: skip
    environment = {"ANABRANCH_EXPORT_PASSWORD": PASSWORD}
    query = f"SELECT output_partition, output_offset, id FROM {name.replace('-', '_')}_predictions"

    def found() -> Counter[tuple[int, int, str]]:
        with postgres_server.connect() as connection:
            try:
                return Counter(connection.execute(query).fetchall())
            except psycopg.errors.UndefinedTable:
                return Counter()

    with Command(directory, *arguments, **environment) as command:
        wait_until(found, every_s=0.01)
        command.process.kill()
        command.process.wait()
    assert run_command(directory, *arguments, **environment).code == 0
    assert found() == Counter((p, o, m["id"]) for p, o, _, m in messages_of(bus, topic))
    bus.close()


def test_the_next_export_continues(bus: Bus, place: Place) -> None:
    publish(bus, PREDICTIONS, [prediction(n) for n in range(100)])
    assert export(bus, place, batch_size=30) == {"predictions": 100}
    assert export(bus, place) == {"predictions": 0}
    publish(bus, PREDICTIONS, [prediction(n) for n in range(100, 150)])
    assert export(bus, place) == {"predictions": 50}
    check_each_message_once(bus, place)


def test_the_columns(bus: Bus, place: Place) -> None:
    publish(bus, PREDICTIONS, [prediction(7)], partitions=1)
    publish(bus, DRIFT, [drift_signal(7, began=BEGAN_MS)], partitions=1)
    export(bus, place, "predictions", "drift")
    (row,), (drift,) = place.rows(), place.rows("drift")
    of_time: dict[str, Any] = {
        "parquet": datetime(2025, 11, 30, 8, 7, tzinfo=UTC),
        "postgresql": datetime(2025, 11, 30, 8, 7, tzinfo=UTC),
        "sqlite": "2025-11-30 08:07:00.000",
        "redis": str(BEGAN_MS + 7 * 60_000),
    }
    expected = {
        "id": "p7", "event_time": of_time[place.kind], "model": "LogisticRegression", "version": 7,
        "prediction": False, "score": 1.0, "source_topic": "fraud.events", "source_partition": 0,
        "source_offset": 7, "message_key": "card-0", "output_partition": 0, "output_offset": 0,
        "feature_amount": 7.25, "feature_card_amount_1h_count": 3.0,
        "feature_card_amount_1h_mean": 0.1,
    }  # fmt: skip
    if place.kind == "redis":
        expected = {name: str(value) for name, value in expected.items()} | {"prediction": "false"}
    assert {name: row[name] for name in expected} == expected
    assert "probabilities" not in row or row["probabilities"] is None
    top = drift["top"] if place.kind == "postgresql" else json.loads(drift["top"])
    assert top == [{"bin": "US", "expected": 0.5, "observed": 0.25}]
    assert (drift["subject"], drift["event_time"]) == ("loss", of_time[place.kind])


def test_the_newest_by_event_time_wins(bus: Bus, place: Place) -> None:
    """Of an id in a table, of a key in Redis; files have every message."""
    made = [prediction(5, score=0.5), prediction(9, id="p5", score=0.9), prediction(2, id="p5")]
    publish(bus, PREDICTIONS, made[:2], partitions=1, keys=1)
    export(bus, place)
    publish(bus, PREDICTIONS, made[2:], partitions=1, keys=1)
    export(bus, place)
    scores = [float(row["score"]) for row in place.rows()]
    assert scores == ([0.5, 0.9, 2 / 7] if place.kind == "parquet" else [0.9])


def test_features_that_are_declared_later_become_columns(bus: Bus, place: Place) -> None:
    publish(bus, PREDICTIONS, [prediction(1, id="a")], partitions=1, keys=1)
    export(bus, place)
    more = {"amount": 1.0, "card_since_last_1d": 60.0, "Amount": 2.0, "x" * 80: 3.0, "none": None}
    publish(bus, PREDICTIONS, [prediction(2, id="b", features=more)], partitions=1, keys=1)
    export(bus, place)
    newest = next(row for row in place.rows() if row["id"] == "b")
    values = [v for name, v in newest.items() if name.startswith("feature_") and v is not None]
    assert sorted(map(float, values)) == [1.0, 2.0, 3.0, 60.0]
    assert float(newest["feature_card_since_last_1d"]) == 60.0


def test_dead_letters(bus: Bus, place: Place) -> None:
    letters = [
        {"topic": "fraud.events", "partition": 0, "offset": n, "reason": "late", "detail": "-",
         "payload": "a\0b", "given_up": {"topic": "t\0", "partition": 0, "offset": 1}}
        for n in range(3)
    ]  # fmt: skip
    publish(bus, DEAD, letters, partitions=1)
    if place.kind == "redis":
        with pytest.raises(ExportError, match="keeps the newest row of each key, and dead-letters"):
            export(bus, place, "dead-letters")
        return
    export(bus, place, "dead-letters")
    rows = place.rows("dead-letters")
    assert [row["source_offset"] for row in rows] == [0, 1, 2]
    assert {row["payload"] for row in rows} == {"a␀b" if place.kind == "postgresql" else "a\0b"}


def test_a_message_of_another_program_is_left_out_and_told_of(
    bus: Bus, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    publish(bus, PREDICTIONS, [prediction(1), b"{}", prediction(2)], partitions=1)
    with exporter(bus, place.directory, place.url) as running:
        running.run(follow=False)
        assert (running.exported, running.rejected) == ({"predictions": 2}, 1)
    assert "the message at offset 1 of partition 0 of topic fraud.predictions" in caplog.text
    assert export(bus, place) == {"predictions": 0}


def test_one_export_at_a_time(bus: Bus, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anabranch.dataflows.export.postgresql_target._LOCK_TIMEOUT_S", 0.1)
    monkeypatch.setattr("anabranch.dataflows.export.redis_target._LEASE_MS", 600)
    publish(bus, PREDICTIONS, [prediction(n) for n in range(10)])
    with exporter(bus, place.directory, place.url) as running:
        if place.kind == "redis":  # its owner is alive as long as it says so
            running._target._lease_key, key = "other", running._target._lease_key  # type: ignore[attr-defined]
            place.server.connect().set(key, "host, process 1, token")  # type: ignore[union-attr]
        with pytest.raises(ExportError, match="another export of this pipeline"):
            export(bus, place)


def test_an_export_that_was_overtaken_writes_nothing(bus: Bus, place: Place) -> None:
    """However another export got past the lock: positions decide."""
    if place.kind == "parquet":  # its lock has no holes
        return
    publish(bus, PREDICTIONS, [prediction(n) for n in range(10)])
    with exporter(bus, place.directory, place.url) as running:
        stored = dict(running._stored)
        export_once(running)
        running._target.write(Batch([], running._stored, running._stored))
        with pytest.raises(ExportError, match="another export has written"):
            running._target.write(Batch([], stored, running._stored))
    check_each_message_once(bus, place)


def export_once(running: Exporter) -> None:
    before = dict(running._stored)
    assert running.run(follow=False)
    assert running._stored != before


def test_a_topic_that_was_created_again(bus: Bus, place: Place) -> None:
    publish(bus, PREDICTIONS, [prediction(n) for n in range(10)])
    export(bus, place)
    bus.delete_topics([PREDICTIONS])  # type: ignore[attr-defined]
    publish(bus, PREDICTIONS, [prediction(n) for n in range(20, 24)])
    with pytest.raises(ExportError, match="was deleted and created again"):
        export(bus, place)
    assert export(bus, place, on_out_of_range="earliest") == {"predictions": 4}
    assert export(bus, place) == {"predictions": 0}
    if place.kind != "redis":
        assert len(place.rows()) == 14


def test_files_are_named_by_hour_and_offsets(bus: Bus, directory: Any) -> None:
    place = Place("parquet", directory)
    made = [prediction(n, ts=BEGAN_MS + (n // 4) * HOUR_MS) for n in range(8)]
    publish(bus, PREDICTIONS, made, partitions=1)
    export(bus, place)
    files = sorted((directory / "exported").rglob("*.parquet"))
    assert [str(file.relative_to(directory / "exported")) for file in files] == [
        f"predictions/hour=2025-11-30T{hour}/{PREDICTIONS}-0-{first:020}-{first + 3:020}.parquet"
        for hour, first in (("08", 0), ("09", 4))
    ]


@pytest.mark.parametrize("point", ["sync_directory", "atomic_write", "_rename"])
@pytest.mark.parametrize("after", [False, True])
def test_files_after_a_crash_at_any_point(
    bus: Bus, directory: Any, monkeypatch: pytest.MonkeyPatch, point: str, after: bool
) -> None:
    """Before and after each step by which a batch becomes part of the export."""
    import anabranch.dataflows.export.parquet_target as module

    place = Place("parquet", directory)
    publish(bus, PREDICTIONS, [prediction(n) for n in range(400)])
    for crash_at in range(2, 7):
        where: Any = module.ParquetTarget if point == "_rename" else module
        whole, calls = getattr(where, point), 0

        def crash(*arguments: Any, whole: Any = whole, crash_at: int = crash_at) -> None:
            nonlocal calls
            calls += 1
            if calls != crash_at:
                whole(*arguments)
                return
            if after:
                whole(*arguments)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(where, point, crash)
            with pytest.raises(KeyboardInterrupt):
                export(bus, place, batch_size=7 + crash_at)
    export(bus, place)
    check_each_message_once(bus, place)
    assert not list((directory / "exported" / ".partial").iterdir())
