"""The walk through events and labels in order: what waits, what is learned, what is too late.

One kernel; the parts that it is made of are inlined. Arrays come as tuples:

    events   keys, times, features, tags
    labels   keys, times, usable, codes
    pending  counters, table, keys, times, arrivals, order (marks, ends, links), flags, features,
             tags
    settled, early   `IdRing.arrays`; `more` holds a settled id's `how` and kept row, and an early
             label's time
    rules    `LabelRules.numbers`
    out      steps `(capacity, 5)`, refused events, refused labels, numbers of labels held
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from anabranch.state.compile import I32, I64, inlined, kernel
from anabranch.state.keys.id_table import EMPTY, find, find_home
from anabranch.state.labels.id_ring import FLOOR, HEAD, LIVE, TAIL, enter, forget, forget_oldest
from anabranch.state.labels.row_pool import (
    ARRIVALS,
    CAME,
    TOUCHED,
    WAITING,
    WAITS,
    WATERMARK,
    keep,
    leave,
    let_go,
    release,
    take_free,
)
from anabranch.state.labels.timeout_queue import append, begin_at, earliest_before

PREDICT, LEARN, DROPPED, ASSUMED, CORRECTED, EARLY, GIVEN_UP = 0, 1, 2, 3, 4, 5, 6
"""Kinds of steps; see `pending.Walk`."""

NO_VALUE, UNKNOWN, DUPLICATE, CONTRADICTS, LATE, TOO_OLD, CONFIRMS = 1, 2, 3, 4, 5, 6, 7
"""Why a label teaches nothing; see `pending.Walk`."""

WAIT, ASSUMES, ASSUMED_CODE, CORRECTS, KEEP_FOR, HOLD_FOR, MOST_HELD, MOST_SETTLED, UNTIL = range(9)
"""Fields of the rules; time moves on to `UNTIL` at most."""

_LABELLED, _BY_DEFAULT, _UNLABELLED = 0, 1, 2
_HOW: Final = 2  # bits


@inlined
def _put(steps: I64, step: int, kind: int, row: int, source: int, time: int, item: int) -> int:
    steps[step, 0], steps[step, 1], steps[step, 2] = kind, row, source
    steps[step, 3], steps[step, 4] = time, item
    return step + 1


@inlined
def _forget_settled(pending: Any, settled: Any) -> None:
    """Forget the oldest settled id, and let go the row that was kept for it."""
    slot = forget_oldest(settled)
    if slot >= 0:
        row = (settled[5][slot] >> _HOW) - 1
        if row >= 0:
            release(row, pending)


@inlined
def _settle(row: int, how: int, code: int, pending: Any, settled: Any, rules: I64) -> None:
    """Remember a row that has just left, and what was learned of it; keep it or let it go."""
    marks, table, keys, _, _, more, _ = settled
    if rules[KEEP_FOR] < 0:
        let_go(row, pending[0], pending[5][2])
        return
    if marks[HEAD] - marks[TAIL] == min(keys.size, rules[MOST_SETTLED]):
        _forget_settled(pending, settled)
    key = pending[2][row]
    at = find(key, table, keys)
    if table[at] != EMPTY:  # an id that came again, after it was settled
        older = (more[table[at]] >> _HOW) - 1
        if older >= 0:
            release(older, pending)
    link = 0
    if rules[CORRECTS]:
        keep(row, pending)
        link = row + 1
    else:
        let_go(row, pending[0], pending[5][2])
    enter(key, pending[0][WATERMARK], code, (link << _HOW) | how, settled)


@inlined
def _end_wait(
    row: int, item: int, step: int, pending: Any, settled: Any, rules: I64, steps: I64
) -> int:
    """Let go a row that has waited long enough."""
    leave(row, pending)
    if rules[ASSUMES]:
        _settle(row, _BY_DEFAULT, rules[ASSUMED_CODE], pending, settled, rules)
        kind = ASSUMED
    else:
        _settle(row, _UNLABELLED, 0, pending, settled, rules)
        kind = DROPPED
    return _put(steps, step, kind, row, -1, pending[3][row] + rules[WAIT], item)


@kernel
def _run_out(item: int, step: int, pending: Any, settled: Any, rules: I64, steps: I64) -> int:
    """Let go what has waited too long; the next step, or -1 - step where there is no room."""
    counters, _, _, times, _, order, _, _, _ = pending
    marks, keys, wait = settled[0], settled[2], rules[WAIT]
    limit = counters[WATERMARK] - wait
    if wait >= 0 and counters[WAITING] == 0:
        begin_at(limit, order[0])
    while wait >= 0:
        row = earliest_before(limit, times, order[0], order[1], order[2])
        if row < 0:
            break
        if step == len(steps) or (
            marks[HEAD] - marks[TAIL] == keys.size and keys.size < rules[MOST_SETTLED]
        ):
            return -1 - step
        step = _end_wait(row, item, step, pending, settled, rules, steps)
    return step


@kernel
def _give_up(
    item: int, step: int, watermark: int, most: int, early: Any, rules: I64, steps: I64
) -> int:
    """Give up labels held too long, or beyond `most`; as `_run_out`."""
    marks, table, keys, moments, _, _, _ = early
    while marks[TAIL] < marks[HEAD]:
        slot = marks[TAIL] % keys.size
        if table[find(keys[slot], table, keys)] == slot:
            in_time = moments[slot] + rules[HOLD_FOR] >= watermark
            if in_time and marks[LIVE] <= most:
                break
            if step == len(steps):
                return -1 - step
            row = 1 if in_time else 0
            step = _put(steps, step, GIVEN_UP, row, marks[TAIL], moments[slot], item)
        forget_oldest(early)
    return step


@inlined
def _take_event(
    item: int, step: int, events: Any, pending: Any, settled: Any, early: Any, rules: I64, out: Any
) -> int:
    """Store an event; a label that is held for it is learned at once."""
    event_keys, event_times, event_features, event_tags = events
    counters, table, keys, times, arrivals, (marks, ends, links), flags, features, tags = pending
    steps, refused = out[0], out[1]
    row = take_free(counters, links)
    for j in range(features.shape[1]):
        features[row, j] = event_features[item, j]
    times[row], tags[row], keys[row] = event_times[item], event_tags[item], event_keys[item]
    step = _put(steps, step, PREDICT, row, item, times[row], item)
    at = find(keys[row], table, keys)
    if table[at] != EMPTY:
        let_go(row, counters, links)
        refused[item] = 1
        return step
    table[at] = row
    flags[row] |= TOUCHED | CAME | WAITS
    arrivals[row] = np.uint32(counters[ARRIVALS] & 0xFFFFFFFF)
    counters[ARRIVALS] += 1
    counters[WAITING] += 1
    append(row, times[row], marks, ends, links)
    if early[0][LIVE] == 0:
        return step
    held = find(keys[row], early[1], early[2])
    slot = early[1][held]
    if slot == EMPTY:
        return step
    leave(row, pending)
    _settle(row, _LABELLED, early[4][slot], pending, settled, rules)
    number = early[0][TAIL] + (slot - early[0][TAIL]) % early[2].size
    step = _put(steps, step, EARLY, row, number, max(early[5][slot], times[row]), item)
    forget(held, early)
    return step


@inlined
def _judge_again(
    label: int, slot: int, step: int, item: int, labels: Any, settled: Any, rules: I64, out: Any
) -> int:
    """A label for an id that is settled: it repeats, corrects, or comes too late."""
    codes, more, touched = settled[4], settled[5], settled[6]
    how, row = more[slot] & 3, (more[slot] >> _HOW) - 1
    agrees = codes[slot] == labels[3][label]
    if rules[CORRECTS] and not agrees:
        codes[slot], more[slot] = labels[3][label], (row + 1) << _HOW | _LABELLED
        touched[slot] = 1
        return _put(out[0], step, CORRECTED, row, label, labels[1][label], item)
    if how == _LABELLED:
        out[2][label] = DUPLICATE if agrees else CONTRADICTS
    elif rules[CORRECTS]:
        out[2][label] = CONFIRMS
        more[slot] = (row + 1) << _HOW | _LABELLED
        touched[slot] = 1
    else:
        out[2][label] = LATE
    return step


@inlined
def _hold(
    label: int, step: int, item: int, watermark: int, labels: Any, early: Any, rules: I64, out: Any
) -> int:
    """A label for an id that is not known: it is kept for its event, unless that must be gone."""
    keys, label_times, _, codes = labels
    if rules[WAIT] >= 0 and label_times[label] + rules[WAIT] < watermark:
        out[2][label] = TOO_OLD
        return step
    if rules[HOLD_FOR] <= 0 or rules[MOST_HELD] <= 0:
        out[2][label] = UNKNOWN
        return step
    slot = early[1][find(keys[label], early[1], early[2])]
    if slot != EMPTY:
        out[2][label] = DUPLICATE if early[4][slot] == codes[label] else CONTRADICTS
        return step
    step = _give_up(item, step, watermark, rules[MOST_HELD] - 1, early, rules, out[0])
    out[3][label] = enter(keys[label], watermark, codes[label], label_times[label], early)
    return step


@inlined
def _take_label(
    item: int, label: int, step: int, labels: Any, pending: Any, settled: Any, early: Any,
    rules: I64, out: Any,
) -> int:  # fmt: skip
    """Find what a label judges."""
    key = labels[0][label]
    if not labels[2][label]:
        out[2][label] = NO_VALUE
        return step
    row = pending[1][find(key, pending[1], pending[2])]
    if row != EMPTY and 0 <= rules[WAIT] < labels[1][label] - pending[3][row]:
        # Time is held back (`UNTIL`), and so the row is still there; but the label is too late.
        step = _end_wait(row, item, step, pending, settled, rules, out[0])
        row = EMPTY
    if row != EMPTY:
        leave(row, pending)
        _settle(row, _LABELLED, labels[3][label], pending, settled, rules)
        time = max(labels[1][label], pending[3][row])
        return _put(out[0], step, LEARN, row, label, time, item)
    slot = settled[1][find(key, settled[1], settled[2])]
    if slot != EMPTY:
        return _judge_again(label, slot, step, item, labels, settled, rules, out)
    return _hold(label, step, item, pending[0][WATERMARK], labels, early, rules, out)


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
def read_ahead(label_keys: Any, pending: Any, settled: Any) -> Any:
    """Look at all that the labels will need; the sum means nothing.

    Where these rows are nobody can guess, so each costs as much as the memory is slow. Here no read
    waits for the one before, and by the time of the walk they are near.
    """
    _, table, keys, times, _, (_, _, links), flags, _, tags = pending
    marks, ring_table, ring_keys = settled[0], settled[1], settled[2]
    total: Any = np.int64(0)
    for i in range(label_keys.size):
        total += table[find_home(label_keys[i], table)]
        total += ring_table[find_home(label_keys[i], ring_table)]
    for i in range(label_keys.size):
        total += _read_run(label_keys[i], table, keys)
        total += _read_run(label_keys[i], ring_table, ring_keys)
    for i in range(label_keys.size):
        row = table[find(label_keys[i], table, keys)]
        if row != EMPTY:
            total += times[row] + tags[row] + flags[row]
            for side in range(2):
                total += links[max(links[row, side], 0), 1 - side]
    # Each may make the ring forget its oldest.
    for number in range(marks[TAIL], min(marks[HEAD], marks[TAIL] + label_keys.size)):
        total += _read_run(ring_keys[number % ring_keys.size], ring_table, ring_keys)
    return total


@kernel
def walk(
    start: int, order: I64, events: Any, labels: Any, pending: Any, settled: Any, early: Any,
    rules: I64, out: Any,
) -> tuple[int, int]:  # fmt: skip
    """Work through `order[start:]`; returns how far it came, and how many steps it wrote.

    It stops early when a ring must grow, or when there is no room for an item's two steps.
    """
    counters, steps = pending[0], out[0]
    count = events[1].size
    step = 0
    for position in range(start, order.size):
        item = order[position]
        moment = events[1][item] if item < count else labels[1][item - count]
        moment = min(moment, rules[UNTIL])
        if moment > counters[WATERMARK]:
            counters[WATERMARK] = moment
        watermark = counters[WATERMARK]
        step = _run_out(item, step, pending, settled, rules, steps)
        if step < 0:
            return position, -1 - step
        marks = settled[0]
        while marks[TAIL] < marks[HEAD] and (
            settled[3][marks[TAIL] % settled[2].size] + rules[KEEP_FOR] < watermark
        ):
            _forget_settled(pending, settled)
        step = _give_up(item, step, watermark, rules[MOST_HELD], early, rules, steps)
        if step < 0:
            return position, -1 - step
        room = settled[2].size
        must_grow = marks[HEAD] - marks[TAIL] == room and room < rules[MOST_SETTLED]
        if item >= count and rules[HOLD_FOR] > 0:
            must_grow |= early[0][HEAD] - early[0][FLOOR] == early[2].size
        if must_grow or step + 2 > len(steps):
            return position, step
        if item < count:
            step = _take_event(item, step, events, pending, settled, early, rules, out)
        else:
            step = _take_label(
                item, item - count, step, labels, pending, settled, early, rules, out
            )
    return order.size, step
