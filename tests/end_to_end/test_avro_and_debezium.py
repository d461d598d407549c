"""Orders of another team in Avro, labels from a database by Debezium: one declaration is enough."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anabranch import Prediction, read_outputs
from anabranch.dataflows.bus import Bus, BusError, open_bus
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.pipelines.loader import load_pipeline
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions
from tests.support.avro_orders import (
    PIPELINE,
    SCHEMA,
    chargeback,
    in_avro,
    order,
    placed_at,
)
from tests.support.commands import Command, run_command
from tests.support.kafka_broker import KEEP_HISTORY, KafkaBroker
from tests.support.schema_registry import RegistryServer
from tests.support.waiting import GENEROUS_S, wait_until

ORDERS, PAYMENTS, PREDICTIONS = "prod.orders.v2", "pg.public.payments", "risk.predictions"
COUNT = 400


def fill(bus: Bus, schema_id: int, rows: range) -> None:
    publisher = bus.publisher()
    for i in rows:
        key = [f"c{i % 7}".encode()]
        value = in_avro(order(i), schema_id)
        publisher.append(ORDERS, [value], keys=key, times=[placed_at(i)], partitions=0)
        if i % 5 == 0:
            changes = chargeback(i)
            publisher.append(
                PAYMENTS, [*changes, b""], times=[placed_at(i) + 500] * 5, partitions=0
            )
    publisher.flush()
    publisher.close()


def declared(directory: Path, registry: str) -> Pipeline:
    path = directory / "risk.py"
    path.write_text(PIPELINE.format(registry=registry))
    pipeline = load_pipeline(str(path))
    assert isinstance(pipeline, Pipeline)
    return pipeline


def expected(i: int) -> dict[str, float]:
    """Window features by their definition: of this customer, in (t - w, t]."""
    found = {}
    for text, seconds in (("10m", 600), ("1h", 3600)):
        own = np.array([order(j)["amount"] for j in range(i % 7, i + 1, 7) if i - j < seconds])
        found[f"count_{text}"], found[f"mean_{text}"] = float(len(own)), own.mean()
    return found


def check(predictions: list[Any]) -> None:
    assert sorted(each.offset for each in predictions) == list(range(COUNT)), "one for each"
    for each in predictions:
        i = each.offset
        assert (each.id, each.ts, each.topic) == (f"o{i}", placed_at(i), ORDERS)
        values = dict(each.features)
        assert values["amount"] == order(i)["amount"]
        for text in ("10m", "1h"):
            (count,) = (v for n, v in values.items() if "count" in n and text in n)
            (mean,) = (v for n, v in values.items() if "mean" in n and text in n)
            assert count == expected(i)[f"count_{text}"]
            assert mean == pytest.approx(expected(i)[f"mean_{text}"], rel=1e-9)
    learned = max(each.version for each in predictions)
    assert learned > COUNT / 5 - 10, "chargebacks were learned"


def killed_and_restarted(directory: Path, url: str, registry: RegistryServer) -> None:
    declared(directory, registry.url)
    schema_id = registry.add(f"{ORDERS}-value", SCHEMA)
    settings = KEEP_HISTORY if url.startswith("kafka:") else None
    bus = open_bus(url, settings)
    try:
        bus.create_topics({ORDERS: 1, PAYMENTS: 1})
        fill(bus, schema_id, range(COUNT // 2))
        run = ("run", "risk.py", "--bus", url, "--checkpoint-interval", "100ms", "--batch-size", 50)
        with Command(directory, *run) as command:

            def predicted() -> bool:
                if command.process.poll() is not None:
                    raise AssertionError(command.done())
                return PREDICTIONS in bus.topics() and sum(bus.end_offsets(PREDICTIONS)) > 60

            wait_until(predicted, 5 * GENEROUS_S, "predictions")
            command.send(signal.SIGKILL)
        fill(bus, schema_id, range(COUNT // 2, COUNT))
        done = run_command(directory, *run, "--until-end")
        assert done.code == 0, done.err
        pipeline = load_pipeline(str(directory / "risk.py"))
        predictions = list(read_outputs(pipeline, Prediction, bus=bus))
        check(predictions)
        assert sum(bus.end_offsets("risk.dead-letters")) == 0
        found = run_command(
            directory, "consume", PREDICTIONS, "--bus", url, "--no-follow", "--limit", 1,
            "--schema-registry", registry.url,
        )  # fmt: skip
        assert '"id":"o0"' in found.out, found
    finally:
        bus.close()


def test_on_the_embedded_bus(tmp_path: Path) -> None:
    with RegistryServer() as registry:
        killed_and_restarted(tmp_path, f"sqlite:{tmp_path / 'bus'}", registry)
        registered = registry.schemas[registry.subjects[f"{PREDICTIONS}-value"][0]]
        assert '"Prediction"' in registered["schema"]


@pytest.mark.kafka
def test_on_kafka(tmp_path: Path, kafka_broker: KafkaBroker) -> None:
    with RegistryServer() as registry:
        killed_and_restarted(tmp_path, kafka_broker.url, registry)


def test_a_registry_that_is_away_is_waited_for(tmp_path: Path) -> None:
    with RegistryServer() as registry:
        pipeline, bus = declared(tmp_path, registry.url), MemoryBus()
        bus.create_topics({ORDERS: 1, PAYMENTS: 1})
        fill(bus, registry.add(f"{ORDERS}-value", SCHEMA), range(COUNT))
        registry.status = 503
        stopped = SourceOptions(until_end=True)
        failures: list[BaseException] = []

        def run() -> None:
            try:
                run_worker(pipeline, bus, stopped)
            except BusError as error:
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        wait_until(lambda: len(registry.requests) > 1, what="a second attempt")
        stopped.stop.set()
        thread.join()
        assert "stopped while the schema registry was unavailable" in str(failures)
        again = threading.Thread(
            target=lambda: run_worker(pipeline, bus, SourceOptions(until_end=True))
        )
        asked = len(registry.requests)
        again.start()
        wait_until(lambda: len(registry.requests) > asked + 1, what="more attempts")
        registry.status = None
        again.join()
        check(list(read_outputs(pipeline, Prediction, bus=bus)))
        assert not bus.values("risk.dead-letters")
