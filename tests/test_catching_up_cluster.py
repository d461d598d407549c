"""Two workers that stood still for a week: what differs from two that never stopped, and how much.

Each worker merges what it reads by time, so that a label never comes before its own event, nor
after its wait. But while both are behind, one may be ahead of the other by anything up to a week:
an event may be predicted before or after what the other worker reads of that week.
"""

from __future__ import annotations

import json
import signal
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataflows.bus import Bus, open_bus
from dataflows.bus.partitioner import partition_of_key
from dataflows.recovery.inspection import inspect
from producers.faults import Faults
from producers.payments import simulate_payments
from tests.commands import Command
from tests.history import EVENTS, LABELS, Message, messages_of, publish, values
from tests.test_catching_up import DAY_MS, DEAD, PREDICTIONS, SLOW, cut

PARTITIONS = 4
PIPELINE = """
from dataclasses import replace
from dataflows import target, window
from dataflows.pipelines.payments import pipeline as shipped

pipeline = replace(
    shipped,
    features=[*shipped.features, window("merchant", target(), over=("1d", "7d"))],
    label=replace(shipped.label, wait="2d"),
    with_features=True,
)
"""
Pieces = Sequence[Sequence[Message]]


def history() -> list[Message]:
    """Some two weeks; the last message of each partition is an event."""
    batches = simulate_payments(
        events=1800, seed=8, settings=SLOW, faults=Faults(out_of_order=0.05)
    )
    found = [message for batch in batches for message in messages_of(batch)]
    found.sort(key=lambda message: message.time)
    last = {place_of(each): each.time for each in found if each.topic == EVENTS}
    return [each for each in found if each.topic == EVENTS or each.time < last[place_of(each)]]


def place_of(message: Message) -> int:
    return partition_of_key(message.key or b"", PARTITIONS)


@dataclass
class Ran:
    """What came of a run: predictions by id, the dead letters, and the metrics at its end."""

    predictions: dict[str, Any]
    dead: list[tuple[str, int, int]]
    metrics: dict[str, float]


def run(path: Path, sittings: Sequence[Pieces]) -> Ran:
    """Start two workers for each sitting; its first piece is there then, the others come live."""
    path.mkdir()
    (path / "two_days.py").write_text(PIPELINE)
    url = f"sqlite:{path / 'bus'}"
    command = ("run", "two_days.py", "--bus", url, "--processes", "2", "--state", "state")
    published = 0
    bus = open_bus(url)
    for first, *others in sittings:
        publish(url, first, PARTITIONS)
        published += events_in(first)
        with Command(path, *command) as workers:
            wait_for(bus, published, workers)
            for piece in others:
                publish(url, piece, PARTITIONS)
                published += events_in(piece)
                wait_for(bus, published, workers)
            workers.tell(signal.SIGTERM)
            done = workers.done()
            assert done.code == 0, done
    bus.close()
    found = [json.loads(value) for value in values(url, PREDICTIONS)]
    dead = [json.loads(value) for value in values(url, DEAD)]
    places = [place for place in inspect(path / "state").places if place.models]
    return Ran(
        {each["id"]: each for each in found},
        sorted((each["reason"], each["partition"], each["offset"]) for each in dead),
        places[0].models["LogisticRegression"],
    )


def events_in(piece: Sequence[Message]) -> int:
    return sum(message.topic == EVENTS for message in piece)


def wait_for(bus: Bus, predictions: int, workers: Command) -> None:
    deadline = time.monotonic() + 120
    while PREDICTIONS not in bus.topics() or sum(bus.end_offsets(PREDICTIONS)) < predictions:
        assert workers.process.poll() is None, workers.done()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.timeout(400)
def test_what_differs_is_bounded_by_what_the_other_worker_read_in_that_week(
    tmp_path: Path,
) -> None:
    messages = history()
    moments = np.arange(0.25, (messages[-1].time - messages[0].time) / DAY_MS, 0.25)
    pieces = cut(messages, *moments)
    before, week, after = pieces[:16], pieces[16:44], pieces[44:]
    missed = [message for piece in week for message in piece]
    never = run(tmp_path / "never", [pieces])
    stopped = run(tmp_path / "stopped", [before, [missed, *after]])

    # Nothing is lost and nothing is learned that would not have been.
    assert never.predictions.keys() == stopped.predictions.keys()
    assert len(never.predictions) == events_in(messages)
    assert stopped.dead == never.dead
    assert {reason for reason, *_ in never.dead} == {"label after its wait"}
    # What is of one partition is the same; labels learned differ by those of others, in a piece.
    bounds = [piece[0].time for piece in (*before, missed, *after)]
    for name, one in never.predictions.items():
        two = stopped.predictions[name]
        for feature, value in one["features"].items():
            if not feature.startswith("merchant"):
                assert two["features"][feature] == pytest.approx(value, rel=1e-9, abs=1e-9)
        number = bisect_right(bounds, one["ts"]) - 1
    assert number
    report(never, stopped, messages[0].time, [4, 11, 30])


def report(never: Ran, stopped: Ran, start: int, days: list[int]) -> None:
    low = 0
    for high in days:
        pairs = [
            (one, stopped.predictions[name])
            for name, one in never.predictions.items()
            if low <= (one["ts"] - start) / DAY_MS < high
        ]
        scores = np.array([abs(one["score"] - two["score"]) for one, two in pairs])
        versions = np.array([two["version"] - one["version"] for one, two in pairs])
        print(low, high, len(pairs), scores.mean(), scores.max(), versions.min(), versions.max())
        differing = {
            n: sum(abs(o["features"][n] - t["features"][n]) > 1e-9 for o, t in pairs)
            for n in pairs[0][0]["features"]
        }
        print({n: k for n, k in differing.items() if k})
        low = high
    print(never.metrics, stopped.metrics, LABELS)
