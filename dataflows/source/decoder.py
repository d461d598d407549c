"""Decodes messages into batches: each message on its own, so that a bad one affects no other."""

from __future__ import annotations

import time
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Union, get_args, get_origin

import msgspec
import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.batch.batch import (
    NO_LABELS,
    NO_ROWS,
    NO_SPAN,
    Batch,
    LabelRows,
    RawBatch,
    RawRows,
    keep_rows,
)
from anabranch.dataflows.batch.columns import ColumnReader, column_reader
from anabranch.dataflows.batch.dead_letters import Fault, dead_letter
from anabranch.dataflows.batch.row_ids import row_id
from anabranch.dataflows.batch.typed_rows import TypedRows
from anabranch.dataflows.codec import Codec, codec_of
from anabranch.dataflows.codec.protocol import Columns, DecodedColumns
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.control import Control, control_error
from anabranch.dataflows.messages.dead_letter_reasons import DeadLetterReason
from anabranch.dataflows.messages.event_time import FIRST_MS, LAST_MS, parse_times_ms
from anabranch.dataflows.messages.inputs import Delayed, Inline, field_types
from anabranch.dataflows.messages.outputs import DeadLetter
from anabranch.dataflows.messages.time_unit_check import TimeUnitCheck
from anabranch.models.learners.error_place import describe_error
from anabranch.state.arrays import LARGEST, extent, extents
from anabranch.state.durations import format_duration_ms, parse_duration_ms

I64 = NDArray[np.int64]

_PLAIN = (int, float, str, bool, type(None))


class StructDecoder:
    """Decodes messages of one type into structs; the time field also takes floats and ISO-8601.

    Attributes:
        integer_time: the message type with an integer in its time field, as nearly all have.
        decode_integer_time: decodes one message into that type; raises one of `errors`.
        errors: what decoding may raise: `Codec.errors`; or anything that the type's own
            ``__post_init__`` raises.
    """

    def __init__(self, codec: Codec, message: type[msgspec.Struct], time_field: str) -> None:
        self.codec = codec
        has_own_code = hasattr(message, "__post_init__")
        self.errors: tuple[type[Exception], ...] = (Exception,) if has_own_code else codec.errors
        self._decode = codec.decoder(_with_time_type(message, time_field, int | float | str))
        self.integer_time = _with_time_type(message, time_field, int)
        self.decode_integer_time = codec.decoder(self.integer_time)

    def decode(self, values: Sequence[bytes]) -> tuple[list[Any], dict[int, Fault]]:
        """One struct per message, None where it is bad, and the fault of each bad row."""
        try:
            return list(map(self._decode, values)), {}
        except self.errors:
            return self._decode_each(values)

    def _decode_each(self, values: Sequence[bytes]) -> tuple[list[Any], dict[int, Fault]]:
        structs: list[Any] = []
        faults: dict[int, Fault] = {}
        decode, errors = self._decode, self.errors
        for row, value in enumerate(values):
            try:
                structs.append(decode(value))
            except errors as error:
                structs.append(None)
                faults[row] = self._fault(error)
        return structs, faults

    def _fault(self, error: Exception) -> Fault:
        """Why a message could not be decoded; of an error in the user's code, where it was raised.

        msgspec makes a `ValidationError` of a ValueError and a TypeError, with that as its cause.
        """
        raised = error.__cause__ if isinstance(error.__cause__, Exception) else error
        if raised is error and isinstance(error, self.codec.errors):
            return self.codec.fault(error)
        return DeadLetterReason.TYPE_MISMATCH, describe_error(raised)


@dataclass(slots=True)
class _Decoded:
    rows: RawRows
    structs: list[Any]
    times: I64
    span: tuple[int, int]
    kept: I64 | None  # indices of `rows` among those read; None: all of them
    dead_letters: list[DeadLetter]


_NO_LABELS_DECODED = _Decoded(NO_ROWS, [], NO_ROWS.times, NO_SPAN, None, [])


