"""Decodes messages into batches: each message on its own, so that a bad one affects no other."""

from __future__ import annotations

import re
import time
import types
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
from anabranch.dataflows.batch.columns import ColumnReader, column_reader, joined_column
from anabranch.dataflows.batch.dead_letters import Fault, dead_letter
from anabranch.dataflows.batch.placed_fields import PlacedFields
from anabranch.dataflows.batch.row_ids import row_id
from anabranch.dataflows.batch.typed_rows import TypedRows
from anabranch.dataflows.bus import UnreachableError
from anabranch.dataflows.codec import CODECS, Codec, codec_of
from anabranch.dataflows.codec.foreign_formats import foreign_format
from anabranch.dataflows.codec.protocol import ColumnDecoder, Columns, DecodedColumns, Filtered
from anabranch.dataflows.declaration.casts import text_of
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.declaration.schema import Schema
from anabranch.dataflows.declaration.shape import Cast, Shape, with_field_type
from anabranch.dataflows.messages.control import Control, control_error
from anabranch.dataflows.messages.dead_letter_reasons import DeadLetterReason
from anabranch.dataflows.messages.event_time import FIRST_MS, LAST_MS, parse_times_ms
from anabranch.dataflows.messages.inputs import Delayed, Inline, field_types
from anabranch.dataflows.messages.outputs import DeadLetter
from anabranch.dataflows.messages.time_unit_check import TimeUnitCheck
from anabranch.dataflows.source.unknown_fields import UnknownFields, similar_field
from anabranch.models.learners.error_place import describe_error
from anabranch.state.arrays import LARGEST, extent, extents
from anabranch.state.durations import format_duration_ms, parse_duration_ms

I64 = NDArray[np.int64]

Faults = dict[int, Fault | None]
"""Why rows cannot be used; None for one that is skipped."""

Selector = Callable[[list[bytes], I64], NDArray[np.bool_] | None]
"""Which messages of a batch a condition chooses; None: each has to be decoded to tell."""

_PLAIN = (int, float, str, bool, type(None))
_MISSING = re.compile(r"missing required field `([^`]+)`")


class StructDecoder:
    """Decodes messages of one type into structs; the time field also takes floats and ISO-8601.

    Unknown fields are ignored and counted, unless the type forbids them. As long as none came,
    messages are decoded by a type that forbids them: no message has to be searched for them.

    Attributes:
        integer_time: the message type with an integer in its time field, as nearly all have.
        errors: what decoding may raise: `Codec.errors`; or anything that the type's own
            ``__post_init__`` raises.
    """

    def __init__(
        self,
        codec: Codec,
        message: type[msgspec.Struct],
        time_field: str,
        unknown: UnknownFields,
    ) -> None:
        self.codec = codec
        has_own_code = hasattr(message, "__post_init__")
        self.errors: tuple[type[Exception], ...] = (Exception,) if has_own_code else codec.errors
        self._shape = Shape.of(message)
        self._unknown = unknown
        self.placed = PlacedFields(message, time_field)
        time = next(each for each in self._shape.fields if each.name == time_field)
        gc = not _is_all_plain(message)  # plain fields hold nothing to collect
        self.integer_time = with_field_type(message, time, Cast[int] if time.cast else int, gc)
        of_any_time = with_field_type(message, time, int | float | str, gc)
        self.integer_time = self.placed.optional(self.integer_time)
        of_any_time = self.placed.optional(of_any_time)
        self._tolerant = codec.decoder(of_any_time), codec.decoder(self.integer_time)
        self._decode, self._decode_integer_time = self._tolerant
        if not self._shape.forbids_unknown and codec.tells_unknown:
            self._decode = codec.decoder(_without_unknown(of_any_time))
            self._decode_integer_time = codec.decoder(_without_unknown(self.integer_time))
        self._has_unknown = False

    def decode_integer_times(self, values: Sequence[bytes]) -> list[Any]:
        """One struct of type `integer_time` per message.

        Raises:
            Exception: one of `errors`: a message is bad, or has the first unknown field.
        """
        structs = list(map(self._decode_integer_time, values))
        if self._has_unknown:
            self._count_unknown(values)
        return structs

    def decode(self, values: Sequence[bytes]) -> tuple[list[Any], Faults]:
        """One struct per message, None where it is bad, and the fault of each bad row.

        A fault of None means that the row is to be skipped, and is none of the pipeline's.
        """
        try:
            structs = list(map(self._decode, values))
        except UnreachableError:
            raise
        except self.errors:
            return self._decode_each(values)
        if self._has_unknown:
            self._count_unknown(values)
        return structs, {}

    def _decode_each(self, values: Sequence[bytes]) -> tuple[list[Any], Faults]:
        structs: list[Any] = []
        faults: Faults = {}
        decode, errors = self._tolerant[0], self.errors
        for row, value in enumerate(values):
            try:
                structs.append(decode(value))
            except Filtered:
                structs.append(None)
                faults[row] = None
            except UnreachableError:
                raise
            except errors as error:
                structs.append(None)
                faults[row] = self._fault(error, value)
        self._count_unknown(value for row, value in enumerate(values) if row not in faults)
        return structs, faults

    def _count_unknown(self, values: Iterable[bytes]) -> None:
        """Count the unknown fields of valid messages; once there are any, they are tolerated."""
        if self._shape.forbids_unknown or not self.codec.tells_unknown:
            return
        counts: Counter[str] = Counter()
        examples: dict[str, Any] = {}
        for value in values:
            found = self.codec.unknown_fields(self._shape, value)
            if found:
                counts.update(dict.fromkeys(found, 1))
                examples = {**found, **examples}
        if counts:
            self._has_unknown = True
            self._decode, self._decode_integer_time = self._tolerant
            self._unknown.add(counts, examples)

    def _fault(self, error: Exception, value: bytes) -> Fault:
        """Why a message could not be decoded; of an error in the user's code, where it was raised.

        Bytes of another format are named.

        msgspec makes a `ValidationError` of a ValueError and a TypeError, with that as its cause.
        """
        raised = error.__cause__ if isinstance(error.__cause__, Exception) else error
        if raised is error and isinstance(error, self.codec.errors):
            reason, detail = self.codec.fault(error)
            known = None if reason is DeadLetterReason.TYPE_MISMATCH else foreign_format(value)
            detail += self._suggestion(detail, value)
            return reason, detail if known is None else f"{detail}; {known}"
        return DeadLetterReason.TYPE_MISMATCH, describe_error(raised)

    def _suggestion(self, detail: str, value: bytes) -> str:
        """Which field of the message may be the one that it lacks, as the end of a sentence."""
        missing = _MISSING.search(detail)
        if missing is None:
            return ""
        try:
            unknown = self.codec.unknown_fields(self._shape, value)
        except self.codec.errors:
            return ""
        similar = similar_field(missing[1], unknown)
        if similar is None:
            return ""
        name = self._shape.message.__name__
        return f"; it has `{similar}`, which {name} does not declare: is that the field?"


