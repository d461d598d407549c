"""Encodes predictions as JSON in a kernel: byte for byte what msgspec would write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from anabranch.models.learners.learner import NO_LABEL, Predictions, Task
from anabranch.state.compile import F64, I64, U8, entry, inlined, kernel
from anabranch.state.keys.text_column import Texts

_OUTPUTS = {Task.BINARY: (True, True), Task.REGRESSION: (False, False), Task.ANOMALY: (False, True)}
"""Whether the prediction is a boolean, not the number itself; whether there is a score."""

_PER_ROW = 200  # bytes, beside the id and the pieces: numbers of at most 25 characters
_FALSE, _NULL = 6, 8  # of the pieces
_NO_LABELS, _NO_VERSIONS = np.zeros(0, np.uint8), np.zeros(0, np.int64)


class JsonPredictionEncoder:
    """Encodes the predictions that one model made for the events of one topic."""

    def __init__(self, task: Task, topic: str, model: str) -> None:
        self._encode = msgspec.json.Encoder().encode
        self._names = self._encode(topic), self._encode(model)
        is_boolean, self._has_score = _OUTPUTS[task]
        self._is_boolean = int(is_boolean)
        self._pieces: dict[int, tuple[bytes, I64]] = {}
        self._out: U8 = np.zeros(0, np.uint8)
        none = np.zeros(0, np.int64)
        self._write = entry(
            _write_lines, b"", np.zeros((2, 0), np.int64), none, none, 0, none, np.zeros(0),
            self._out, b"", b"", none, 0, self._out,
        )  # fmt: skip

    def encode(
        self,
        ids: Texts,
        times: I64,
        offsets: NDArray[Any],
        partition: int,
        versions: Sequence[int],
        predictions: Predictions,
    ) -> list[bytes]:
        """One message per event of ``partition``; ``ids`` need no escaping (`Texts.plain`)."""
        rows, values = len(times), predictions.values
        pieces, cuts = self._pieces.get(partition) or self._make_pieces(partition)
        size = len(ids.blob) + rows * (len(pieces) + _PER_ROW)
        if size > self._out.size:
            self._out = np.zeros(2 * size, np.uint8)
        first, given = 0, _NO_VERSIONS
        if type(versions) is range:
            first = versions.start
        else:
            given = np.array(versions, np.int64)
        written = self._write(
            ids.blob, ids.spans, times, offsets, first, given, values,
            _NO_LABELS if predictions.labels is None else predictions.labels,
            self._encode(values.tolist()), pieces, cuts, self._is_boolean, self._out,
        )  # fmt: skip
        lines = self._out[:written].tobytes().split(b"\n")
        lines.pop()  # what follows the last line's end
        return lines

    def _make_pieces(self, partition: int) -> tuple[bytes, I64]:
        topic, model = self._names
        pieces = [
            b'{"id":"',
            b'","ts":',
            b',"topic":%b,"partition":%d,"offset":' % (topic, partition),
            b',"model":%b,"version":' % model,
            b',"prediction":',
            b',"score":' if self._has_score else b"",
            b"false",
            b"true",
            b"null",
        ]
        cuts: NDArray[Any] = np.cumsum([0, *map(len, pieces)])
        self._pieces[partition] = b"".join(pieces), cuts
        return self._pieces[partition]


@inlined
def _copy(source: bytes, start: int, stop: int, out: U8, at: int) -> int:
    # Unsigned, so that no index can count from the end, and several bytes are copied at once.
    begin, size, place = np.uint64(start), np.uint64(stop - start), np.uint64(at)
    for i in range(size):
        out[place + i] = source[begin + i]
    return at + stop - start


@inlined
def _write_integer(value: int, out: U8, at: int) -> int:
    """Write `value` in decimal; returns the end of it."""
    if value < 0:
        out[at] = 45
        at += 1
        value = -value
    size, rest = 1, value // 10
    while rest > 0:
        size += 1
        rest //= 10
    for i in range(size):
        out[at + size - 1 - i] = 48 + value % 10
        value //= 10
    return at + size


@kernel
def _write_lines(
    blob: bytes, spans: I64, times: I64, offsets: I64, first: int, versions: I64, values: F64,
    labels: U8, encoded: bytes, pieces: bytes, cuts: I64, is_boolean: int, out: U8,
) -> int:  # fmt: skip
    """Write one line per row into `out`; returns how many bytes were written.

    `encoded` is the list of `values` in JSON. Without `versions` they count up from `first`;
    without `labels` a boolean prediction is `value > 0.5`. The arrays come one by one for speed, as
    in `dataflows.codec.json_scanner`.
    """
    at = value_at = 0
    for i in range(times.size):
        at = _copy(pieces, cuts[0], cuts[1], out, at)
        at = _copy(blob, spans[0, i], spans[1, i], out, at)
        at = _copy(pieces, cuts[1], cuts[2], out, at)
        at = _write_integer(times[i], out, at)
        at = _copy(pieces, cuts[2], cuts[3], out, at)
        at = _write_integer(offsets[i], out, at)
        at = _copy(pieces, cuts[3], cuts[4], out, at)
        at = _write_integer(versions[i] if versions.size > 0 else first + i, out, at)
        at = _copy(pieces, cuts[4], cuts[5], out, at)
        start = value_at = value_at + 1  # after a bracket or a comma
        while encoded[value_at] != 44 and encoded[value_at] != 93:
            value_at += 1
        if is_boolean != 0:
            word = _NULL
            if labels.size > 0:
                if labels[i] != NO_LABEL:
                    word = _FALSE + labels[i]
            elif values[i] == values[i]:
                word = _FALSE + (values[i] > 0.5)
            at = _copy(pieces, cuts[word], cuts[word + 1], out, at)
        else:
            at = _copy(encoded, start, value_at, out, at)
        if cuts[6] > cuts[5]:
            at = _copy(pieces, cuts[5], cuts[6], out, at)
            at = _copy(encoded, start, value_at, out, at)
        out[at], out[at + 1] = 125, 10
        at += 2
    return at
