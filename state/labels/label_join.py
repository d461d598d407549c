"""The join of events and labels, in order: what waits, what is learned, what is too late.

One kernel; most of its parts are inlined. From Python its arrays come as plain tuples, since the
dispatcher needs 2 µs to recognise each named tuple, and are named on entry, which is free.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anabranch.state.compile import F64, I32, I64, U8, inlined, kernel
from anabranch.state.keys.id_table import EMPTY, find, find_home
from anabranch.state.labels.id_ring import (
    FLOOR,
    HEAD,
    LIVE,
    TAIL,
    RingArrays,
    add,
    evict_oldest,
    remove,
)
from anabranch.state.labels.row_pool import (
    ARRIVALS,
    NEW,
    TOUCHED,
    WAITING,
    WAITS,
    WATERMARK,
    PendingArrays,
    allocate_row,
    end_wait,
    free_kept_row,
    free_row,
    keep_row,
)
from anabranch.state.labels.timeout_queue import advance_empty, append, earliest_before

PREDICT, LEARN, DROPPED, DEFAULTED, UPDATED, EARLY, EXPIRED = 0, 1, 2, 3, 4, 5, 6
"""Kinds of steps; see `pending_store.JoinResult`."""

NO_EVENT, NO_SPACE, AFTER_TIMEOUT = 0, 1, 2
"""Why a label expires; in place of the row of its step."""

NO_VALUE, UNKNOWN, DUPLICATE, CONTRADICTS, LATE, TOO_OLD, CONFIRMS = 1, 2, 3, 4, 5, 6, 7
"""Why a label is not learned; see `pending_store.JoinResult`."""

(
    TIMEOUT,
    HAS_DEFAULT,
    DEFAULT_CODE,
    UPDATES,
    KEEP_FOR,
    EARLY_FOR,
    MAX_EARLY,
    MAX_RESOLVED,
    TIME_LIMIT,
) = range(9)
"""Cells of the rules, see `LabelLimits.numbers`; event time advances to `TIME_LIMIT` at most."""

# How an id was resolved, in the lowest bits of `RingArrays.more`; above them is 1 + the kept row.
_LABELLED, _BY_DEFAULT, _UNLABELLED = 0, 1, 2
_HOW_BITS: Final = 2


class EventColumns(NamedTuple):
    """The events of a call, `(events,)` each."""

    keys: NDArray[np.uint64]
    times: I64
    features: F64
    tags: I32


class LabelColumns(NamedTuple):
    """The labels of a call, `(labels,)` each."""

    keys: NDArray[np.uint64]
    times: I64
    usable: U8
    codes: I64


class JoinState(NamedTuple):
    """What the join keeps between calls."""

    pending: PendingArrays
    resolved: RingArrays
    """Ids that have their label or timed out; `more` is how, and which row is kept."""
    early: RingArrays
    """Labels whose event has not arrived; `more` is the label's time."""
    rules: I64


class JoinOutput(NamedTuple):
    """What the kernel writes."""

    steps: I64
    """`(capacity, 5)`: kind, row, source, time, item."""
    rejected_events: NDArray[np.bool_]
    rejected_labels: U8
    early_numbers: I64
    """Number under which each label is buffered, or -1."""


@inlined
def _write_step(
    steps: I64, step: int, kind: int, row: int, source: int, time: int, item: int
) -> int:
    steps[step, 0], steps[step, 1], steps[step, 2] = kind, row, source
    steps[step, 3], steps[step, 4] = time, item
    return step + 1


@inlined
def _evict_resolved(state: JoinState) -> None:
    """Forget the oldest resolved id, and free the row that was kept for it."""
    slot = evict_oldest(state.resolved)
    if slot >= 0:
        row = (state.resolved.more[slot] >> _HOW_BITS) - 1
        if row >= 0:
            free_kept_row(row, state.pending)


