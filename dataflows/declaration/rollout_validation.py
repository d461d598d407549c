"""The checks of a pipeline's challengers, rollout policy and fallback."""

from __future__ import annotations

import math
from collections.abc import Mapping

from river import base

from anabranch.dataflows.declaration.declaration import Declaration
from anabranch.dataflows.declaration.model_trial import check_by_trial
from anabranch.models.drift.detectors import LOSS
from anabranch.models.learners.learner import Task
from anabranch.models.learners.river import check_task
from anabranch.models.registry.version import check_name
from anabranch.models.rollout.challenger import TRIGGERS, Challenger
from anabranch.models.rollout.policies import PolicyContext, check_policy
from anabranch.state.errors import DeclarationError, InputError


def check_rollout(pipeline: Declaration) -> None:
    """Check that challengers, policy, rollout key and fallback fit the pipeline.

    Raises:
        DeclarationError: one of them does not; one sentence names it.
    """
    where = f"pipeline {pipeline.name!r}"
    if not isinstance(pipeline.challengers, Mapping):
        raise DeclarationError(
            f"challengers of {where} must be models by name, such as {{'tree': …}}, not "
            f"{type(pipeline.challengers).__name__}"
        )
    if pipeline.fallback is not None:
        _check_fallback(pipeline, where)
    if pipeline.rollout is None:
        if pipeline.rollout_key is not None:
            raise DeclarationError(
                f"rollout_key= of {where} is for rollouts: give challengers= or rollout= as well"
            )
        return
    if pipeline.label is None:
        raise DeclarationError(
            f"{where} has no label, and models are compared by their losses on labels: give "
            "label=, or leave out challengers= and rollout="
        )
    for name, model in pipeline.challengers.items():
        _check_name(pipeline, name, where)
        _check_challenger(pipeline, model, f"challenger {name!r} of {where}")
    if pipeline.on_drift is not None:
        _check_on_drift(pipeline, f"on_drift= of {where}")
    ranking = pipeline.candidates is not None
    context = PolicyContext(pipeline.task, len(pipeline.challengers), ranking, where)
    check_policy(pipeline.rollout, context)
    pipeline.schema.require_key(pipeline.traffic_field, f"{where} (rollout_key=)")


def _check_on_drift(pipeline: Declaration, where: str) -> None:
    if not isinstance(pipeline.on_drift, Challenger):
        raise DeclarationError(
            f"{where} is {pipeline.on_drift!r}: give Challenger(model=…, warmup_rows=…), with a "
            "River model as model="
        )
    _check_challenger(pipeline, pipeline.on_drift, where)
    monitored = {
        LOSS if monitor.subject == LOSS else "feature"
        for monitor in pipeline.monitors
        if monitor.by is None
    }
    if pipeline.distributions is not None:
        monitored |= {*TRIGGERS} - {LOSS}
    for kind in pipeline.on_drift.triggers:
        if kind not in monitored:
            what = "monitors=[monitor('loss')]" if kind == LOSS else "distributions=Distributions()"
            raise DeclarationError(
                f"{where} is for drift of kind {kind!r}, which is not monitored: give {what} "
                "as well"
            )


def _check_name(pipeline: Declaration, name: object, where: str) -> None:
    try:
        if not isinstance(name, str):
            raise InputError(f"model name {name!r} is not a text")
        check_name(name)
    except InputError as error:
        raise DeclarationError(f"a challenger of {where} can't have this name: {error}") from None
    if name == pipeline.model_name:
        raise DeclarationError(
            f"challenger {name!r} of {where} has the name of the champion: give it another name"
        )


def _check_challenger(pipeline: Declaration, model: object, where: str) -> None:
    if isinstance(model, Challenger):
        problem = model.problem()
        if problem is not None:
            raise DeclarationError(f"{where}: {problem}")
        model = model.model
    if not isinstance(model, base.Estimator):
        raise DeclarationError(
            f"{where} is {model!r}, which is not a River model: give an instance, such "
            "as tree.HoeffdingTreeClassifier()"
        )
    try:
        check_task(model, pipeline.task)
    except DeclarationError as error:
        raise DeclarationError(f"{where}: {error}") from None
    check_by_trial(pipeline, model, where)


def _check_fallback(pipeline: Declaration, where: str) -> None:
    given, task = pipeline.fallback, pipeline.task
    if task is Task.MULTICLASS:
        kind, types = pipeline.target_kind, _TYPES.get(pipeline.target_kind or "", ())
        fits = isinstance(given, types) and (kind == "boolean" or not isinstance(given, bool))
        wanted = f"a class, as its label ({kind})"
    elif task is Task.BINARY:
        fits = isinstance(given, int | float) and 0 <= given <= 1
        wanted = "the probability of true, in [0, 1]"
    else:
        fits = isinstance(given, int | float) and not isinstance(given, bool)
        fits = fits and math.isfinite(float(given or 0))
        wanted = "a number"
    if not fits:
        raise DeclarationError(f"fallback={given!r} of {where} must be {wanted}")


_TYPES: dict[str, tuple[type, ...]] = {
    "boolean": (bool,),
    "number": (int, float),
    "text": (str,),
}
