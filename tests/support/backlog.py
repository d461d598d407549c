"""A backlog for crash tests: simulated payments and labels, with everything that can be wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np

from anabranch.producers.batch import Batch
from anabranch.producers.simulators.by_name import simulate
from anabranch.producers.simulators.faults import Faults

FAULTS = Faults(malformed=0.005, duplicates=0.005, out_of_order=0.02)
TWO_DAYS_MS = 2 * 24 * 3_600_000
LATE_EVERY = 200


def backlog(events: int, seed: int, faulty: bool) -> Iterator[Batch]:
    """Payments and their labels; ``faulty``: some are malformed, duplicate, unordered or late."""
    batches = simulate("payments", seed=seed, events=events, faults=FAULTS if faulty else None)
    for batch in batches:
        yield batch
        if faulty:
            yield _late(batch)


def _late(batch: Batch) -> Batch:
    """Payments of two days ago that arrive now, with ids of their own."""
    events = batch.only("events")
    values, keys = [], []
    for row in range(0, len(events), LATE_EVERY):
        try:
            event = json.loads(events.values[row])
        except ValueError:
            continue
        if isinstance(event.get("ts"), int):
            event |= {"id": f"late-{event['id']}", "ts": event["ts"] - TWO_DAYS_MS}
            values.append(json.dumps(event).encode())
            keys.append(events.keys[row])
    now = int(events.times[-1]) if len(events) else 0
    return Batch.of("events", values, keys, np.full(len(values), now, np.int64))