@dataclass(slots=True)
class _Decoded:
    rows: RawRows
    structs: list[Any]
    times: I64
    span: tuple[int, int]
    kept: I64 | None  # indices of `rows` among those read; None: all of them
    dead_letters: list[DeadLetter]
    filtered: list[int] = field(default_factory=list)  # indices among those read


_NO_LABELS_DECODED = _Decoded(NO_ROWS, [], NO_ROWS.times, NO_SPAN, None, [])


class BatchDecoder:
    """Makes a typed `Batch` with row features of a `RawBatch`; undecodable rows are dead letters.

    ``now`` gives the wall clock in seconds: an event whose time is ahead of its publishing time, or
    of the clock, by more than the pipeline's ``max_clock_skew`` is a dead letter. ``on_time_unit``
    is called once per topic whose times seem to be in another unit, with that unit;
    ``on_unknown_fields`` with a topic and how often fields came that its type does not have, as
    soon as there is a new one, and at `report_unknown_fields`;
    ``on_filtered`` with a topic and how many of its messages were none of the pipeline's.

    The messages of the topics ``of_files`` are rows of files, which are JSON whatever the format
    of the topics, and all of them the pipeline's.

    While a schema registry does not respond, `decode` raises `UnreachableError`, and may be called
    again with the same messages.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        now: Callable[[], float] = time.time,
        on_time_unit: Callable[[str, str], None] = lambda topic, unit: None,
        on_unknown_fields: Callable[[str, Mapping[str, int]], None] = lambda topic, counts: None,
        on_filtered: Callable[[str, int], None] = lambda topic, count: None,
        of_files: Collection[str] = (),
    ) -> None:
        self._now = now
        self._on_filtered = on_filtered
        self._max_skew_ms = parse_duration_ms(pipeline.max_clock_skew)
        topics, label = pipeline.topics, pipeline.label
        scale = pipeline.time_scale
        self._units = {
            topic: TimeUnitCheck(topic, scale, partial(on_time_unit, topic))
            for topic in (*topics.all_events, *topics.all_labels)
        }
        self._event_unit = self._units[topics.events]
        self._of_files = of_files
        codec = codec_of(pipeline, topics.events)
        if topics.events in of_files:
            codec = CODECS["json"]
        self._on_unknown_fields = on_unknown_fields
        self._unknown = UnknownFields(topics.events, Shape.of(pipeline.event), on_unknown_fields)
        self._events = StructDecoder(codec, pipeline.event, pipeline.time, self._unknown)
        # Rows of a file are read as JSON, whatever the format of the topic.
        self._file_events = self._events
        if codec.name != "json":
            json = CODECS["json"]
            self._file_events = StructDecoder(json, pipeline.event, pipeline.time, self._unknown)
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
        texts = pipeline.text_fields
        self._joined = list(pipeline.joined_entities.items())
        self._placed = self._events.placed
        self._is_time_placed = pipeline.time in self._placed.names
        self._in_payload = [name for name in self._names if name not in self._placed.names]
        self._read_with_time = column_reader([pipeline.time, *self._in_payload])
        self._texts = [name for name in dict.fromkeys(self._names) if name in texts]
        self._converters = _converters(pipeline.schema, self._names, texts)
        self._columns: ColumnDecoder | None = None
        if not self._is_time_placed:
            self._columns = codec.column_decoder(
                self._events.integer_time,
                pipeline.time,
                self._in_payload,
                **({"texts": texts} if codec.makes_texts else {}),
            )
        self._counts_unknown = hasattr(self._columns, "take_unknown")
        payload_texts = [name for name in self._texts if name in self._in_payload]
        self._texts_afterwards = [] if codec.makes_texts else payload_texts
        make_selector = getattr(codec, "selector", None)
        self._select: Selector | None = None if make_selector is None else make_selector()
        self._shares_topics = pipeline.shares_topics and not of_files
        self._set_up_labels(pipeline)
        self._time_scale, self._zone = pipeline.time_scale, pipeline.zone
        self._local_time = pipeline.local_time
        self._ranks = pipeline.candidates is not None  # then row features come with the candidates
        self._row_features = [] if self._ranks else list(pipeline.row_features)
        self._width = len(pipeline.columns)
        self._number_fields = list(pipeline.number_fields)
        self._read_numbers = column_reader(self._number_fields)
        fields = pipeline.schema.fields
        self._decimals = {name for name in self._number_fields if fields[name].is_decimal}

    def _set_up_labels(self, pipeline: Pipeline) -> None:
        label = pipeline.label if isinstance(pipeline.label, Delayed) else None
        self._label = label
        self._labels: StructDecoder | None = None
        self._file_labels: StructDecoder | None = None
        self._target_is_number = pipeline.target_kind == "number"
        if label is not None:
            codec = codec_of(pipeline, pipeline.topics.labels, labels=True)
            if pipeline.topics.labels in self._of_files:
                codec = CODECS["json"]
            topic, schema = pipeline.topics.labels, Schema.of(label.type)
            unknown = UnknownFields(topic, Shape.of(label.type), self._on_unknown_fields)
            self._labels = StructDecoder(codec, label.type, label.time, unknown)
            if codec.name != "json":
                json = CODECS["json"]
                self._file_labels = StructDecoder(json, label.type, label.time, unknown)
            else:
                self._file_labels = self._labels
            names = [label.id, label.field]
            # A candidate is named by its text.
            texts = set(names) if pipeline.candidates is not None else {label.id}
            self._label_converters = [
                (names.index(name), convert) for name, convert in _converters(schema, names, texts)
            ]
            self._read_label_time = column_reader([label.time])
            self._read_label = column_reader([label.id, label.field])

    def report_unknown_fields(self) -> None:
        """Count what unknown fields came; new ones are reported without being asked."""
        if self._counts_unknown:
            counts, examples = self._columns.take_unknown()  # type: ignore[union-attr]
            if counts:
                self._unknown.add(counts, examples)

    def decode(self, raw: RawBatch) -> Batch:
        """Decode all messages of a batch; those that are bad end up in its ``dead_letters``."""
        if self._shares_topics:
            raw = _with_labels(raw)
        labels = self._decode_labels(raw.labels)
        if type(raw.events.values) is TypedRows:  # isinstance is slow
            typed = self._decode_typed_rows(raw, raw.events.values, labels)
            if typed is not None:
                return typed
        rows, selected = raw.events, None
        if self._select is not None and rows.values:
            rows, selected = self._selected(rows, self._select)
        decoded = self._decode_columns(rows)
        if decoded is not None:
            if selected is not None or labels.filtered:
                self._count_filtered(raw, labels, _others(selected, raw))
            order = raw.order
            if labels.kept is not None or selected is not None:
                of_events = _mask(selected, len(raw.events))
                order = keep_rows(order, of_events, _mask(labels.kept, len(raw.labels)))
            return self._batch(
                raw, rows, *decoded, self._label_rows(labels), order, [*labels.dead_letters]
            )
        events = self._decode_events(rows)
        if selected is not None:
            events.kept = selected if events.kept is None else selected[events.kept]
            events.filtered = [*_others(selected, raw), *selected[events.filtered].tolist()]
        self._count_filtered(raw, labels, events.filtered)
        order = _order(raw, events, labels)
        columns = self._converted(dict(zip(self._names, self._read(events.structs), strict=True)))
        letters = labels.dead_letters
        if self._shares_topics:  # what can't be read at all is told of once
            told = {(each.partition, each.offset, each.topic) for each in events.dead_letters}
            letters = [e for e in letters if (e.partition, e.offset, e.topic) not in told]
        return self._batch(
            raw, events.rows, events.times, events.span, columns, self._label_rows(labels), order,
            events.dead_letters + letters,
        )  # fmt: skip

    def _selected(self, rows: RawRows, select: Selector) -> tuple[RawRows, I64 | None]:
        """The rows that a condition chooses, and which they are; None: all, or it is not known."""
        if type(rows.values) is not list:
            return rows, None
        mask = select(rows.values, rows.times)
        if mask is None or mask.all():
            return rows, None
        chosen = np.flatnonzero(mask)
        return rows.take(chosen), chosen

    def _count_filtered(self, raw: RawBatch, labels: _Decoded, events: Sequence[int]) -> None:
        """Count messages that were skipped: of a topic with both, those that are neither."""
        if self._shares_topics:
            both = len(set(events) & set(labels.filtered))
            if both:
                self._on_filtered(raw.events.topic, both)
            return
        if events:
            self._on_filtered(raw.events.topic, len(events))
        if labels.filtered:
            self._on_filtered(raw.labels.topic, len(labels.filtered))

    def _decode_columns(self, rows: RawRows) -> tuple[I64, tuple[int, int], dict[str, Any]] | None:
        """Times, their span and columns of events that are all valid, with times in epoch ms.

        None if any is not: then each message has to be decoded on its own.
        """
        if not rows.values or self._time_scale != 1.0 or self._is_time_placed:
            return None
        decoded = None
        if self._columns is not None and type(rows.values) is list:
            decoded = self._columns.read(rows.values, rows.times)
            if self._counts_unknown and self._columns.has_new_fields:  # type: ignore[attr-defined]
                self.report_unknown_fields()
            if decoded is not None and self._texts_afterwards:
                for name in self._texts_afterwards:
                    decoded[1][name] = [None if v is None else text_of(v) for v in decoded[1][name]]
        if decoded is None:
            decoded = self._decode_structs(rows)
        if decoded is None:
            return None
        times, columns, (earliest, latest, published) = decoded
        newest = min(published, int(self._now() * 1000)) + self._max_skew_ms
        if earliest < FIRST_MS or latest > newest or latest > LAST_MS:
            return None
        if self._placed:
            placed = self._placed.columns(rows)
            if placed is None:
                return None
            columns |= self._converted(placed)
        return times, (earliest, latest), columns

    def _decode_structs(self, rows: RawRows) -> DecodedColumns | None:
        """As `ColumnDecoder.read`, through structs; None unless every message is valid."""
        try:
            decoder = self._event_decoder(rows)
            structs = decoder.decode_integer_times(rows.values)
            stamps, *fields = self._read_with_time(structs)
            times = np.array(stamps, np.int64)
        except UnreachableError:
            raise
        except decoder.errors:
            return None
        except OverflowError:  # a time beyond int64
            return None
        if self._number_fields and self._check_numbers(structs):
            return None
        columns: Columns = self._converted(dict(zip(self._in_payload, fields, strict=True)))
        return times, columns, extents(times, rows.times)

    def _converted(self, columns: dict[str, Any]) -> dict[str, Any]:
        """The columns as steps use them: enums as their values, and keys as texts."""
        for name, convert in self._converters:
            if name in columns:
                columns[name] = [None if v is None else convert(v) for v in columns[name]]
        return columns

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
        for name in self._texts:
            columns[name] = list(map(text_of, columns[name].tolist()))
        span = extent(times) if len(times) else NO_SPAN
        return self._batch(
            raw, rows, times, span, columns, self._label_rows(labels), order, dead_letters
        )

    def _decode_events(self, rows: RawRows) -> _Decoded:
        decoder = self._event_decoder(rows)
        return self._decode_rows(decoder, rows, self._read_time, self._check_numbers)

    def _event_decoder(self, rows: RawRows) -> StructDecoder:
        return self._file_events if type(rows.values) is TypedRows else self._events

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
        for name, parts in self._joined:
            columns[name] = joined_column([columns[part] for part in parts])
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
        if decoder.placed:
            decoder.placed.fill(rows, structs, faults)
        dead_letters: list[DeadLetter] = []
        kept: I64 | None = None
        filtered: list[int] = []
        if faults:
            filtered = [row for row, fault in faults.items() if fault is None]
            rows, structs, kept = _drop(rows, structs, kept, faults, dead_letters)
        times, invalid = parse_times_ms(read_time(structs)[0], scale, self._zone)
        unit = self._units.get(rows.topic, self._event_unit)
        if invalid:
            unit.add_refused(invalid.values())
            not_times = {row: (DeadLetterReason.INVALID_TIME, why) for row, why in invalid.items()}
            rows, structs, kept = _drop(rows, structs, kept, not_times, dead_letters)
            times, _ = parse_times_ms(read_time(structs)[0], scale, self._zone)
        span = extent(times) if structs else NO_SPAN
        wrong = check(structs) | self._check_skew(rows, times, span[1])
        if wrong:
            rows, structs, kept = _drop(rows, structs, kept, wrong, dead_letters)
            times, _ = parse_times_ms(read_time(structs)[0], scale, self._zone)
            span = extent(times) if structs else NO_SPAN
        if structs:
            unit.add(*span)
        return _Decoded(rows, structs, times, span, kept, dead_letters, filtered)

    def _decode_labels(self, rows: RawRows) -> _Decoded:
        if self._labels is None or not rows.values:
            return _NO_LABELS_DECODED
        decoder = self._file_labels if type(rows.values) is TypedRows else self._labels
        assert decoder is not None
        return self._decode_rows(decoder, rows, self._read_label_time, self._check_label)

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
            if name in self._decimals:
                values = [None if v is None else float(v) for v in values]
            faults |= _too_large(name, values)
        return faults

    def _check_label(self, structs: list[Any]) -> dict[int, Fault]:
        assert self._label is not None
        if not self._target_is_number:
            return {}
        values = self._read_label(structs)[1]
        for at, convert in self._label_converters:
            if at == 1:
                values = [None if v is None else convert(v) for v in values]
        return _too_large(self._label.field, values)

    def _label_rows(self, decoded: _Decoded) -> LabelRows:
        label, structs, rows = self._label, decoded.structs, decoded.rows
        if label is None or not structs:
            return NO_LABELS
        columns = dict(enumerate(self._read_label(structs)))
        for at, convert in self._label_converters:
            columns[at] = [None if v is None else convert(v) for v in columns[at]]
        ids, values = columns[0], columns[1]
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


def _without_unknown(message: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """The message type, with unknown fields forbidden."""
    gc = message.__struct_config__.gc
    return msgspec.defstruct(
        message.__name__, [], bases=(message,), kw_only=True, forbid_unknown_fields=True, gc=gc
    )


def _converters(
    schema: Schema, names: Sequence[str], texts: Collection[str]
) -> list[tuple[Any, Callable[[Any], Any]]]:
    """The fields, by name, whose values are not used as they were decoded, and what makes them."""
    found = []
    for name in dict.fromkeys(names):
        field = schema.fields[name]
        convert = text_of if name in texts and field.kind != "text" else field.value_of
        if convert is not None:
            found.append((name, convert))
    return found


def _drop(
    rows: RawRows,
    structs: list[Any],
    kept: I64 | None,
    faults: Mapping[int, Fault | None],
    dead_letters: list[DeadLetter],
) -> tuple[RawRows, list[Any], I64]:
    """The rows without faults, their structs, and their indices among the rows read."""
    dead_letters.extend(
        dead_letter(rows, row, *fault) for row, fault in sorted(faults.items()) if fault is not None
    )
    valid = np.array([row for row in range(len(rows)) if row not in faults], np.int64)
    kept = valid if kept is None else kept[valid]
    return rows.take(valid), [structs[row] for row in valid.tolist()], kept


def _with_labels(raw: RawBatch) -> RawBatch:
    """A batch of messages that may be events or labels: each is read as both."""
    count = len(raw.events)
    order = np.stack([raw.order, raw.order + count], axis=1).ravel()
    return msgspec.structs.replace(raw, labels=raw.events, order=order)


def _others(selected: I64 | None, raw: RawBatch) -> list[int]:
    """The events that were not selected."""
    if selected is None:
        return []
    others: list[int] = np.flatnonzero(~_mask(selected, len(raw.events))).tolist()
    return others


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
