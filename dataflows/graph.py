"""The graph of a pipeline; it reads like its picture.

::

    events ─▶ intake ──▶ windows ──▶ models ──▶ encode ──▶ sink ──▶ predictions, drift,
    labels ─▶ (decode,   (by shard)  (predict,                      dead letters
               admit)                 score, learn)

A single worker shares with nobody: its windows and models are one operator.

Only four of the engine's operators carry it: `input`, `flat_map_batch`, `stateful_batch`, `output`.
"""

from __future__ import annotations

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.operators import StatefulBatchLogic

from dataflows.batch import Progress
from dataflows.bus import Bus
from dataflows.encode import Encoder, Results
from dataflows.failure import Guard, watched
from dataflows.intake import Intake, IntakeOptions
from dataflows.metrics import WorkerMetrics
from dataflows.model_step import ModelStep, WindowsAndModels
from dataflows.pipeline import Pipeline
from dataflows.sink import BusSink
from dataflows.windows import Item, Router, WindowStep, to_models


def build_graph(
    pipeline: Pipeline,
    bus: Bus,
    options: IntakeOptions,
    *,
    workers: int = 1,
    shards: int = 8,
    metrics: WorkerMetrics | None = None,
    guard: Guard | None = None,
) -> Dataflow:
    """The dataflow of ``pipeline`` on ``bus``, for ``workers`` workers and ``shards`` shards.

    ``guard`` watches the steps for errors that the user should see alone.

    Raises:
        BusError: an input topic is missing, or partition counts differ.
    """
    metrics = metrics or WorkerMetrics(pipeline.name)
    router = Router(pipeline, shards, workers)
    intake = Intake(pipeline, bus, options, router, metrics)
    partitions = len(intake.list_parts())
    bus.create_topics(dict.fromkeys(pipeline.topics.outputs, partitions))
    encoder = Encoder(pipeline)

    def fill(_resume: None) -> StatefulBatchLogic[Item | Progress, Item, None]:
        return watched(WindowStep(pipeline, metrics, workers), guard)

    def model(_resume: None) -> StatefulBatchLogic[Item, Results, None]:
        return watched(ModelStep(pipeline, metrics), guard)

    def both(_resume: None) -> StatefulBatchLogic[Item | Progress, Results, None]:
        windows, models = WindowStep(pipeline, metrics), ModelStep(pipeline, metrics)
        return watched(WindowsAndModels(windows, models), guard)

    flow = Dataflow(pipeline.name.replace("-", "_"))
    rows = op.input("intake", flow, intake)
    if workers == 1:
        results = op.stateful_batch("windows_and_models", rows, both)
    else:
        filled = op.stateful_batch("windows", rows, fill)
        gathered = op.flat_map_batch("to_models", filled, to_models)
        results = op.stateful_batch("models", gathered, model)
    outgoing = op.flat_map_batch("encode", results, encoder)
    op.output("sink", outgoing, BusSink(bus, partitions, metrics.on_written))
    return flow