@inlined
def _resolve(row: int, how: int, code: int, state: JoinState) -> None:
    """Remember the id of a row that no longer waits, and its label; keep the row or free it."""
    pending, resolved, rules = state.pending, state.resolved, state.rules
    if rules[KEEP_FOR] < 0:
        free_row(row, pending)
        return
    capacity = min(resolved.keys.size, rules[MAX_RESOLVED])
    if resolved.marks[HEAD] - resolved.marks[TAIL] == capacity:
        _evict_resolved(state)
    key = pending.keys[row]
    # Where event time is limited, a row may be ahead of it: its id is remembered from then on.
    moment = max(pending.counters[WATERMARK], pending.times[row])
    at = find(key, resolved.table, resolved.keys)
    if resolved.table[at] != EMPTY:  # an id that was used again after it was resolved
        older = (resolved.more[resolved.table[at]] >> _HOW_BITS) - 1
        if older >= 0:
            free_kept_row(older, pending)
    link = 0
    if rules[UPDATES]:
        keep_row(row, pending)
        link = row + 1
    else:
        free_row(row, pending)
    add(key, moment, code, (link << _HOW_BITS) | how, resolved)


@inlined
def _time_out(row: int, item: int, step: int, state: JoinState, steps: I64) -> int:
    """End the wait of a row whose timeout is over."""
    end_wait(row, state.pending)
    if state.rules[HAS_DEFAULT]:
        _resolve(row, _BY_DEFAULT, state.rules[DEFAULT_CODE], state)
        kind = DEFAULTED
    else:
        _resolve(row, _UNLABELLED, 0, state)
        kind = DROPPED
    time = state.pending.times[row] + state.rules[TIMEOUT]
    return _write_step(steps, step, kind, row, -1, time, item)


@kernel
def _run_timeouts(item: int, step: int, state: JoinState, steps: I64) -> int:
    """End the waits that are over; the next step, or -1 - step where there is no space."""
    pending, resolved, rules = state.pending, state.resolved, state.rules
    timeout = rules[TIMEOUT]
    limit = pending.counters[WATERMARK] - timeout
    if timeout >= 0 and pending.counters[WAITING] == 0:
        advance_empty(limit, pending.marks)
    while timeout >= 0:
        row = earliest_before(limit, pending.times, pending.marks, pending.ends, pending.links)
        if row < 0:
            break
        size = resolved.keys.size
        full = resolved.marks[HEAD] - resolved.marks[TAIL] == size and size < rules[MAX_RESOLVED]
        if step == len(steps) or full:
            return -1 - step
        step = _time_out(row, item, step, state, steps)
    return step


@kernel
def _expire_early(
    item: int, step: int, watermark: int, max_early: int, early: RingArrays, rules: I64, steps: I64
) -> int:
    """Expire labels buffered too long, or beyond `max_early`; returns as `_run_timeouts` does."""
    marks = early.marks
    while marks[TAIL] < marks[HEAD]:
        slot = marks[TAIL] % early.keys.size
        if early.table[find(early.keys[slot], early.table, early.keys)] == slot:
            in_time = early.moments[slot] + rules[EARLY_FOR] >= watermark
            if in_time and marks[LIVE] <= max_early:
                break
            if step == len(steps):
                return -1 - step
            row = NO_SPACE if in_time else NO_EVENT
            step = _write_step(steps, step, EXPIRED, row, marks[TAIL], early.moments[slot], item)
        evict_oldest(early)
    return step


@inlined
def _add_event(
    item: int, step: int, events: EventColumns, state: JoinState, out: JoinOutput
) -> int:
    """Store an event; a label that is buffered for it is learned at once."""
    pending, early = state.pending, state.early
    row = allocate_row(pending)
    for j in range(pending.features.shape[1]):
        pending.features[row, j] = events.features[item, j]
    key, time = events.keys[item], events.times[item]
    pending.times[row], pending.tags[row], pending.keys[row] = time, events.tags[item], key
    step = _write_step(out.steps, step, PREDICT, row, item, time, item)
    at = find(key, pending.table, pending.keys)
    if pending.table[at] != EMPTY:
        free_row(row, pending)
        out.rejected_events[item] = 1
        return step
    pending.table[at] = row
    pending.flags[row] |= TOUCHED | NEW | WAITS
    pending.arrivals[row] = np.uint32(pending.counters[ARRIVALS] & 0xFFFFFFFF)
    pending.counters[ARRIVALS] += 1
    pending.counters[WAITING] += 1
    append(row, time, pending.marks, pending.ends, pending.links)
    if early.marks[LIVE] == 0:
        return step
    cell = find(key, early.table, early.keys)
    slot = early.table[cell]
    if slot == EMPTY:
        return step
    number = early.marks[TAIL] + (slot - early.marks[TAIL]) % early.keys.size
    label_time, code, timeout = early.more[slot], early.codes[slot], state.rules[TIMEOUT]
    remove(cell, early)
    if 0 <= timeout < label_time - time and not state.rules[UPDATES]:
        # Another worker read it long before the event; it is too late all the same.
        step = _time_out(row, item, step, state, out.steps)
        return _write_step(out.steps, step, EXPIRED, AFTER_TIMEOUT, number, label_time, item)
    end_wait(row, pending)
    _resolve(row, _LABELLED, code, state)
    return _write_step(out.steps, step, EARLY, row, number, max(label_time, time), item)


