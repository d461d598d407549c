"""No id passes twice within the dedup window and no late event passes, however batches are cut.

The reference keeps every id, without tables, hashes or batches.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import linear_model

from anabranch import Event, Label, Pipeline, field, inline, since_last
from anabranch.dataflows.batch.batch import Batch, RawBatch, RawRows
from anabranch.dataflows.messages.event_time import FIRST_MS
from anabranch.dataflows.messages.outputs import DeadLetter
from anabranch.dataflows.source.decoder import BatchDecoder
from anabranch.dataflows.source.late_and_duplicate import LateAndDuplicateFilter
from anabranch.state.store.delta import Delta, decode, encode

LATENESS, WINDOW = 10, 30  # seconds: allowed lateness, dedup window
T0_S = 1_700_000_010  # a multiple of the window
Row = tuple[str, int, int]
"""Id, time in seconds, partition."""


class Seen(Event):
    id: str
    ts: int
    card: str
    number: float
    y: float


class Truth(Label):
    id: str
    ts: int
    y: float


@cache
def decoder(labelled: bool) -> BatchDecoder:
    return BatchDecoder(
        Pipeline(
            name="t",
            event=Seen,
            label=Truth.target("y") if labelled else inline("y"),
            features=[field("number"), since_last("card")],
            model=linear_model.LinearRegression(),
            time_unit="s",
        )
    )


def batch(rows: list[Row], first: int = 0, labels: int | None = None) -> Batch:
    """Events with offsets from ``first`` on, followed by ``labels`` labels."""
    events = [
        {
            "id": id,
            "ts": T0_S + time,
            "card": f"card {first + i}",
            "number": first + i,
            "y": first + i,
        }
        for i, (id, time, _) in enumerate(rows)
    ]
    truths = [{"id": f"l{i}", "ts": T0_S, "y": i} for i in range(labels or 0)]
    raw = RawBatch(
        "0",
        0,
        raw_rows("t.events", events, [partition for *_, partition in rows], first),
        raw_rows("t.labels", truths, [0] * len(truths), 0),
        np.arange(len(events) + len(truths)),
        0.0,
    )
    decoded = decoder(labels is not None).decode(raw)
    assert len(decoded) == len(rows)
    return decoded


def raw_rows(topic: str, messages: list[Any], partitions: list[int], first: int) -> RawRows:
    values = [json.dumps(message).encode() for message in messages]
    times = [message["ts"] * 1000 for message in messages]
    return RawRows(
        topic,
        values,
        np.array(partitions, np.int64),
        np.arange(first, first + len(values)),
        np.array(times, np.int64),
    )


def new_filter() -> LateAndDuplicateFilter:
    return LateAndDuplicateFilter(f"{LATENESS}s", f"{WINDOW}s")


def in_batches(rows: list[Row], cuts: list[int]) -> tuple[list[int], list[DeadLetter]]:
    """Offsets that pass, and the dead letters, with batches ending at ``cuts``."""
    late_filter, passed, dead_letters = new_filter(), [], []
    ends = sorted({cut for cut in cuts if cut < len(rows)} | {len(rows)})
    start = 0
    for end in ends:
        found = late_filter.apply(batch(rows[start:end], start))
        passed += found.offsets.tolist()
        dead_letters += found.dead_letters
        start = end
    return passed, dead_letters


def expected_by_reference(rows: list[Row]) -> dict[int, str]:
    """Offset → what must become of it: "pass", "late", "duplicate id", or "either".

    An id is remembered for one window at least and two at most, by the times of all events.
    """
    watermark, clock, last_seen, expected = -(10**9), -(10**9), {}, {}
    for offset, (id, time, _) in enumerate(rows):
        clock = max(clock, time)
        before = last_seen.get(id)
        if watermark - time > LATENESS:
            expected[offset] = "late"
            if before is not None and WINDOW <= clock - before <= 2 * WINDOW:
                # Whether it was remembered, and from when on it is now, is not known.
                break
        elif before is None or clock - before > 2 * WINDOW:
            expected[offset] = "pass"
            watermark = max(watermark, time)
        elif clock - before < WINDOW:
            expected[offset] = "duplicate id"
        else:
            expected[offset] = "either"
        # A duplicate that was recognised does not extend how long the id is remembered.
        if before is None or clock - before >= WINDOW:
            last_seen[id] = clock
    return expected


@st.composite
def streams(draw: st.DrawFn) -> list[Row]:
    """Events with rising times, late ones, jumps over one and several windows, and few ids."""
    rows: list[Row] = []
    now = 0
    for _ in range(draw(st.integers(0, 40))):
        now += draw(st.sampled_from([0, 0, 1, 2, 5, 12, 31, 100]))
        behind = draw(st.sampled_from([0, 0, 0, 1, LATENESS, LATENESS + 1, 40]))
        id = draw(st.sampled_from(["a", "b", "c", "d", "d\u0000"]))
        rows.append((id, now - behind, draw(st.integers(0, 2))))
    return rows


@given(streams(), st.lists(st.integers(0, 40), max_size=12))
@settings(max_examples=150, deadline=None)
def test_no_cut_changes_what_passes_or_the_dead_letters(rows, cuts):
    one_by_one = in_batches(rows, list(range(len(rows))))
    at_once = in_batches(rows, [])
    assert at_once == one_by_one
    assert in_batches(rows, cuts) == one_by_one


@given(streams(), st.lists(st.integers(0, 40), max_size=12))
@settings(max_examples=150, deadline=None)
def test_late_and_duplicate_events_are_removed_and_no_others(rows, cuts):
    passed, dead_letters = in_batches(rows, cuts)
    became = dict.fromkeys(passed, "pass") | {d.offset: d.reason for d in dead_letters}
    assert sorted(became) == list(range(len(rows)))
    assert len(passed) + len(dead_letters) == len(rows)
    for offset, must in expected_by_reference(rows).items():
        if must == "either":
            # From here on the reference does not know which of the two was remembered.
            break
        assert became[offset] == must, (offset, rows[: offset + 1])


def test_a_duplicate_in_the_same_batch_and_in_a_later_one():
    late_filter = new_filter()
    first = late_filter.apply(batch([("a", 0, 0), ("b", 0, 0), ("a", 1, 0)]))
    second = late_filter.apply(batch([("b", 2, 0), ("c", 2, 0)], 3))
    assert (first.ids, second.ids) == (["a", "b"], ["c"])
    assert [(d.offset, d.reason) for d in first.dead_letters] == [(2, "duplicate id")]
    assert [(d.offset, d.reason) for d in second.dead_letters] == [(3, "duplicate id")]


@pytest.mark.parametrize("start", range(0, WINDOW, 7))
def test_an_id_is_remembered_for_a_whole_window_wherever_that_starts(start):
    for gap in (0, 1, WINDOW // 2, WINDOW - 1):
        late_filter = new_filter()
        late_filter.apply(batch([("a", start, 0)]))
        assert not len(late_filter.apply(batch([("a", start + gap, 0)], 1))), (start, gap)


def test_an_id_may_come_again_after_two_windows():
    late_filter = new_filter()
    late_filter.apply(batch([("a", 0, 0)]))
    assert late_filter.apply(batch([("a", 2 * WINDOW, 0)], 1)).ids == ["a"]


def test_ids_are_compared_across_partitions():
    """An event without a key that is published twice may go to another one."""
    late_filter = new_filter()
    found = late_filter.apply(batch([("a", 0, 0), ("a", 0, 1), ("b", 0, 2)]))
    assert found.ids == ["a", "b"]
    assert late_filter.apply(batch([("b", 1, 0), ("c", 1, 1)], 3)).ids == ["c"]


def test_an_id_is_known_on_all_partitions_after_a_restart_and_on_one_that_moved():
    late_filter = new_filter()
    for partition in range(3):
        late_filter.restore(partition, Delta(), FIRST_MS)
    late_filter.apply(batch([("a", 0, 0), ("b", 1, 1), ("c", 2, 2)]))
    images = [decode(encode(late_filter.changes(partition))) for partition in range(3)]
    assert [sum(map(len, image.rows.values())) for image in images] == [1, 1, 1]
    again, other = new_filter(), new_filter()
    for partition, image in enumerate(images):
        again.restore(partition, image, late_filter.watermark_ms)
    other.restore(1, images[1], late_filter.watermark_ms)
    rows = [("a", 3, 1), ("b", 3, 2), ("c", 3, 0), ("d", 3, 0)]
    assert again.apply(batch(rows, 3)).ids == ["d"]
    assert other.apply(batch(rows, 3)).ids == ["a", "c", "d"]


def test_partitions_of_workers_that_were_not_equally_far_come_together():
    images, watermarks = [], []
    for partition, time in ((0, 0), (1, WINDOW + 5)):
        late_filter = new_filter()
        late_filter.restore(partition, Delta(), FIRST_MS)
        late_filter.apply(batch([(f"p{partition}", time, partition)]))
        images.append(late_filter.changes(partition))
        watermarks.append(late_filter.watermark_ms)
    together = new_filter()
    for partition in (1, 0):
        together.restore(partition, images[partition], watermarks[partition])
    found = together.apply(batch([("p0", 1, 1), ("p1", 2, 0), ("new", 2, 0)], 1))
    assert found.ids == ["new"]
    assert together.apply(batch([("p1", WINDOW + 6, 0)], 4)).ids == []


def test_a_duplicate_makes_no_other_event_late():
    late_filter = new_filter()
    found = late_filter.apply(batch([("a", 0, 0), ("a", 25, 0), ("b", 1, 0)]))
    assert found.ids == ["a", "b"]
    assert late_filter.watermark_ms == (T0_S + 1) * 1000
    assert late_filter.apply(batch([("b", 26, 0)], 3)).ids == []
    assert late_filter.apply(batch([("c", 2, 0)], 4)).ids == ["c"]


def test_many_ids_are_all_distinguished():
    late_filter = new_filter()
    rows = [(str(i), i // 5000, 0) for i in range(20_000)]
    assert len(late_filter.apply(batch(rows))) == 20_000
    assert len(late_filter.apply(batch(rows, 20_000))) == 0


def test_an_event_may_be_as_late_as_allowed_and_no_later():
    late_filter = new_filter()
    found = late_filter.apply(batch([("a", 100, 0), ("b", 90, 0), ("c", 89, 0), ("d", 100, 0)]))
    assert found.ids == ["a", "b", "d"]
    (letter,) = found.dead_letters
    assert letter.reason == "late"
    assert "11s behind" in letter.detail
    assert "10s" in letter.detail


def test_a_dead_letter_has_coordinates_and_payload():
    late_filter = new_filter()
    found = late_filter.apply(batch([("a", 0, 2), ("a", 0, 2)], 7))
    assert found.dead_letters == [
        DeadLetter(
            topic="t.events",
            partition=2,
            offset=8,
            reason="duplicate id",
            detail="an event with id 'a' came before",
            payload=json.dumps({"id": "a", "ts": T0_S, "card": "card 8", "number": 8, "y": 8}),
        )
    ]


def test_all_columns_of_rows_that_pass_stay_aligned():
    rows = [("a", 0, 0), ("a", 0, 0), ("b", 1, 1), ("a", 0, 0)]
    found = new_filter().apply(batch(rows))
    assert found.ids == ["a", "b"]
    assert found.times.tolist() == [T0_S * 1000, T0_S * 1000 + 1000]
    assert found.offsets.tolist() == [0, 2]
    assert found.partitions.tolist() == [0, 1]
    assert found.rows.times.tolist() == found.times.tolist()
    assert [json.loads(payload)["card"] for payload in found.payloads] == ["card 0", "card 2"]
    assert found.features[:, 0].tolist() == [0.0, 2.0]
    assert list(found.columns["card"]) == ["card 0", "card 2"]
    assert found.targets == [0.0, 2.0]
    assert found.order.tolist() == [0, 1]


def test_labels_all_pass():
    found = new_filter().apply(batch([("a", 0, 0), ("a", 0, 0), ("b", 0, 1)], labels=2))
    assert found.labels.ids == ["l0", "l1"]
    assert found.order.tolist() == [0, 1, 2, 3]


def test_the_watermark_is_the_greatest_time_and_never_falls():
    late_filter = new_filter()
    late_filter.apply(batch([("a", 50, 0), ("b", 45, 0)]))
    assert late_filter.watermark_ms == (T0_S + 50) * 1000
    late_filter.apply(batch([("c", 48, 0)], 2))
    assert late_filter.watermark_ms == (T0_S + 50) * 1000


def test_a_batch_without_events_passes():
    found = new_filter().apply(batch([], labels=3))
    assert len(found) == 0
    assert found.order.tolist() == [0, 1, 2]


def test_a_batch_without_labels_has_only_its_own_dead_letters():
    late_filter = new_filter()
    first = late_filter.apply(batch([("a", 0, 0), ("a", 0, 0)], labels=0))
    second = late_filter.apply(batch([("b", 0, 0)], 2, labels=0))
    assert (len(first.dead_letters), len(second.dead_letters)) == (1, 0)
