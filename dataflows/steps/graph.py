"""The graph of a pipeline; it reads like its picture.

::

    events ──▶ intake ──▶ windows ──▶ models ──▶ encode ──▶ sink ──▶ predictions, drift,
    labels ──▶ (decode,   (by shard)  (predict,                      rollouts,
    control ─▶  admit)                 score, learn,                 dead letters
                                       steer)

A single worker shares with nobody: its windows and models are one operator.

With an outlet the results go there as they are, instead of to `encode` and the topics.

Only four of the engine's operators carry it: `input`, `flat_map_batch`, `stateful_batch`, `output`.
"""

from __future__ import annotations

from collections.abc import Mapping

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.operators import StatefulBatchLogic

from anabranch.dataflows.batch.batch import Wake
from anabranch.dataflows.batch.outgoing import Marking
from anabranch.dataflows.bus import Bus, TopicPartition
from anabranch.dataflows.declaration.input_topics import create_control, partition_count
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.error_guard import Guard, watched
from anabranch.dataflows.recovery.rescale import BY_SHARD, MODELS_STEP, TOGETHER
from anabranch.dataflows.recovery.state_directory import StateDirectory
from anabranch.dataflows.recovery.state_partition import Token
from anabranch.dataflows.sink.bus_sink import BusSink
from anabranch.dataflows.sink.callback_sink import Outlet, OutletSink
from anabranch.dataflows.sink.delivery_retry import Patience
from anabranch.dataflows.sink.encoder import Encoder, Results
from anabranch.dataflows.source.bus_source import Intake, IntakeOptions
from anabranch.dataflows.steps.model_step import ModelStep, Tokens, WindowsAndModels
from anabranch.dataflows.steps.window_step import Item, Router, WindowStep, to_models
from anabranch.dataflows.telemetry.stream_log import StreamLog
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics


def build_graph(
    pipeline: Pipeline,
    bus: Bus,
    options: IntakeOptions,
    *,
    workers: int = 1,
    shards: int = 8,
    metrics: WorkerMetrics | None = None,
    guard: Guard | None = None,
    state: StateDirectory | None = None,
    outlet: Outlet | None = None,
    log: StreamLog | None = None,
) -> Dataflow:
    """The dataflow of ``pipeline`` on ``bus``, for ``workers`` workers and ``shards`` shards.

    ``guard`` watches the steps for errors that the user should see alone. With ``state`` what they
    remember is kept there. With ``outlet`` it gets the results, and nothing is published. ``log``
    is told what the stream tells.

    Raises:
        BusError: an input topic is missing, or partition counts differ.
    """
    metrics = metrics or WorkerMetrics(pipeline.name)
    router = Router(pipeline, shards, workers)
    partitions = partition_count(pipeline, bus)
    create_control(pipeline, bus, partitions)
    intake = Intake(pipeline, bus, options, router, metrics, state)

    def fill(token: Token | None) -> StatefulBatchLogic[Item, Item, Token | None]:
        return watched(lambda: WindowStep(pipeline, metrics, workers, state, token), guard)

    def model(token: Token | None) -> StatefulBatchLogic[Item, Results | Wake, Token | None]:
        return watched(lambda: ModelStep(pipeline, metrics, state, token, workers), guard)

    def both(tokens: Tokens | None) -> StatefulBatchLogic[Item, Results | Wake, Tokens]:
        of_windows, of_models = tokens or (None, None)

        def make() -> WindowsAndModels:
            windows = WindowStep(pipeline, metrics, 1, state, of_windows)
            return WindowsAndModels(windows, ModelStep(pipeline, metrics, state, of_models))

        return watched(make, guard)

    def name(step: str) -> str:
        return step if state is None else state.step_id(step)

    flow = Dataflow(pipeline.name.replace("-", "_"))
    rows = op.input("intake", flow, intake)
    if workers == 1:
        results = op.stateful_batch(name(TOGETHER), rows, both)
    else:
        filled = op.stateful_batch(name(BY_SHARD), rows, fill)
        gathered = op.flat_map_batch("to_models", filled, to_models)
        results = op.stateful_batch(name(MODELS_STEP), gathered, model)
    if outlet is not None:
        op.output("outlet", results, OutletSink(outlet, guard))
        return flow
    bus.create_topics(dict.fromkeys(pipeline.topics.outputs, partitions))
    outgoing = op.flat_map_batch(
        "encode", results, Encoder(pipeline, partitions, metrics.latency, log)
    )
    since = None if state is None else state.since()
    op.output("sink", outgoing, _sink(pipeline, bus, options, partitions, metrics, guard, since))
    return flow


def _sink(
    pipeline: Pipeline,
    bus: Bus,
    options: IntakeOptions,
    partitions: int,
    metrics: WorkerMetrics,
    guard: Guard | None,
    since: Mapping[TopicPartition, int] | None,
) -> BusSink:
    return BusSink(
        bus,
        partitions,
        metrics.on_written,
        marking=Marking.of(pipeline),
        since=since,
        patience=Patience(options.stop),
        accept_loss=options.lost == "earliest",
        guard=guard,
        latency=metrics.latency,
    )
