"""River's bundled data sets as messages, and the schema of those messages.

A data set is supported if it is bundled with River (nothing is downloaded), has one target and at
least one feature that is a number or a boolean. Text and date features are left out. A name that is
not an identifier is prefixed with ``x``, and ``_`` replaces characters that cannot be in one.

==============  ==========================  ======
data set        task                          rows
==============  ==========================  ======
Bananas         binary classification        5,300
ChickWeights    regression                     578
ImageSegments   multi-class classification   2,310
Phishing        binary classification        1,250
SP500Stocks     regression                   1,257
Shuttle         binary classification       49,097
TrumpApproval   regression                   1,001
==============  ==========================  ======
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Any, Literal

import msgspec
from river import datasets

from anabranch.producers.arrival_process import DAY_MS, MONDAY_MS
from anabranch.producers.batch import Batch
from anabranch.state.errors import InputError

DATASETS = (
    "Bananas",
    "ChickWeights",
    "ImageSegments",
    "Phishing",
    "SP500Stocks",
    "Shuttle",
    "TrumpApproval",
)
"""The names of the supported data sets."""

DatasetTask = Literal["binary", "multiclass", "regression"]

ID, TIME, TARGET = "id", "ts", "target"
"""The fields that every message has besides the features."""

_UNIX_EPOCH = date(1970, 1, 1).toordinal()
_ORDINAL_DATES = {"TrumpApproval": "ordinal_date"}  # the feature that holds the day as a number
_TASKS: dict[str, tuple[DatasetTask, type]] = {
    "Binary classification": ("binary", bool),
    "Multi-class classification": ("multiclass", str),
    "Regression": ("regression", float),
}


@dataclass(frozen=True, slots=True)
class DatasetShape:
    """The schema of a data set's messages.

    Attributes:
        name, task, rows: the data set.
        fields: River's feature name → the message's field and its type (bool, int or float), in the
            data set's order.
        target: the type of the target (bool, str or float).
        left_out: the features that are neither number nor boolean.
    """

    name: str
    task: DatasetTask
    rows: int
    fields: dict[str, tuple[str, type]]
    target: type
    left_out: tuple[str, ...]

    @property
    def pipeline(self) -> str:
        """The name of its pipeline, the prefix of its topics."""
        return self.name.lower()


@lru_cache
def dataset_shape(name: str) -> DatasetShape:
    """The schema of the data set ``name`` (case-insensitive).

    Raises:
        InputError: it is unknown, needs a download, or is not supported.
    """
    name = _find(name)
    kinds: dict[str, set[type]] = {}
    rows = 0
    source = getattr(datasets, name)()
    for features, _ in source:
        rows += 1
        for feature, value in features.items():
            kinds.setdefault(feature, set()).add(type(value))
    fields = {
        feature: (_identifier(feature), _widest(types))
        for feature, types in kinds.items()
        if types <= {bool, int, float}
    }
    task, target = _TASKS[source.task]
    left_out = tuple(feature for feature in kinds if feature not in fields)
    return DatasetShape(name, task, rows, fields, target, left_out)


def dataset_messages(name: str, *, batch_size: int = 1000) -> Iterator[Batch]:
    """The rows of the data set ``name`` as events, in its order, all with one key.

    ``id`` is the row's number from 0 as text. ``ts`` is the day of the row if the data set has
    one; otherwise rows are a second apart from 2025-01-06T00:00:00Z.

    Raises:
        InputError: as `dataset_shape`.
    """
    return _messages(dataset_shape(name), batch_size)


def _messages(shape: DatasetShape, batch_size: int) -> Iterator[Batch]:
    key = shape.pipeline.encode()
    encode = msgspec.json.Encoder().encode
    values: list[bytes] = []
    times: list[int] = []
    for row, (features, target) in enumerate(getattr(datasets, shape.name)()):
        time_ms = _time_ms(shape.name, row, features)
        message: dict[str, Any] = {ID: str(row), TIME: time_ms}
        message.update((field, features[name]) for name, (field, _) in shape.fields.items())
        message[TARGET] = shape.target(target)
        values.append(encode(message))
        times.append(time_ms)
        if len(values) == batch_size:
            yield Batch.of("events", values, [key] * len(values), times)
            values, times = [], []
    if values:
        yield Batch.of("events", values, [key] * len(values), times)


def _time_ms(name: str, row: int, features: dict[str, Any]) -> int:
    if name in _ORDINAL_DATES:
        return (int(features[_ORDINAL_DATES[name]]) - _UNIX_EPOCH) * DAY_MS
    return MONDAY_MS + 1000 * row


def _find(name: str) -> str:
    for each in DATASETS:
        if each.lower() == name.lower():
            return each
    choices = f"choose one of {', '.join(DATASETS)}"
    for each in datasets.__all__:
        if each.lower() == name.lower() and isinstance(getattr(datasets, each), type):
            if issubclass(getattr(datasets, each), datasets.base.RemoteDataset):
                raise InputError(f"data set {each!r} would have to be downloaded: {choices}")
            raise InputError(
                f"data set {each!r} has no single target with a numeric feature: {choices}"
            )
    raise InputError(f"River has no data set {name!r}: {choices}")


def _identifier(feature: str) -> str:
    name = re.sub(r"\W", "_", feature)
    return name if name.isidentifier() and name not in (ID, TIME, TARGET) else f"x{name}"


def _widest(kinds: set[type]) -> type:
    for kind in (float, int):
        if kind in kinds:
            return kind
    return bool
