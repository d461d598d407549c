"""Compiles the kernels of a pipeline before its first event, so that no event waits for them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from river import linear_model, preprocessing

from anabranch.dataflows.bus import merge_times
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.inputs import Delayed
from anabranch.models.learners.compiled import learner_for
from anabranch.models.learners.learner import Task
from anabranch.models.prequential.batch import EventBatch, LabelBatch
from anabranch.models.prequential.model_set import PrequentialSettings
from anabranch.models.prequential.prequential import Prequential
from anabranch.models.rollout.deployment import Deployment
from anabranch.models.rollout.serving import Serving
from anabranch.state.labels.label_limits import LabelLimits
from anabranch.state.labels.recent_ids import RecentIds
from anabranch.state.windows import entity_state


def warm(pipeline: Pipeline) -> None:
    """Compile the kernels of ``pipeline``, or load them from the cache.

    The first time on a machine this takes about half a minute, afterwards half a second.
    """
    if pipeline.entities or pipeline.label_windows:
        entity_state.warm()
    RecentIds(1000).is_new(["0"], 0)
    merge_times.warm()
    if pipeline.task in (Task.BINARY, Task.REGRESSION):
        _warm_models(pipeline)


def _warm_models(pipeline: Pipeline) -> None:
    """Predict and learn one row of zeros, with a model of the kind that has kernels.

    Not with the pipeline's own: a model of the user's may have side effects.
    """
    binary = pipeline.task is Task.BINARY
    last = linear_model.LogisticRegression() if binary else linear_model.LinearRegression()
    model = preprocessing.StandardScaler() | last
    learner = learner_for(model, pipeline.columns, pipeline.task)
    delayed = isinstance(pipeline.label, Delayed)
    one = np.zeros(1, np.int64)
    learners, rollouts = {"warm": learner}, None
    if pipeline.rollout is not None:
        # It reports after its one label, so that the interval is computed as well.
        policy = replace(pipeline.rollout, report_every=1)
        deployment = Deployment("warm", ["other"], policy, pipeline.task, pipeline.name)
        rollouts = Serving(deployment, pipeline.task)
        learners["other"] = learner_for(model.clone(), pipeline.columns, pipeline.task)
    prequential = Prequential(
        learners,
        PrequentialSettings(
            metrics=pipeline.metric_names,
            rules=LabelLimits(timeout_ms=1000),
            inline=not delayed,
            slices=pipeline.slices,
            rollouts=rollouts,
        ),
    )
    prequential.run(
        EventBatch(
            features=np.zeros((1, len(pipeline.columns))),
            times=one,
            ids=["0"],
            fields={name: [None] for name in pipeline.model_fields},
            keys=["0"],
        ),
        LabelBatch(
            ids=["0"] if delayed else [], values=np.zeros(1), times=one if delayed else one[:0]
        ),
        order=np.arange(2 if delayed else 1),
    )