@inlined
def _repeat_label(
    label: int, slot: int, step: int, item: int, labels: LabelColumns, state: JoinState,
    out: JoinOutput,
) -> int:  # fmt: skip
    """A label for an id that is resolved: a repetition, an update, or too late."""
    resolved = state.resolved
    how = resolved.more[slot] & ((1 << _HOW_BITS) - 1)
    row = (resolved.more[slot] >> _HOW_BITS) - 1
    agrees = resolved.codes[slot] == labels.codes[label]
    if state.rules[UPDATES] and not agrees:
        resolved.codes[slot] = labels.codes[label]
        resolved.more[slot] = (row + 1) << _HOW_BITS | _LABELLED
        resolved.touched[slot] = 1
        return _write_step(out.steps, step, UPDATED, row, label, labels.times[label], item)
    if how == _LABELLED:
        out.rejected_labels[label] = DUPLICATE if agrees else CONTRADICTS
    elif state.rules[UPDATES]:
        out.rejected_labels[label] = CONFIRMS
        resolved.more[slot] = (row + 1) << _HOW_BITS | _LABELLED
        resolved.touched[slot] = 1
    else:
        out.rejected_labels[label] = LATE
    return step


@inlined
def _buffer_early(
    label: int, step: int, item: int, labels: LabelColumns, state: JoinState, out: JoinOutput
) -> int:
    """A label for an unknown id: it is buffered for its event, unless that must have expired."""
    early, rules = state.early, state.rules
    watermark = state.pending.counters[WATERMARK]
    key, time, code = labels.keys[label], labels.times[label], labels.codes[label]
    if rules[TIMEOUT] >= 0 and time + rules[TIMEOUT] < watermark:
        out.rejected_labels[label] = TOO_OLD
        return step
    if rules[EARLY_FOR] <= 0 or rules[MAX_EARLY] <= 0:
        out.rejected_labels[label] = UNKNOWN
        return step
    slot = early.table[find(key, early.table, early.keys)]
    if slot != EMPTY:
        out.rejected_labels[label] = DUPLICATE if early.codes[slot] == code else CONTRADICTS
        return step
    step = _expire_early(item, step, watermark, rules[MAX_EARLY] - 1, early, rules, out.steps)
    # Where event time is limited, a label may be ahead of it, and its event as far.
    out.early_numbers[label] = add(key, max(watermark, time), code, time, early)
    return step


@inlined
def _join_label(
    item: int, label: int, step: int, labels: LabelColumns, state: JoinState, out: JoinOutput
) -> int:
    """Find the prediction that a label belongs to."""
    pending, resolved, timeout = state.pending, state.resolved, state.rules[TIMEOUT]
    key, time = labels.keys[label], labels.times[label]
    if not labels.usable[label]:
        out.rejected_labels[label] = NO_VALUE
        return step
    row = pending.table[find(key, pending.table, pending.keys)]
    if row != EMPTY and 0 <= timeout < time - pending.times[row]:
        # Event time is limited (`TIME_LIMIT`), so the row still waits; but the label is too late.
        step = _time_out(row, item, step, state, out.steps)
        row = EMPTY
    if row != EMPTY:
        end_wait(row, pending)
        _resolve(row, _LABELLED, labels.codes[label], state)
        time = max(time, pending.times[row])
        return _write_step(out.steps, step, LEARN, row, label, time, item)
    slot = resolved.table[find(key, resolved.table, resolved.keys)]
    if slot != EMPTY:
        return _repeat_label(label, slot, step, item, labels, state, out)
    return _buffer_early(label, step, item, labels, state, out)


