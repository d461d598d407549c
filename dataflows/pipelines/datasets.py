"""A pipeline for each of River's bundled data sets: numeric features, predict, then learn.

``anabranch publish --dataset Phishing`` and ``anabranch run dataset:Phishing`` give the
metrics that River's `progressive_val_score` gives with the same model on the same features.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec
from river import linear_model, naive_bayes, preprocessing

from anabranch.dataflows.declaration.features import field
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.inputs import Event, inline
from anabranch.producers.datasets import ID, TARGET, TIME, DatasetShape, dataset_shape


def dataset_pipeline(name: str) -> Pipeline:
    """The pipeline of the data set ``name``; its features are the numeric ones, in their order.

    Text and date features are left out. The model is `StandardScaler` before `LogisticRegression`,
    `LinearRegression` or, for more than two classes, `GaussianNB`; the metric is Accuracy or MAE.

    Raises:
        InputError: the data set is unknown, needs a download, or is of an unsupported type.

    >>> dataset_pipeline("Bananas").columns
    ['x1', 'x2']
    """
    shape = dataset_shape(name)
    return Pipeline(
        name=shape.pipeline,
        event=dataset_event(shape),
        label=inline(TARGET),
        features=[field(column) for column, _ in shape.fields.values()],
        model=_model(shape),
        metrics=("MAE",) if shape.task == "regression" else ("Accuracy",),
        id=ID,
        time=TIME,
    )


def dataset_event(shape: DatasetShape) -> type[Event]:
    """The event type of a data set: id, ts, the features, and the target."""
    fields: list[tuple[str, Any]] = [(ID, str), (TIME, int)]
    fields += list(shape.fields.values())
    fields.append((TARGET, shape.target))
    event = msgspec.defstruct(shape.name, fields, bases=(Event,), kw_only=True, module=__name__)
    return cast(type[Event], event)


def _model(shape: DatasetShape) -> Any:
    if shape.task == "multiclass":
        return preprocessing.StandardScaler() | naive_bayes.GaussianNB()  # type: ignore[no-untyped-call]
    if shape.task == "regression":
        return preprocessing.StandardScaler() | linear_model.LinearRegression()
    return preprocessing.StandardScaler() | linear_model.LogisticRegression()