class BatchDecoder:
    """Makes a typed `Batch` with row features of a `RawBatch`; undecodable rows are dead letters.

    ``now`` gives the wall clock in seconds: an event whose time is ahead of its publishing time, or
    of the clock, by more than the pipeline's ``max_clock_skew`` is a dead letter. ``on_time_unit``
    is called once per topic whose times seem to be in another unit, with that unit.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        now: Callable[[], float] = time.time,
        on_time_unit: Callable[[str, str], None] = lambda topic, unit: None,
    ) -> None:
        self._now = now
        self._max_skew_ms = parse_duration_ms(pipeline.max_clock_skew)
        topics, label = pipeline.topics, pipeline.label
        scale = pipeline.time_scale
        self._units = {
            topic: TimeUnitCheck(topic, scale, partial(on_time_unit, topic))
            for topic in (*topics.all_events, *topics.all_labels)
        }
        self._event_unit = self._units[topics.events]
        codec = codec_of(pipeline, topics.events)
        self._events = StructDecoder(codec, pipeline.event, pipeline.time)
        self._control_codec = codec_of(pipeline, topics.control)
        self._decode_control = self._control_codec.decoder(Control)
        self._id = pipeline.id
        self._read_time = column_reader([pipeline.time])
        self._target = label.field if isinstance(label, Inline) else None
        self._names = [
            pipeline.id,
            *([self._target] if self._target else []),
            *pipeline.read_fields,
        ]
        self._read = column_reader(self._names)
        self._read_with_time = column_reader([pipeline.time, *self._names])
        self._columns = codec.column_decoder(self._events.integer_time, pipeline.time, self._names)
        self._set_up_labels(pipeline)
        self._time_scale, self._zone = pipeline.time_scale, pipeline.zone
        self._local_time = pipeline.local_time
        self._ranks = pipeline.candidates is not None  # then row features come with the candidates
        self._row_features = [] if self._ranks else list(pipeline.row_features)
        self._width = len(pipeline.columns)
        self._number_fields = list(pipeline.number_fields)
        self._read_numbers = column_reader(self._number_fields)

    def _set_up_labels(self, pipeline: Pipeline) -> None:
        label = pipeline.label if isinstance(pipeline.label, Delayed) else None
        self._label = label
        self._labels: StructDecoder | None = None
        self._target_is_number = pipeline.target_kind == "number"
        if label is not None:
            codec = codec_of(pipeline, pipeline.topics.labels)
            self._labels = StructDecoder(codec, label.type, label.time)
            self._read_label_time = column_reader([label.time])
            self._read_label = column_reader([label.id, label.field])

    def decode(self, raw: RawBatch) -> Batch:
        """Decode all messages of a batch; those that are bad end up in its ``dead_letters``."""
        labels = self._decode_labels(raw.labels)
        if type(raw.events.values) is TypedRows:  # isinstance is slow
            typed = self._decode_typed_rows(raw, raw.events.values, labels)
            if typed is not None:
                return typed
        decoded = self._decode_columns(raw.events)
        if decoded is not None and labels.kept is None:
            rows = raw.events
            return self._batch(raw, rows, *decoded, self._label_rows(labels), raw.order, [])
        events = self._decode_events(raw.events)
        order = _order(raw, events, labels)
        columns = dict(zip(self._names, self._read(events.structs), strict=True))
        return self._batch(
            raw, events.rows, events.times, events.span, columns, self._label_rows(labels), order,
            events.dead_letters + labels.dead_letters,
        )  # fmt: skip

    def _decode_columns(self, rows: RawRows) -> tuple[I64, tuple[int, int], dict[str, Any]] | None:
        """Times, their span and columns of events that are all valid, with times in epoch ms.

        None if any is not: then each message has to be decoded on its own.
        """
        if not rows.values or self._time_scale != 1.0:
            return None
        decoded = None
        if self._columns is not None and type(rows.values) is list:
            decoded = self._columns.read(rows.values, rows.times)
        if decoded is None:
            decoded = self._decode_structs(rows)
        if decoded is None:
            return None
        times, columns, (earliest, latest, published) = decoded
        newest = min(published, int(self._now() * 1000)) + self._max_skew_ms
        if earliest < FIRST_MS or latest > newest or latest > LAST_MS:
            return None
        return times, (earliest, latest), columns

    def _decode_structs(self, rows: RawRows) -> DecodedColumns | None:
        """As `ColumnDecoder.read`, through structs; None unless every message is valid."""
        try:
            structs = list(map(self._events.decode_integer_time, rows.values))
            stamps, *fields = self._read_with_time(structs)
            times = np.array(stamps, np.int64)
        except self._events.errors:
            return None
        except OverflowError:  # a time beyond int64
            return None
        if self._number_fields and self._check_numbers(structs):
            return None
        columns: Columns = dict(zip(self._names, fields, strict=True))
        return times, columns, extents(times, rows.times)

    def _decode_typed_rows(
        self, raw: RawBatch, values: TypedRows, labels: _Decoded
    ) -> Batch | None:
        """Events whose fields are typed already; those that may be invalid are decoded.

        None if a field is missing or such an event turns out to be valid: then all are decoded.
        """
        if not len(values) or not all(name in values.columns for name in self._names):
            return None
        rows, times, dead_letters = raw.events, values.times, []
        latest = np.minimum(rows.times, int(self._now() * 1000)) + self._max_skew_ms
        valid, order = values.valid & (times <= latest), raw.order
        if not valid.all() or labels.kept is not None:
            doubtful, kept = np.flatnonzero(~valid), np.flatnonzero(valid)
            decoded = self._decode_events(rows.take(doubtful))
            if len(decoded.rows):
                return None
            order = _order(raw, decoded, labels, kept)
            rows, times = rows.take(kept), times[kept]
            dead_letters = decoded.dead_letters + labels.dead_letters
        typed = rows.values
        assert isinstance(typed, TypedRows)
        columns = {name: typed.columns[name] for name in self._names}
        span = extent(times) if len(times) else NO_SPAN
        return self._batch(
            raw, rows, times, span, columns, self._label_rows(labels), order, dead_letters
        )

    def _decode_events(self, rows: RawRows) -> _Decoded:
        return self._decode_rows(self._events, rows, self._read_time, self._check_numbers)

    def _batch(
        self,
        raw: RawBatch,
        rows: RawRows,
        times: I64,
        span: tuple[int, int],
        columns: dict[str, Any],
        labels: LabelRows,
        order: I64,
        dead_letters: list[DeadLetter],
    ) -> Batch:
        features = np.zeros((len(times), self._width))
        clock = times if self._local_time is None else self._local_time.wall_ms(times)
        for feature, place in self._row_features:
            feature.fill(features[:, place], clock, columns)
        targets = columns[self._target] if self._target else None
        ids = columns[self._id]
        if len(times):
            self._event_unit.add(*span)
        control = self._read_control(raw.controls, dead_letters) if raw.controls.values else None
        return Batch(
            raw, rows, ids, times, span, features, columns, targets, labels, order, dead_letters,
            control=control,
        )  # fmt: skip

    def _decode_rows(
        self,
        decoder: StructDecoder,
        rows: RawRows,
        read_time: ColumnReader,
        check: Callable[[list[Any]], dict[int, Fault]],
    ) -> _Decoded:
        """The valid rows; invalid ones become dead letters, one kind of fault after the other."""
        scale = self._time_scale
        structs, faults = decoder.decode(rows.values)
        dead_letters: list[DeadLetter] = []
        kept: I64 | None = None
        if faults:
            rows, structs, kept = _drop(rows, structs, kept, faults, dead_letters)
        times, invalid = parse_times_ms(read_time(structs)[0], scale, self._zone)
        unit = self._units.get(rows.topic, self._event_unit)
        if invalid:
            unit.add_refused(invalid.values())
            faults = {row: (DeadLetterReason.INVALID_TIME, why) for row, why in invalid.items()}
            rows, structs, kept = _drop(rows, structs, kept, faults, dead_letters)
            times, _ = parse_times_ms(read_time(structs)[0], scale, self._zone)
        span = extent(times) if structs else NO_SPAN
        faults = check(structs) | self._check_skew(rows, times, span[1])
        if faults:
            rows, structs, kept = _drop(rows, structs, kept, faults, dead_letters)
            times, _ = parse_times_ms(read_time(structs)[0], scale, self._zone)
            span = extent(times) if structs else NO_SPAN
        if structs:
            unit.add(*span)
        return _Decoded(rows, structs, times, span, kept, dead_letters)

    def _decode_labels(self, rows: RawRows) -> _Decoded:
        if self._labels is None or not rows.values:
            return _NO_LABELS_DECODED
        return self._decode_rows(self._labels, rows, self._read_label_time, self._check_label)

    def _check_skew(self, rows: RawRows, times: I64, newest: int) -> dict[int, Fault]:
        """Rows whose time is ahead of publishing, or of the clock, by more than is allowed."""
        now_ms = int(self._now() * 1000)
        if not len(times) or newest - self._max_skew_ms <= min(extent(rows.times)[0], now_ms):
            return {}
        faults = {}
        latest = np.minimum(rows.times, now_ms) + self._max_skew_ms
        for row in np.flatnonzero(times > latest).tolist():
            ahead = format_duration_ms(int(times[row] - latest[row]) + self._max_skew_ms)
            detail = f"event time {times[row]} is {ahead} ahead of its arrival"
            faults[row] = (DeadLetterReason.TIME_AHEAD, detail)
        return faults

    def _check_numbers(self, structs: list[Any]) -> dict[int, Fault]:
        faults: dict[int, Fault] = {}
        for name, values in zip(self._number_fields, self._read_numbers(structs), strict=True):
            faults |= _too_large(name, values)
        return faults

    def _check_label(self, structs: list[Any]) -> dict[int, Fault]:
        assert self._label is not None
        if not self._target_is_number:
            return {}
        return _too_large(self._label.field, self._read_label(structs)[1])

    def _label_rows(self, decoded: _Decoded) -> LabelRows:
        label, structs, rows = self._label, decoded.structs, decoded.rows
        if label is None or not structs:
            return NO_LABELS
        ids, values = self._read_label(structs)
        if self._ranks:
            ids, values = list(map(row_id, ids, values)), [True] * len(ids)
        return LabelRows(
            ids=ids,
            values=values,
            times=decoded.times,
            partitions=rows.partitions,
            offsets=rows.offsets,
            payloads=rows.values,
            read=rows,
        )

    def _read_control(self, controls: RawRows, dead_letters: list[DeadLetter]) -> Control | None:
        """The control message at the end of a batch; None if it is a dead letter."""
        try:
            return self._decode_control(controls.values[0])
        except self._control_codec.errors as error:
            reason = DeadLetterReason.NOT_A_CONTROL_MESSAGE
            dead_letters.append(dead_letter(controls, 0, reason, control_error(str(error))))
            return None


def _with_time_type(
    message: type[msgspec.Struct], time_field: str, time_type: Any
) -> type[msgspec.Struct]:
    """The message type with another type of its time field."""
    return msgspec.defstruct(
        message.__name__,
        [(time_field, time_type)],
        bases=(message,),
        kw_only=True,
        gc=not _is_all_plain(message),  # plain fields hold nothing to collect
    )


def _drop(
    rows: RawRows,
    structs: list[Any],
    kept: I64 | None,
    faults: dict[int, Fault],
    dead_letters: list[DeadLetter],
) -> tuple[RawRows, list[Any], I64]:
    """The rows without faults, their structs, and their indices among the rows read."""
    dead_letters.extend(dead_letter(rows, row, *faults[row]) for row in sorted(faults))
    valid = np.array([row for row in range(len(rows)) if row not in faults], np.int64)
    kept = valid if kept is None else kept[valid]
    return rows.take(valid), [structs[row] for row in valid.tolist()], kept


def _order(raw: RawBatch, events: _Decoded, labels: _Decoded, kept: I64 | None = None) -> I64:
    """The order of what is left; ``kept`` are events that were used without being decoded."""
    kept = events.kept if kept is None else kept
    return keep_rows(raw.order, _mask(kept, len(raw.events)), _mask(labels.kept, len(raw.labels)))


def _mask(kept: I64 | None, count: int) -> NDArray[np.bool_]:
    if kept is None:
        return np.ones(count, np.bool_)
    mask = np.zeros(count, np.bool_)
    mask[kept] = True
    return mask


def _too_large(name: str, values: Sequence[Any]) -> dict[int, Fault]:
    """The rows whose number is beyond `LARGEST`; null is none."""
    if _all_usable(values):
        return {}
    return {
        row: (DeadLetterReason.NUMBER_TOO_LARGE, f"{name} is beyond ±{LARGEST:g}")
        for row, value in enumerate(values)
        if value is not None and not _all_usable([value])
    }


def _all_usable(values: Sequence[Any]) -> bool:
    """Whether a model can use all numbers, nulls aside."""
    if None in values:
        values = [value for value in values if value is not None]
    return not values or (min(values) >= -LARGEST and max(values) <= LARGEST)


def _is_all_plain(message: type[msgspec.Struct]) -> bool:
    return all(_is_plain(kind) for kind in field_types(message).values())


def _is_plain(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, types.UnionType):
        return all(_is_plain(arg) for arg in get_args(annotation))
    return annotation in _PLAIN
