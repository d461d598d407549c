"""Bytes to columns: each message by itself, so that a bad one can't touch its neighbours."""

from __future__ import annotations

import time
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from anabranch.dataflows.batch.dead_letters import dead_letter
from anabranch.dataflows.batch.row_ids import row_id
from anabranch.dataflows.batch.typed_rows import TypedRows
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.control import Control, decode_control
from anabranch.dataflows.messages.event_time import FIRST_MS, LAST_MS, parse_times_ms
from anabranch.dataflows.messages.inputs import Delayed, Inline, field_types
from anabranch.dataflows.messages.outputs import DeadLetter
from anabranch.dataflows.source.json_decoder import json_columns
from anabranch.state.arrays import LARGEST, extent, extents
from anabranch.state.durations import format_duration_ms, parse_duration_ms

Fault = tuple[str, str]
"""A short stable reason, and the sentence for people."""

_PLAIN = (int, float, str, bool, type(None))
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class StructDecoder:
    """Decodes messages of one type; the time field also takes numbers and ISO-8601 text.

    ``decode_usual`` takes one message whose time is an integer, as nearly all are; any other is
    an error (one of `_UNREADABLE`), whatever is wrong with it. ``usual`` is its type.
    """

    def __init__(self, message: type[msgspec.Struct], time_field: str) -> None:
        self._decoder = msgspec.json.Decoder(_wire(message, time_field, int | float | str))
        self.usual = _wire(message, time_field, int)
        self.decode_usual = msgspec.json.Decoder(self.usual).decode

    def decode(self, values: Sequence[bytes]) -> tuple[list[Any], dict[int, Fault]]:
        """One struct per message, None where it is bad; and for each bad one its fault."""
        try:
            return list(map(self._decoder.decode, values)), {}
        except _UNREADABLE:
            return self._decode_each(values)

    def _decode_each(self, values: Sequence[bytes]) -> tuple[list[Any], dict[int, Fault]]:
        structs: list[Any] = []
        faults: dict[int, Fault] = {}
        decode = self._decoder.decode
        for row, value in enumerate(values):
            try:
                structs.append(decode(value))
            except msgspec.ValidationError as error:
                structs.append(None)
                faults[row] = ("does not fit the type", str(error))
            except _UNREADABLE as error:
                structs.append(None)
                faults[row] = ("not JSON", str(error))
        return structs, faults


_Read = tuple[NDArray[np.int64], dict[str, Any], tuple[int, int, int]]


@dataclass(slots=True)
class _Decoded:
    rows: RawRows
    structs: list[Any]
    times: NDArray[np.int64]
    span: tuple[int, int]
    kept: NDArray[np.int64] | None  # which of the rows read these are; None: all
    dead: list[DeadLetter]


_NO_LABELS_DECODED = _Decoded(NO_ROWS, [], NO_ROWS.times, NO_SPAN, None, [])


