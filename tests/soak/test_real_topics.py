"""Topics as other teams leave them, all at once: transactions, compaction, growth, a wrong clock.

Events are written by a transactional producer, every third transaction is aborted; one message in
97 has a clock 50 minutes ahead. Labels are repeated on a compacted topic and lie on other
partitions than their events. Both topics grow from two to four partitions in between, the run is
killed again and again, and goes on with two processes. Predictions, features and learned labels are
compared with a recomputation from what was committed.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import NewPartitions, NewTopic

from anabranch.dataflows.bus import TopicPartition, open_bus
from anabranch.dataflows.bus.read_to_end import ends_now, read_to_end
from anabranch.dataflows.codec.output_reader import read_outputs
from anabranch.dataflows.messages.outputs import DeadLetter, Prediction
from tests.support.crash_trial import Run
from tests.support.kafka_broker import KafkaBroker
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(900)]

EVENTS, STEP_MS, HOUR_MS, WINDOW_MS = 6_000, 20_000, 3_600_000, 600_000
FAST_MS, FAST_EVERY = 50 * 60_000, 97
GROWTH_AT = 3_600
TRANSACTION = 50
TOPICS = ("prod.orders.v2", "prod.returns")
PIPELINE = """
from river import linear_model, preprocessing

from anabranch import Event, Label, Pipeline, Topics, field, window


class Order(Event):
    id: int
    ts: int
    account: int
    amount: float


class Return(Label):
    id: int
    ts: int
    returned: bool


pipeline = Pipeline(
    name="orders",
    event=Order,
    label=Return.target("returned", timeout="7d"),
    features=[field("amount"), window("account", "amount", over="10m", stats=("count", "mean"))],
    model=preprocessing.StandardScaler() | linear_model.LogisticRegression(),
    topics=Topics(events="prod.orders.v2", labels="prod.returns"),
    with_features=True,
)
"""


def orders(start_ms: int) -> list[dict[str, Any]]:
    rng = random.Random(5)
    return [
        {
            "id": i,
            "ts": start_ms + i * STEP_MS,
            "account": rng.randrange(40),
            "amount": round(rng.lognormvariate(3, 1), 2),
            "note": "not declared",
        }
        for i in range(EVENTS)
    ]


def write_orders(url: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write transactions, each third of them aborted: the same rows under ids that never count."""
    producer = Producer(
        {
            "bootstrap.servers": url.removeprefix("kafka://"),
            "transactional.id": "orders",
            "log_level": 0,
        }
    )
    producer.init_transactions(60)
    batches = [rows[at : at + TRANSACTION] for at in range(0, len(rows), TRANSACTION)]
    for number, batch in enumerate(batches):
        if number % 3 == 2:
            producer.begin_transaction()
            for row in batch:
                _produce(producer, row | {"id": -1 - row["id"]})
            producer.flush(60)  # else an abort drops what was not sent
            producer.abort_transaction(60)
        producer.begin_transaction()
        for row in batch:
            _produce(producer, row)
        producer.commit_transaction(60)


def _produce(producer: Producer, row: dict[str, Any]) -> None:
    stamp = row["ts"] + (FAST_MS if row["id"] % FAST_EVERY == 5 else 0)
    producer.produce(TOPICS[0], json.dumps(row).encode(), str(row["account"]), timestamp=stamp)


def write_labels(url: str, rows: Sequence[dict[str, Any]]) -> None:
    """Each label three times, by its own key."""
    producer = Producer({"bootstrap.servers": url.removeprefix("kafka://"), "log_level": 0})
    for row in rows:
        label = {"id": row["id"], "ts": row["ts"] + HOUR_MS, "returned": row["amount"] > 25}
        for _ in range(3):
            producer.produce(
                TOPICS[1], json.dumps(label).encode(), f"r{row['id']}", timestamp=label["ts"]
            )
        producer.poll(0)
    assert producer.flush(60) == 0


