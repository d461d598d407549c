"""The outputs of a pipeline as tables: which columns each has, and the rows of messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from anabranch.dataflows.bus import Slice
from anabranch.dataflows.codec import Codec, codec_of
from anabranch.dataflows.declaration.declaration import Declaration
from anabranch.dataflows.messages.outputs import (
    DeadLetter,
    DriftSignal,
    Prediction,
    Ranking,
    RolloutMessage,
)
from anabranch.models.learners.learner import Task
from anabranch.state.errors import InputError

Kind = Literal["text", "integer", "double", "boolean", "time", "json"]
"""The type of a column; a time is epoch ms, JSON is text."""

FEATURE = "feature_"
"""What the names of columns with features begin with."""

OUTPUTS = ("predictions", "drift", "dead-letters", "rollouts")

_COORDINATES: dict[str, Kind] = {
    "source_topic": "text",
    "source_partition": "integer",
    "source_offset": "integer",
}
_MESSAGE: dict[str, Kind] = {
    "message_key": "text",
    "published_at": "time",
    "output_partition": "integer",
    "output_offset": "integer",
}
_PREDICTION: dict[Task, Kind] = {
    Task.BINARY: "boolean",
    Task.REGRESSION: "double",
    Task.ANOMALY: "double",
    Task.MULTICLASS: "text",
}
# Of the fields that are columns as they are.
_FIELDS: dict[type[msgspec.Struct], dict[str, Kind]] = {
    Prediction: {
        "model": "text",
        "version": "integer",
        "prediction": "text",
        "score": "double",
        "probabilities": "json",
        "instead_of": "text",
    },
    Ranking: {"model": "text", "version": "integer", "ranking": "json"},
    DriftSignal: {
        "pipeline": "text",
        "subject": "text",
        "detector": "text",
        "kind": "text",
        "severity": "text",
        "statistic": "json",
        "began": "time",
        "reference": "text",
        "top": "json",
    },
    DeadLetter: {
        "reason": "text",
        "detail": "text",
        "payload": "text",
        "payload_base64": "text",
        "truncated_from": "integer",
        "key": "text",
        "key_base64": "text",
        "given_up": "json",
    },
    RolloutMessage: {
        "pipeline": "text",
        "action": "text",
        "rollout": "text",
        "challenger": "text",
        "champion": "text",
        "share": "double",
        "reason": "text",
        "policy": "text",
        "evidence": "json",
        "guardrails": "json",
        "request_id": "text",
        "requested_by": "text",
    },
}
_TYPES: dict[str, type[msgspec.Struct]] = {
    "drift": DriftSignal,
    "dead-letters": DeadLetter,
    "rollouts": RolloutMessage,
}
_LEAST_MS, _MOST_MS = -62_135_596_800_000, 253_402_300_799_999  # of the years 1 to 9999

# A feature that has no value is null; the type that is read in Python says nothing of it.
_Prediction = msgspec.defstruct(
    "Prediction",
    [("features", dict[str, float | None] | None, None)],
    bases=(Prediction,),
    kw_only=True,
    omit_defaults=True,
)


class Column(NamedTuple):
    """The values of a column, one per row; None where there is none."""

    kind: Kind
    values: list[Any]


class TableRows(NamedTuple):
    """Rows of one output, in the order of their offsets within a partition."""

    table: OutputTable
    columns: dict[str, Column]
    size: int


class Rejected(NamedTuple):
    """A message of an output topic that is none of the pipeline's."""

    topic: str
    partition: int
    offset: int
    why: str


