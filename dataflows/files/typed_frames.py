"""Data frames as typed rows, if the types of their columns guarantee what the rows hold.

Such values must be what the decoder would have made of the row's JSON, to the last bit. So only
plain types are taken: integers, doubles, booleans and texts, for fields declared as just that. A
frame with anything else is decoded, and so is a row with a null in a field that is not optional, or
with a number that is too large or that JSON does not have.
"""

from __future__ import annotations

import threading
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from anabranch.dataflows.batch.typed_rows import FrameTexts, TypedRows
from anabranch.dataflows.declaration.shape import Shape
from anabranch.dataflows.messages.event_time import FIRST_MS, LAST_MS
from anabranch.dataflows.messages.inputs import Event, Label
from anabranch.state.arrays import LARGEST
from anabranch.state.keys.hashing import hash_pieces
from anabranch.state.keys.text_dictionary import TextDictionary

I64 = NDArray[np.int64]
Mask = NDArray[np.bool_]

_INTEGERS = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32)
_FITTING: dict[type, tuple[Any, ...]] = {
    int: _INTEGERS,
    float: (*_INTEGERS, pl.Float64),
    bool: (pl.Boolean,),
    str: (pl.String,),
}
_NULL_PLACEHOLDER: dict[type, Any] = {int: 0, float: np.nan, bool: False, str: ""}
_MAX_TEXTS = 1 << 20
"""A dictionary with more texts than this is replaced by a new one."""


_Kind = tuple[str, type, bool]
"""Of a field: its column, its type, and whether it is optional."""


class TypedFrames:
    """Makes typed rows of data frames that hold messages of one type.

    ``id`` and ``time`` name the fields with the id and the event time.
    """

    def __init__(self, message: type[msgspec.Struct], id: str, time: str) -> None:
        self._kinds = _plain_kinds(message, time)
        self._id = self._kinds[id][0] if self._kinds is not None else id
        self._dictionaries: dict[str, TextDictionary] = {}
        self._coding = threading.Lock()  # partitions are read by a thread each

    def rows(self, frame: pl.DataFrame, times: I64) -> TypedRows | None:
        """The rows of a frame with these event times (epoch ms); None if they must be decoded.

        Columns that are no fields of the type are ignored.
        """
        if self._kinds is None or not self._fits(self._kinds, frame):
            return None
        valid = (times >= FIRST_MS) & (times <= LAST_MS)
        columns: dict[str, Any] = {}
        for name, (column, kind, optional) in self._kinds.items():
            if column in frame.columns:
                columns[name] = self._column(frame[column].rechunk(), kind, optional, valid)
        return TypedRows(frame, times, valid, columns)

    def _fits(self, kinds: Mapping[str, _Kind], frame: pl.DataFrame) -> bool:
        schema = frame.schema
        for column, kind, optional in kinds.values():
            if column in schema:
                dtype = schema[column]
                if dtype not in _FITTING[kind]:
                    return False
                if optional and kind is not float and frame[column].null_count():
                    return False
        return True

    def _column(self, series: pl.Series, kind: type, optional: bool, valid: Mask) -> Any:
        """The values of a field; clears ``valid`` where they may not fit the type."""
        if kind is float:
            series = series.cast(pl.Float64)
        if series.null_count():
            if not optional:
                valid &= series.is_not_null().to_numpy()
            series = series.fill_null(_NULL_PLACEHOLDER[kind])
        if kind is str:
            return self._texts(series)
        values = series.to_numpy()
        if kind is float:
            fits = np.abs(values) <= LARGEST
            valid &= fits | np.isnan(values) if optional else fits
        return values.astype(np.int64) if kind is int else values

    def _texts(self, series: pl.Series) -> Any:
        data = (series.str.join("").item() or "").encode()
        lengths = series.str.len_bytes().to_numpy().astype(np.int64)
        if series.name == self._id:
            return FrameTexts(series, hash_pieces(data, lengths))
        with self._coding:
            dictionary = self._dictionaries.get(series.name)
            if dictionary is None or len(dictionary) > _MAX_TEXTS:
                dictionary = self._dictionaries[series.name] = TextDictionary()
            return dictionary.code(data, lengths)


def _plain_kinds(message: type[msgspec.Struct], time: str) -> dict[str, _Kind] | None:
    """The fields, by name; None unless all types are plain."""
    if message.__bases__ not in ((Event,), (Label,)) or hasattr(message, "__post_init__"):
        return None
    config = message.__struct_config__
    if config.tag is not None or config.array_like or not Shape.of(message).is_plain:
        return None
    kinds = {}
    for field in msgspec.structs.fields(message):
        annotation, optional = field.type, False
        if get_origin(annotation) in (Union, types.UnionType):
            rest = [arg for arg in get_args(annotation) if arg is not type(None)]
            optional = len(rest) < len(get_args(annotation))
            annotation = rest[0] if len(rest) == 1 else None
        if field.name == time:
            annotation, optional = int, False
        if annotation not in _FITTING:
            return None
        kinds[field.name] = field.encode_name, annotation, optional
    return kinds