class BatchDecoder:
    """Makes a `Batch` of a `RawBatch`: typed, with its row features; what can't be read is dead.

    ``now`` gives the wall clock in seconds; an event whose time is ahead of its publishing, or
    of the clock, by more than the pipeline's ``ahead`` is refused.
    """

    def __init__(self, pipeline: Pipeline, now: Callable[[], float] = time.time) -> None:
        self._pipeline = pipeline
        self._now = now
        self._ahead_ms = parse_duration_ms(pipeline.max_clock_skew)
        self._events = StructDecoder(pipeline.event, pipeline.time)
        label = pipeline.label
        self._label = label if isinstance(label, Delayed) else None
        self._labels = StructDecoder(self._label.type, self._label.time) if self._label else None
        self._target_is_number = pipeline.target_kind == "number"
        self._id = pipeline.id
        self._read_time = column_reader([pipeline.time])
        self._target = label.field if isinstance(label, Inline) else None
        self._names = [
            pipeline.id,
            *([self._target] if self._target else []),
            *pipeline.read_fields,
        ]
        self._read = column_reader(self._names)
        self._read_usual = column_reader([pipeline.time, *self._names])
        self._quick = json_columns(self._events.usual, pipeline.time, self._names)
        if self._label:
            self._read_label_time = column_reader([self._label.time])
            self._read_label = column_reader([self._label.id, self._label.field])
        self._time_scale = pipeline.time_scale
        self._ranks = pipeline.candidates is not None  # then row features come with the candidates
        self._row_features = [] if self._ranks else list(pipeline.row_features)
        self._width = len(pipeline.columns)
        self._number_fields = list(pipeline.number_fields)
        self._read_numbers = column_reader(self._number_fields)

    def decode(self, raw: RawBatch) -> Batch:
        """Decode everything that can be; what can't be is in the batch's ``dead``."""
        labels = self._decode_labels(raw.labels)
        if type(raw.events.values) is TypedRows:  # isinstance is dear
            typed = self._take_typed(raw, raw.events.values, labels)
            if typed is not None:
                return typed
        usual = self._decode_usual(raw.events)
        if usual is not None and labels.kept is None:
            rows = raw.events
            return self._batch(raw, rows, *usual, self._label_rows(labels), raw.order, [])
        events = self._decode_events(raw.events)
        order = _order(raw, events, labels)
        columns = dict(zip(self._names, self._read(events.structs), strict=True))
        return self._batch(
            raw, events.rows, events.times, events.span, columns, self._label_rows(labels), order,
            events.dead + labels.dead,
        )  # fmt: skip

    def _decode_usual(
        self, rows: RawRows
    ) -> tuple[NDArray[np.int64], tuple[int, int], dict[str, Any]] | None:
        """Times, their span and columns of events that are all well, with times in epoch ms.

        None where anything is otherwise: then each message has to be looked at.
        """
        if not rows.values or self._time_scale != 1.0:
            return None
        found = None
        if self._quick is not None and type(rows.values) is list:
            found = self._quick.read(rows.values, rows.times)
        if found is None:
            found = self._decode_structs(rows)
        if found is None:
            return None
        times, columns, (earliest, latest, published) = found
        newest = min(published, int(self._now() * 1000)) + self._ahead_ms
        if earliest < FIRST_MS or latest > newest or latest > LAST_MS:
            return None
        return times, (earliest, latest), columns

    def _decode_structs(self, rows: RawRows) -> _Read | None:
        """As `JsonColumns.read`, by way of structs; None unless each message is well."""
        try:
            structs = list(map(self._events.decode_usual, rows.values))
            stamps, *fields = self._read_usual(structs)
            times = np.array(stamps, np.int64)
        except (*_UNREADABLE, OverflowError):
            return None
        if self._number_fields and self._check_numbers(structs):
            return None
        columns = dict(zip(self._names, fields, strict=True))
        return times, columns, extents(times, rows.times)

    def _take_typed(self, raw: RawBatch, values: TypedRows, labels: _Decoded) -> Batch | None:
        """Events whose fields are typed already; those in doubt are decoded by themselves.

        None where a field is missing or such an event turns out to be good: then all are decoded.
        """
        if not len(values) or not all(name in values.columns for name in self._names):
            return None
        rows, times, dead = raw.events, values.times, []
        latest = np.minimum(rows.times, int(self._now() * 1000)) + self._ahead_ms
        good, order = values.good & (times <= latest), raw.order
        if not good.all() or labels.kept is not None:
            doubtful, kept = np.flatnonzero(~good), np.flatnonzero(good)
            strange = self._decode_events(rows.take(doubtful))
            if len(strange.rows):
                return None
            order = _order(raw, strange, labels, kept)
            rows, times, dead = rows.take(kept), times[kept], strange.dead + labels.dead
        typed = rows.values
        assert isinstance(typed, TypedRows)
        columns = {name: typed.columns[name] for name in self._names}
        span = extent(times) if len(times) else NO_SPAN
        return self._batch(raw, rows, times, span, columns, self._label_rows(labels), order, dead)

    def _decode_events(self, rows: RawRows) -> _Decoded:
        return self._decode_rows(self._events, rows, self._read_time, self._check_numbers)

    def _batch(
        self,
        raw: RawBatch,
        rows: RawRows,
        times: NDArray[np.int64],
        span: tuple[int, int],
        columns: dict[str, Any],
        labels: LabelRows,
        order: NDArray[np.int64],
        dead: list[DeadLetter],
    ) -> Batch:
        features = np.zeros((len(times), self._width))
        for feature, place in self._row_features:
            feature.fill(features[:, place], times, columns)
        targets = columns[self._target] if self._target else None
        ids = columns[self._id]
        control = _read_control(raw.controls, dead) if raw.controls.values else None
        return Batch(
            raw, rows, ids, times, span, features, columns, targets, labels, order, dead,
            control=control,
        )  # fmt: skip

    def _decode_rows(
        self,
        decoder: StructDecoder,
        rows: RawRows,
        read_time: ColumnReader,
        check: Callable[[list[Any]], dict[int, Fault]],
    ) -> _Decoded:
        """The good rows; the bad ones are found, said and left out, one kind after the other."""
        scale = self._time_scale
        structs, faults = decoder.decode(rows.values)
        dead: list[DeadLetter] = []
        kept: NDArray[np.int64] | None = None
        if faults:
            rows, structs, kept = _drop(rows, structs, kept, faults, dead)
        times, timeless = parse_times_ms(read_time(structs)[0], scale)
        if timeless:
            faults = {row: ("not a time", why) for row, why in timeless.items()}
            rows, structs, kept = _drop(rows, structs, kept, faults, dead)
            times, _ = parse_times_ms(read_time(structs)[0], scale)
        span = extent(times) if structs else NO_SPAN
        faults = check(structs) | self._ahead(rows, times, span[1])
        if faults:
            rows, structs, kept = _drop(rows, structs, kept, faults, dead)
            times, _ = parse_times_ms(read_time(structs)[0], scale)
            span = extent(times) if structs else NO_SPAN
        return _Decoded(rows, structs, times, span, kept, dead)

    def _decode_labels(self, rows: RawRows) -> _Decoded:
        if self._labels is None or not rows.values:
            return _NO_LABELS_DECODED
        return self._decode_rows(self._labels, rows, self._read_label_time, self._check_label)

    def _ahead(self, rows: RawRows, times: NDArray[np.int64], newest: int) -> dict[int, Fault]:
        """Rows whose time is further ahead of publishing, or of the clock, than is allowed."""
        now_ms = int(self._now() * 1000)
        if not len(times) or newest - self._ahead_ms <= min(extent(rows.times)[0], now_ms):
            return {}
        faults = {}
        latest = np.minimum(rows.times, now_ms) + self._ahead_ms
        for row in np.flatnonzero(times > latest).tolist():
            ahead = format_duration_ms(int(times[row] - latest[row]) + self._ahead_ms)
            what = f"event time {times[row]} is {ahead} ahead of its arrival"
            faults[row] = ("event time ahead", what)
        return faults

    def _check_numbers(self, structs: list[Any]) -> dict[int, Fault]:
        faults: dict[int, Fault] = {}
        for name, values in zip(self._number_fields, self._read_numbers(structs), strict=True):
            if not _all_usable(values):
                for row, value in enumerate(values):
                    if value is not None and not _all_usable([value]):
                        faults[row] = ("number too large", f"{name} is beyond ±{LARGEST:g}")
        return faults

    def _check_label(self, structs: list[Any]) -> dict[int, Fault]:
        assert self._label is not None
        if not self._target_is_number:
            return {}
        values = self._read_label(structs)[1]
        if _all_usable(values):
            return {}
        return {
            row: ("number too large", f"{self._label.field} is beyond ±{LARGEST:g}")
            for row, value in enumerate(values)
            if not _all_usable([value])
        }

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
        )