class OutputTable:
    """One output of a pipeline.

    Attributes:
        output: one of `OUTPUTS`.
        topic: where it is published.
        columns: those that every row has, and those of declared features; a message may have
            features of an earlier declaration besides.
        identity: the column that names what a row is of, for targets that keep the newest.
    """

    def __init__(self, pipeline: Declaration, output: str) -> None:
        self.output = output
        self.topic = pipeline.topics.of_role(output.replace("-", "_"))
        ranks = pipeline.candidates is not None
        first = Ranking if ranks else Prediction
        self._type = first if output == "predictions" else _TYPES[output]
        fields = dict(_FIELDS[self._type])
        if self._type is Prediction:
            fields["prediction"] = _PREDICTION[pipeline.task]
        self._fields = fields
        self._has_time = self._type is not DeadLetter
        time: dict[str, Kind] = {"event_time": "time"} if self._has_time else {}
        features: dict[str, Kind] = {}
        if self._type is Prediction and pipeline.with_features:
            features = {f"{FEATURE}{name}": "double" for name in pipeline.columns}
        self.columns: dict[str, Kind] = {
            "id": "text", **time, **fields, **_COORDINATES, **_MESSAGE, **features,
        }  # fmt: skip
        self.identity = {
            "predictions": "message_key",
            "drift": "subject",
            "rollouts": "rollout",
        }.get(output)
        self._codec: Codec = codec_of(pipeline, self.topic)
        self._decode: Callable[[bytes], Any] = self._codec.decoder(
            _Prediction if self._type is Prediction else self._type
        )

    @property
    def time(self) -> str:
        """The column by which rows are ordered and filed by hour."""
        return "event_time" if self._has_time else "published_at"

    def rows(
        self, slices: Sequence[Slice], topic_id: str, reject: Callable[[Rejected], None]
    ) -> TableRows:
        """The rows of messages; ``reject`` is told of those that can't be decoded."""
        messages: list[Any] = []
        keys: list[bytes | None] = []
        times: list[int] = []
        partitions: list[int] = []
        offsets: list[int] = []
        for piece in slices:
            every = zip(
                piece.values, piece.keys, piece.times.tolist(), piece.offsets.tolist(), strict=True
            )
            for value, key, time, offset in every:
                try:
                    messages.append(self._decode(value))
                except self._codec.errors as error:
                    reject(Rejected(self.topic, piece.partition, offset, str(error)))
                    continue
                keys.append(key)
                times.append(time)
                partitions.append(piece.partition)
                offsets.append(offset)
        columns = self._columns(messages)
        columns["message_key"] = Column("text", [_text_of(key) for key in keys])
        columns["published_at"] = Column("time", times)
        columns["output_partition"] = Column("integer", partitions)
        columns["output_offset"] = Column("integer", offsets)
        if "id" not in columns:
            about = topic_id or self.topic
            ids = [f"{about}/{p}/{o}" for p, o in zip(partitions, offsets, strict=True)]
            columns["id"] = Column("text", ids)
        ordered = {name: columns.pop(name) for name in self.columns if name in columns}
        return TableRows(self, {**ordered, **columns}, len(messages))

    def _columns(self, messages: list[Any]) -> dict[str, Column]:
        columns: dict[str, Column] = {}
        if self._type in (Prediction, Ranking):
            columns["id"] = Column("text", [each.id for each in messages])
        if self._has_time:
            columns["event_time"] = Column("time", [_time_of(each.ts) for each in messages])
        for name, kind in self._fields.items():
            convert = _CONVERT[kind]
            values = [convert(getattr(each, name)) for each in messages]
            columns[name] = Column(kind, values)
        columns["source_topic"] = Column("text", [each.topic for each in messages])
        columns["source_partition"] = Column("integer", [each.partition for each in messages])
        columns["source_offset"] = Column("integer", [each.offset for each in messages])
        if self._type is Prediction:
            self._add_features(columns, messages)
        return columns

    def _add_features(self, columns: dict[str, Column], messages: list[Any]) -> None:
        features: list[Mapping[str, Any]] = [each.features or {} for each in messages]
        names = dict.fromkeys(name for name in self.columns if name.startswith(FEATURE))
        for row in features:
            names.update(dict.fromkeys(FEATURE + name for name in row))
        for name in names:
            of_row = name.removeprefix(FEATURE)
            columns[name] = Column("double", [row.get(of_row) for row in features])


def output_tables(pipeline: Declaration, outputs: Sequence[str]) -> list[OutputTable]:
    """The tables of the outputs that a user names, such as ``dead_letters`` or ``drift``.

    Raises:
        InputError: one is no output of the pipeline.
    """
    tables = []
    for name in dict.fromkeys(each.strip().replace("_", "-") for each in outputs if each.strip()):
        if name not in OUTPUTS:
            raise InputError(
                f"{name!r} is no output of a pipeline: name some of {', '.join(OUTPUTS)}, "
                "separated by commas"
            )
        if name == "rollouts" and not pipeline.has_rollouts:
            raise InputError(f"pipeline {pipeline.name!r} has no rollouts to export")
        tables.append(OutputTable(pipeline, name))
    if not tables:
        raise InputError(f"name at least one output with --topics: {', '.join(OUTPUTS)}")
    return tables


def _text_of(key: bytes | None) -> str | None:
    return None if key is None else key.decode(errors="backslashreplace")


def _present(value: Any) -> Any:
    return None if value is msgspec.UNSET else value


def _text(value: Any) -> str | None:
    if value is None or value is msgspec.UNSET or type(value) is str:
        return _present(value)  # type: ignore[no-any-return]
    return msgspec.json.encode(value).decode()  # a class that is a number or a boolean


def _json(value: Any) -> str | None:
    if value is None or value is msgspec.UNSET:
        return None
    return msgspec.json.encode(value).decode()


def _double(value: Any) -> float | None:
    return None if value is None or value is msgspec.UNSET else float(value)


def _boolean(value: Any) -> bool | None:
    return None if value is None or value is msgspec.UNSET else bool(value)


def _time_of(value: Any) -> int | None:
    """Epoch ms; None where it is outside the years that tables can hold."""
    value = _present(value)
    return value if value is not None and _LEAST_MS <= value <= _MOST_MS else None


_CONVERT: dict[Kind, Callable[[Any], Any]] = {
    "text": _text,
    "integer": _present,
    "double": _double,
    "boolean": _boolean,
    "time": _time_of,
    "json": _json,
}
