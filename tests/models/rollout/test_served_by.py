"""Which model served each event, as predictions, training rows and metrics tell it."""

from __future__ import annotations

import io
import json
from typing import Any

import msgspec
import numpy as np
import pytest
from prometheus_client import generate_latest
from rich.console import Console

from anabranch import Prediction
from anabranch.dataflows.batch.batch import Batch
from anabranch.dataflows.batch.results import Results
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.replay.training_rows import RowBuilder, RowColumns
from anabranch.dataflows.sink.encoder import Encoder
from anabranch.dataflows.telemetry.status import read_status, status_table
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics
from anabranch.models.learners.learner import Predictions
from tests.dataflows.steps.test_control import batches, decisions, order, orders, publish, raw_of


def results(count: int, **named: Any) -> Results:
    pipeline = orders()
    (batch,) = raw_of(pipeline, [], events=count)
    return Results(batch, Predictions(np.arange(count) / 10), range(count), **named)


def encoded(result: Results, **changes: Any) -> list[bytes]:
    items = Encoder(orders(**changes))([("0", result)])
    return [line for _, item in items for line in item.messages.get("p.predictions", [])]


def test_all_by_the_pipelines_own_model_is_the_rule():
    lines = [json.loads(line) for line in encoded(results(3))]
    assert [line["model"] for line in lines] == ["LogisticRegression"] * 3
    assert all("instead_of" not in line for line in lines)
    assert encoded(results(3)) == encoded(results(3, models=["LogisticRegression"] * 3))


@pytest.mark.parametrize("with_features", [False, True])
def test_each_prediction_names_its_model_and_the_failed_one(with_features):
    models, failed = ["tree", "LogisticRegression", "tree"], ["LogisticRegression", None, None]
    result = results(3, models=models, instead_of=failed)
    lines = encoded(result, with_features=with_features)
    typed = [msgspec.json.decode(line, type=Prediction) for line in lines]
    assert [each.model for each in typed] == models
    assert [each.instead_of for each in typed] == failed
    assert [each.version for each in typed] == [0, 1, 2]
    assert [b"instead_of" in line for line in lines] == [True, False, False]
    assert [each.features is not None for each in typed] == [with_features] * 3


def test_it_stays_so_when_a_batch_is_divided_by_partition():
    pipeline = orders()
    bus = MemoryBus()
    bus.create_topics(dict.fromkeys(pipeline.inputs, 2))
    for i in range(4):
        publish(bus, "p.events", [(i, order(i, i))], partition=i % 2)
    (raw,) = batches(bus, 2, 100)
    from anabranch.dataflows.source.decoder import BatchDecoder

    batch: Batch = BatchDecoder(pipeline).decode(raw)
    models = ["a", "b", "c", "d"]
    result = Results(batch, Predictions(np.zeros(4)), [0] * 4, models=models)
    found = Encoder(pipeline, 2)([("0", result)])
    by_file = {
        key: [json.loads(v)["model"] for v in item.messages["p.predictions"]] for key, item in found
    }
    assert by_file == {"000000": ["a", "c"], "000001": ["b", "d"]}


def test_training_rows_name_the_model_that_served():
    pipeline = orders()
    builder = RowBuilder(pipeline, RowColumns(pipeline), capacity=4)
    found = [*builder.add(results(2)), *builder.add(results(3, models=["tree", "bush", "twig"]))]
    last = builder.rest()
    assert last is not None
    models = [builder.frame(rows)["model"].to_list() for rows in (*found, last)]
    assert models == [["LogisticRegression", "LogisticRegression", "tree", "bush"], ["twig"]]


def test_the_live_table_shows_the_quality_of_who_serves_most_and_every_share():
    metrics = WorkerMetrics("p")
    metrics.on_quality({("line", "Accuracy"): 0.8, ("tree", "Accuracy"): 0.9})
    assert read_status(metrics.registry).quality == {"Accuracy": 0.8}
    metrics.rollouts.on_traffic({"line": 0.25, "tree": 0.75})
    status = read_status(metrics.registry)
    assert status.quality == {"Accuracy": 0.9}
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(status_table("p", status, 0.0, {}, "now"))
    text = console.export_text()
    assert "0.9000" in text
    assert text.split("traffic share of tree")[1].split()[1] == "75.0%"


def test_rollouts_are_exported_as_metrics(monkeypatch):
    from tests.dataflows.steps.test_control import COMMANDS, run
    from tests.support.scripted_deployment import use_scripted_controller

    use_scripted_controller(monkeypatch)
    metrics = WorkerMetrics("p")
    exported = metrics.rollouts
    exported.on_traffic({"line": 0.75, "tree": 0.25})
    exported.on_traffic({"line": 0.9, "bush": 0.1})
    exported.on_served({"line": 7, "tree": 2})
    exported.on_served({"line": 1})
    exported.on_failures({"tree": 3})
    exported.on_decisions(decisions(run(orders(), limit=5, commands=COMMANDS)))
    text = generate_latest(metrics.registry).decode()
    for line in (
        'anabranch_traffic_share{model="line",pipeline="p"} 0.9',
        'anabranch_traffic_share{model="tree",pipeline="p"} 0.0',
        'anabranch_traffic_share{model="bush",pipeline="p"} 0.1',
        'anabranch_served_predictions_total{model="line",pipeline="p"} 8.0',
        'anabranch_served_predictions_total{model="tree",pipeline="p"} 2.0',
        'anabranch_model_failures_total{model="tree",pipeline="p"} 3.0',
        'anabranch_rollout_decisions_total{action="promoted",pipeline="p"} 1.0',
        'anabranch_rollout_decisions_total{action="rejected",pipeline="p"} 1.0',
    ):
        assert line in text, line
