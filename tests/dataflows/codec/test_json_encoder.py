"""A prediction encoded by the kernel is, byte for byte, what msgspec makes of it."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.dataflows.codec.json_encoder import JsonPredictionEncoder
from anabranch.models.learners.learner import NO_LABEL, Predictions, Task
from anabranch.state.keys.text_column import Texts

ENCODERS = {
    task: JsonPredictionEncoder(task, 'shop "1".events', "ModelÄ")
    for task in (Task.BINARY, Task.REGRESSION, Task.ANOMALY)
}
plain = st.text(
    st.characters(codec="utf-8", exclude_characters='"\\', min_codepoint=32), max_size=20
)
whole = st.integers(-(2**62), 2**62)


def texts(ids: list[str]) -> Texts:
    blob, spans = b"", []
    for each in ids:
        spans.append((len(blob) + 1, len(blob) + 1 + len(each.encode())))
        blob += b"-" + each.encode()
    return Texts(blob, np.array(spans).T.copy(), np.zeros(len(ids), np.uint64), True)


def outputs(task: Task, value: float, label: int | None) -> dict[str, Any]:
    number = None if math.isnan(value) else value
    if task is Task.REGRESSION:
        return {"prediction": number}
    if task is Task.ANOMALY:
        return {"prediction": number, "score": number}
    if label is not None:
        return {"prediction": {0: False, 1: True, NO_LABEL: None}[label], "score": number}
    return {"prediction": None if number is None else number > 0.5, "score": number}


@pytest.mark.parametrize("task", ENCODERS)
@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(plain, whole, whole, st.floats(), st.sampled_from([0, 1, NO_LABEL]), whole),
        min_size=1,
        max_size=6,
    ),
    st.booleans(),
    st.booleans(),
    st.integers(0, 1000),
)
def test_messages_equal_those_of_msgspec(
    task: Task,
    rows: list[tuple[str, int, int, float, int, int]],
    labelled: bool,
    counted: bool,
    partition: int,
) -> None:
    ids, times, offsets, values, labels, versions = map(list, zip(*rows, strict=True))
    labelled = labelled and task is Task.BINARY
    first = versions[0]
    messages = ENCODERS[task].encode(
        texts(ids),
        np.array(times, np.int64),
        np.array(offsets, np.int64),
        partition,
        range(first, first + len(rows)) if counted else versions,
        Predictions(np.array(values), np.array(labels, np.uint8) if labelled else None),
    )
    assert messages == [
        msgspec.json.encode(
            {
                "id": ids[i],
                "ts": times[i],
                "topic": 'shop "1".events',
                "partition": partition,
                "offset": offsets[i],
                "model": "ModelÄ",
                "version": first + i if counted else versions[i],
                **outputs(task, values[i], labels[i] if labelled else None),
            }
        )
        for i in range(len(rows))
    ]
