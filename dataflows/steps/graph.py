"""The dataflow of a pipeline; `build_graph` reads like its picture.

::

    events ──▶ source ──▶ windows ──▶ models ──▶ encode ──▶ sink ──▶ predictions, drift,
    labels ──▶ (decode,   (by shard)  (predict,                      rollouts,
    control ─▶  filter)                score, learn,                 dead letters
                                       roll out)

With a single worker, windows and models are one operator. With a callback, the results go there as
they are, instead of to ``encode`` and the topics.

Only four of the engine's operators carry it: `input`, `flat_map_batch`, `stateful_batch`, `output`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.operators import StatefulBatchLogic

from anabranch.dataflows.batch.batch import Bootstrap
from anabranch.dataflows.batch.output_records import Provenance
from anabranch.dataflows.batch.results import Results
from anabranch.dataflows.bus import Bus
from anabranch.dataflows.codec import codec_of
from anabranch.dataflows.declaration.input_topics import (
    create_control,
    create_or_grow,
    partition_count,
)
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.error_guard import ErrorGuard, guarded
from anabranch.dataflows.recovery.state_directory import StateDirectory
from anabranch.dataflows.recovery.tokens import (
    BY_SHARD,
    MODELS_STEP,
    SINK,
    SOURCE,
    TOGETHER,
    StepState,
    decode_token,
    decode_tokens,
)
from anabranch.dataflows.sharding.router import Item, Router, to_models
from anabranch.dataflows.sink.bus_sink import BusSink, SinkRecovery
from anabranch.dataflows.sink.callback_sink import CallbackSink, ResultsCallback
from anabranch.dataflows.sink.delivery_retry import DeliveryRetry
from anabranch.dataflows.sink.encoder import Encoder
from anabranch.dataflows.sink.output_topics import OutputTopics
from anabranch.dataflows.source.bus_source import BusSource, SourceOptions
from anabranch.dataflows.steps.model_step import ModelStep, WindowsAndModels
from anabranch.dataflows.steps.window_step import WindowStep
from anabranch.dataflows.telemetry.stream_log import StreamLog
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics

LOG = logging.getLogger("anabranch.sink")


@dataclass(slots=True)
class GraphOptions:
    """What a dataflow is built with, beside its pipeline and bus.

    Attributes:
        metrics: of this worker.
        workers, shards: how many there are.
        guard: keeps errors of the steps for the user; None: they reach the engine as they are.
        state: where the steps are stored; None: nowhere.
        callback: gets the results, and nothing is published; None: they are.
        log: logs drift, rollout decisions and dead letters.
    """

    metrics: WorkerMetrics
    workers: int = 1
    shards: int = 8
    guard: ErrorGuard | None = None
    state: StateDirectory | None = None
    callback: ResultsCallback | None = None
    log: StreamLog | None = None


def build_graph(
    pipeline: Pipeline, bus: Bus, source: SourceOptions, options: GraphOptions
) -> Dataflow:
    """The dataflow of ``pipeline`` on ``bus``.

    Raises:
        BusError: an input topic is missing.
    """
    metrics, state = options.metrics, options.state
    router = Router(pipeline, options.shards, options.workers)
    partitions = partition_count(pipeline, bus) if state is None else state.manifest.partitions
    create_control(pipeline, bus, partitions)
    flow = Dataflow(re.sub("[^a-zA-Z0-9_]", "_", pipeline.name))
    rows = op.input(
        SOURCE, flow, BusSource(pipeline, bus, source, router, metrics, partitions, state)
    )
    steps = _Steps(pipeline, options, min(options.workers, partitions))
    if options.workers == 1:
        results = op.stateful_batch(steps.step_id(TOGETHER), rows, steps.windows_and_models)
    else:
        filled = op.stateful_batch(steps.step_id(BY_SHARD), rows, steps.windows)
        gathered = op.flat_map_batch("to_models", filled, to_models)
        results = op.stateful_batch(steps.step_id(MODELS_STEP), gathered, steps.models)
    if options.callback is not None:
        op.output("callback", results, CallbackSink(options.callback, options.guard))
        return flow
    outputs = pipeline.topics.outputs
    create_or_grow(bus, outputs, partitions)
    prepare = getattr(codec_of(pipeline, pipeline.topics.predictions), "prepare_writing", None)
    if prepare is not None:
        retry = DeliveryRetry(source.stop, _log_registering, grace_s=0.0, of="the schema registry")
        retry.call(prepare)
    encoder = Encoder(
        pipeline,
        partitions,
        metrics.latency,
        options.log,
        {topic: bus.limits(topic).max_message_bytes for topic in outputs},
        metrics.on_dead_letters,
    )
    encode: Callable[..., Any] = encoder
    if options.guard is not None and options.workers > 1:
        encode = partial(options.guard.call, encoder)
    outgoing = op.flat_map_batch("encode", results, encode)
    op.output(SINK, outgoing, _sink(pipeline, bus, source, partitions, options))
    return flow


def _log_registering(seconds: float, why: str) -> None:
    LOG.warning("waiting for %.0f s to register the schema of predictions: %s", seconds, why)


class _Steps:
    """Builds the stateful steps, each from what the engine kept of it, if anything.

    ``readers`` is how many workers have partitions to read.
    """

    def __init__(self, pipeline: Pipeline, options: GraphOptions, readers: int) -> None:
        self._pipeline = pipeline
        self._options = options
        self._readers = readers

    def step_id(self, step: str) -> str:
        """The id of a step in the engine."""
        state = self._options.state
        return step if state is None else state.step_id(step)

    def windows(self, resume: StepState) -> StatefulBatchLogic[Item, Item, StepState]:
        pipeline, use, token = self._pipeline, self._options, decode_token(resume)
        return guarded(
            lambda: WindowStep(
                pipeline, use.metrics, use.workers, use.state, token, readers=self._readers
            ),
            use.guard,
        )

    def models(self, resume: StepState) -> StatefulBatchLogic[Item, Results | Bootstrap, StepState]:
        pipeline, use, token = self._pipeline, self._options, decode_token(resume)
        return guarded(
            lambda: ModelStep(pipeline, use.metrics, use.state, token, self._readers), use.guard
        )

    def windows_and_models(
        self, resume: StepState
    ) -> StatefulBatchLogic[Item, Results | Bootstrap, StepState]:
        pipeline, use = self._pipeline, self._options
        of_windows, of_models = decode_tokens(resume)

        def make() -> WindowsAndModels:
            windows = WindowStep(pipeline, use.metrics, 1, use.state, of_windows)
            return WindowsAndModels(windows, ModelStep(pipeline, use.metrics, use.state, of_models))

        return guarded(make, use.guard)


def _sink(
    pipeline: Pipeline, bus: Bus, source: SourceOptions, partitions: int, options: GraphOptions
) -> BusSink:
    recovery = None
    if options.state is not None:
        recovery = SinkRecovery(
            options.state.output_ends(),
            Provenance.of(pipeline),
            partial(codec_of, pipeline),
            accept_loss=source.on_out_of_range == "earliest",
            not_before=options.state.not_before(),
        )
    return BusSink(
        bus,
        partitions,
        topics=OutputTopics(bus, pipeline.topics.outputs),
        on_written=options.metrics.on_written,
        recovery=recovery,
        retry=DeliveryRetry(source.stop),
        guard=options.guard,
        latency=options.metrics.latency,
    )