@inlined
def _read_run(key: np.uint64, table: I32, keys: Any) -> Any:
    """Read all cells from the home of `key` to the next empty one."""
    total: Any = np.int64(0)
    at = find_home(key, table)
    while table[at] != EMPTY:
        total += np.int64(keys[table[at]])
        at += 1
        at = at if at < table.size else np.int64(0)
    return total


@kernel
def read_ahead(label_keys: Any, pending_arrays: Any, resolved_arrays: Any) -> Any:
    """Read all memory that the labels will need, to have it in the cache; the sum means nothing.

    Rows are accessed in an unpredictable order, so each access costs a cache miss. Here no read
    depends on the one before, so that the misses overlap.
    """
    pending, resolved = PendingArrays(*pending_arrays), RingArrays(*resolved_arrays)
    marks = resolved.marks
    total: Any = np.int64(0)
    for i in range(label_keys.size):
        total += pending.table[find_home(label_keys[i], pending.table)]
        total += resolved.table[find_home(label_keys[i], resolved.table)]
    for i in range(label_keys.size):
        total += _read_run(label_keys[i], pending.table, pending.keys)
        total += _read_run(label_keys[i], resolved.table, resolved.keys)
    for i in range(label_keys.size):
        row = pending.table[find(label_keys[i], pending.table, pending.keys)]
        if row != EMPTY:
            total += pending.times[row] + pending.tags[row] + pending.flags[row]
            for side in range(2):
                total += pending.links[max(pending.links[row, side], 0), 1 - side]
    # Each may evict the oldest entry of the ring.
    for number in range(marks[TAIL], min(marks[HEAD], marks[TAIL] + label_keys.size)):
        key = resolved.keys[number % resolved.keys.size]
        total += _read_run(key, resolved.table, resolved.keys)
    return total


@kernel
def join(
    start: int, order: I64, event_columns: Any, label_columns: Any, pending: Any, resolved: Any,
    early: Any, rules: I64, out: Any,
) -> tuple[int, int]:  # fmt: skip
    """Process `order[start:]`; returns the position reached, and how many steps were written.

    It stops early when a ring must grow, or when there is no space for an item's three steps.
    """
    state = JoinState(PendingArrays(*pending), RingArrays(*resolved), RingArrays(*early), rules)
    return _join(
        start, order, EventColumns(*event_columns), LabelColumns(*label_columns), state,
        JoinOutput(*out),
    )  # fmt: skip


@inlined
def _join(
    start: int, order: I64, events: EventColumns, labels: LabelColumns, state: JoinState,
    out: JoinOutput,
) -> tuple[int, int]:  # fmt: skip
    counters, rules, steps = state.pending.counters, state.rules, out.steps
    resolved, early = state.resolved, state.early
    count = events.times.size
    step = 0
    for position in range(start, order.size):
        item = order[position]
        moment = events.times[item] if item < count else labels.times[item - count]
        moment = min(moment, rules[TIME_LIMIT])
        if moment > counters[WATERMARK]:
            counters[WATERMARK] = moment
        watermark = counters[WATERMARK]
        step = _run_timeouts(item, step, state, steps)
        if step < 0:
            return position, -1 - step
        marks = resolved.marks
        while marks[TAIL] < marks[HEAD] and (
            resolved.moments[marks[TAIL] % resolved.keys.size] + rules[KEEP_FOR] < watermark
        ):
            _evict_resolved(state)
        step = _expire_early(item, step, watermark, rules[MAX_EARLY], early, rules, steps)
        if step < 0:
            return position, -1 - step
        size = resolved.keys.size
        must_grow = marks[HEAD] - marks[TAIL] == size and size < rules[MAX_RESOLVED]
        if item >= count and rules[EARLY_FOR] > 0:
            must_grow |= early.marks[HEAD] - early.marks[FLOOR] == early.keys.size
        if must_grow or step + 3 > len(steps):
            return position, step
        if item < count:
            step = _add_event(item, step, events, state, out)
        else:
            step = _join_label(item, item - count, step, labels, state, out)
    return order.size, step