def readable(url: str, topic: str) -> int:
    """How many messages of a topic can be read."""
    bus = open_bus(url)
    try:
        at = {TopicPartition(topic, n): 0 for n in range(bus.topics()[topic])}
        reader = bus.reader(at, on_out_of_range="earliest")
        count = sum(len(piece.values) for piece in read_to_end(reader, ends_now(bus, at)))
        reader.close()
        return count
    finally:
        bus.close()


def killed_until_it_ends(directory: Path, url: str, processes: int, kills: int) -> None:
    command = [
        sys.executable, "-m", "anabranch", "run", str(directory / "orders.py"), "--bus", url,
        "--state", str(directory / "state"), "--until-end", "--checkpoint-interval", "200ms",
        "--batch-size", "40", "--processes", str(processes),
    ]  # fmt: skip
    bus, rng = open_bus(url), random.Random(processes)
    topic = "orders.predictions"

    def published() -> int:
        return sum(bus.end_offsets(topic)) if topic in bus.topics() else 0

    try:
        for _ in range(kills):
            before = published()
            with Run(command, directory / "run.log") as run:
                wait_until(
                    lambda before=before, run=run: (
                        published() > before or run.process.poll() is not None
                    )
                )
                time.sleep(rng.uniform(0, 0.5))  # the moment of the kill
                run.kill(all_at_once=True)
        with Run(command, directory / "run.log") as run:
            assert run.wait(300) == 0, run.said()
    finally:
        bus.close()


def recomputed(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[int, float, float]]:
    """Id, count and mean of each order's account in the ten minutes up to it."""
    by_account: dict[int, list[tuple[int, float]]] = {}
    for row in rows:
        past = by_account.setdefault(row["account"], [])
        past.append((row["ts"], row["amount"]))
        amounts = [amount for ts, amount in past if ts > row["ts"] - WINDOW_MS]
        yield row["id"], float(len(amounts)), sum(amounts) / len(amounts)


def test_all_of_it_together(tmp_path: Path) -> None:
    settings = {"log.cleaner.backoff.ms": "500"}
    with KafkaBroker(fast_start=True, settings=settings) as broker:
        url, admin = broker.url, broker.admin()
        compacted = {
            "cleanup.policy": "compact", "segment.ms": "1000", "max.compaction.lag.ms": "1000",
            "min.cleanable.dirty.ratio": "0.01",
        }  # fmt: skip
        for topic, config in zip(TOPICS, ({"retention.ms": "-1"}, compacted), strict=True):
            admin.create_topics([NewTopic(topic, 2, 1, config=config)])[topic].result(60)
        (tmp_path / "orders.py").write_text(PIPELINE)
        rows = orders(time.time_ns() // 1_000_000 - (EVENTS + 10) * STEP_MS - 2 * HOUR_MS)
        write_orders(url, rows[:GROWTH_AT])
        write_labels(url, rows[:GROWTH_AT])
        time.sleep(1.5)  # a segment of labels is old enough now to be closed by the next message
        write_labels(url, rows[GROWTH_AT - 40 : GROWTH_AT])
        wait_until(
            lambda: readable(url, TOPICS[1]) < 3 * GROWTH_AT, what="the compaction of labels"
        )
        killed_until_it_ends(tmp_path, url, processes=1, kills=4)
        for topic in TOPICS:
            admin.create_partitions([NewPartitions(topic, 4)])[topic].result(60)
        write_orders(url, rows[GROWTH_AT:])
        write_labels(url, rows[GROWTH_AT:])
        killed_until_it_ends(tmp_path, url, processes=2, kills=4)

        predictions = list(read_outputs("orders", bus=url))
        assert all(isinstance(each, Prediction) for each in predictions)
        assert sorted(int(each.id) for each in predictions) == list(range(EVENTS))
        features = {int(each.id): each.features or {} for each in predictions}
        for order_id, count, mean in recomputed(rows):
            found = features[order_id]
            assert found["account_amount_10m_count"] == count, order_id
            assert found["account_amount_10m_mean"] == pytest.approx(mean, rel=1e-9), order_id
        letters = {each.reason for each in read_outputs("orders", DeadLetter, bus=url)}
        assert letters <= {"duplicate label"}
        learned = sum(1 for each in predictions if each.version > 0)
        assert learned > EVENTS * 0.9