def _wire(message: type[msgspec.Struct], time_field: str, time_type: Any) -> type[msgspec.Struct]:
    """The message type as it is decoded: its time is of another type."""
    return msgspec.defstruct(
        message.__name__,
        [(time_field, time_type)],
        bases=(message,),
        kw_only=True,
        gc=not _is_all_plain(message),  # plain fields hold nothing to collect
    )


def _read_control(controls: RawRows, dead: list[DeadLetter]) -> Control | None:
    """What a batch ends with; None where it is a dead letter."""
    try:
        return decode_control(controls.values[0])
    except ValueError as error:
        dead.append(dead_letter(controls, 0, "not a control message", str(error)))
        return None


def _drop(
    rows: RawRows,
    structs: list[Any],
    kept: NDArray[np.int64] | None,
    faults: dict[int, Fault],
    dead: list[DeadLetter],
) -> tuple[RawRows, list[Any], NDArray[np.int64]]:
    """The rows without faults, their structs, and which of the rows read they are."""
    dead.extend(dead_letter(rows, row, *faults[row]) for row in sorted(faults))
    good = np.array([row for row in range(len(rows)) if row not in faults], np.int64)
    kept = good if kept is None else kept[good]
    return rows.take(good), [structs[row] for row in good.tolist()], kept


def _order(
    raw: RawBatch, events: _Decoded, labels: _Decoded, kept: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """The order of what is left; ``kept`` are events that were taken without being decoded."""
    kept = events.kept if kept is None else kept
    return keep_rows(raw.order, _mask(kept, len(raw.events)), _mask(labels.kept, len(raw.labels)))


def _mask(kept: NDArray[np.int64] | None, count: int) -> NDArray[np.bool_]:
    if kept is None:
        return np.ones(count, np.bool_)
    mask = np.zeros(count, np.bool_)
    mask[kept] = True
    return mask


def _all_usable(values: Sequence[Any]) -> bool:
    """Whether all numbers, nulls aside, are such that a model can take them."""
    if None in values:
        values = [value for value in values if value is not None]
    return not values or (min(values) >= -LARGEST and max(values) <= LARGEST)


def _is_all_plain(message: type[msgspec.Struct]) -> bool:
    return all(_is_plain(kind) for kind in field_types(message).values())


def _is_plain(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, types.UnionType):
        return all(_is_plain(arg) for arg in get_args(annotation))
    return annotation in _PLAIN
