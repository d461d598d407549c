"""Two workers that were stopped for a week: what differs from two that never stopped, and how much.

Each worker merges what it reads by time, so that a label never comes before its own event, nor
after its wait. But while both are behind, one may be ahead of the other by anything up to a week:
an event may be predicted before or after what the other worker reads of that week.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anabranch.dataflows.bus import Bus, open_bus
from anabranch.dataflows.bus.partitioner import partition_of_key
from anabranch.dataflows.recovery.inspection import inspect
from anabranch.producers.simulators.faults import Faults
from anabranch.producers.simulators.payments import simulate_payments
from tests.dataflows.recovery.test_catching_up import DEAD, PREDICTIONS, SLOW, cut
from tests.support import payments_two_days
from tests.support.commands import Command
from tests.support.history import EVENTS, LABELS, Message, messages_of, publish, values
from tests.support.manual_cluster import PARTITIONS, WORKERS, Cluster, Learned

pytestmark = [pytest.mark.stress, pytest.mark.slow]

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
    url = f"sqlite:{path / 'bus'}"
    command = (
        "run",
        payments_two_days.__file__,
        "--bus",
        url,
        "--processes",
        "2",
        "--state",
        "state",
    )
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
            workers.send(signal.SIGTERM)
            done = workers.done(300)
            assert done.code == 0, done
    bus.close()
    found = [json.loads(value) for value in values(url, PREDICTIONS)]
    dead = [json.loads(value) for value in values(url, DEAD)]
    places = [place for place in inspect(path / "state").state_partitions if place.models]
    return Ran(
        {each["id"]: each for each in found},
        sorted((each["reason"], each["partition"], each["offset"]) for each in dead),
        places[0].models["LogisticRegression"],
    )


def events_in(piece: Sequence[Message]) -> int:
    return sum(message.topic == EVENTS for message in piece)


def wait_for(bus: Bus, predictions: int, workers: Command) -> None:
    deadline = time.monotonic() + 300
    while PREDICTIONS not in bus.topics() or sum(bus.end_offsets(PREDICTIONS)) < predictions:
        assert workers.process.poll() is None, workers.done()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@dataclass
class Served:
    """What two workers made: by event, and what each of them learned."""

    scores: dict[str, float]
    versions: dict[str, int]
    features: dict[str, dict[str, float]]
    learned: dict[str, list[Learned]]
    metrics: dict[str, float]


def run_manually(
    pieces: Pieces, week: Sequence[Message], after: Pieces, first: int | None
) -> Served:
    """In step before and after; in the week one reads after the other, unless ``first`` is None."""
    pipeline = payments_two_days.pipeline
    cluster = Cluster(pipeline)
    for piece in pieces:
        cluster.publish(piece)
        cluster.in_step()
    cluster.publish(week)
    if first is None:
        cluster.in_step()
    else:
        cluster.one_after_the_other(first)
    for piece in after:
        cluster.publish(piece)
        cluster.in_step()
    served = Served({}, {}, {}, cluster.learned(), {})
    for results in cluster.made:
        ids, rows = results.batch.ids, results.batch.features.tolist()
        served.scores |= dict(zip(ids, results.predictions.values.tolist(), strict=True))
        served.versions |= dict(zip(ids, results.versions, strict=True))
        served.features |= {
            id: dict(zip(pipeline.columns, row, strict=True))
            for id, row in zip(ids, rows, strict=True)
        }
    [metrics] = cluster.models.prequential.models.metrics.values()
    served.metrics = {name: metric.value for name, metric in metrics.items()}
    return served


@pytest.fixture(scope="module")
def never_stopped() -> Served:
    before, week, after = hourly()
    return run_manually([*before, *week], [], after, None)


def hourly() -> tuple[Pieces, Pieces, Pieces]:
    """Four days, the week, and what comes after it, in pieces of an hour."""
    pieces = cut(history(), *np.arange(1, 17 * 24) / 24)
    return pieces[:96], pieces[96:264], pieces[264:]


@pytest.mark.parametrize("first", [0, 1])
def test_at_worst_only_the_week_itself_differs_by_what_the_other_worker_read(
    never_stopped: Served, first: int
) -> None:
    """One reads its whole week before the other begins. Nothing can be further from in step."""
    before, week, after = hourly()
    missed = [message for piece in week for message in piece]
    stopped = run_manually(before, missed, after, first)
    assert {who: sorted(what) for who, what in stopped.learned.items()} == {
        who: sorted(what) for who, what in never_stopped.learned.items()
    }
    differences: dict[str, list[float]] = {"before": [], "week": [], "after": []}
    read_in_week = labels_in(missed)
    for id, (when, who) in when_and_who([*before, missed, *after]).items():
        differences[when].append(abs(stopped.scores[id] - never_stopped.scores[id]))
        more = stopped.versions[id] - never_stopped.versions[id]
        one, two = never_stopped.features[id], stopped.features[id]
        if when != "week":
            assert (more, two) == (0, one)
            continue
        # Who reads first knows no label of the other one's week; who reads last knows them all.
        others = read_in_week[1 - who]
        assert -others <= more <= 0 if who == first else 0 <= more <= others
        assert [two[n] for n in two if "merchant" not in n] == [
            one[n] for n in one if "merchant" not in n
        ]
    assert max(differences["before"]) == 0.0
    assert 0.01 < np.mean(differences["week"]) < 0.06
    assert np.mean(differences["after"]) < 0.015
    check_metrics(stopped.metrics, never_stopped.metrics)


def check_metrics(stopped: dict[str, float], never: dict[str, float]) -> None:
    """As the README states them. `ROCAUC` rests on some forty frauds here."""
    assert abs(stopped["LogLoss"] - never["LogLoss"]) < 0.01
    assert abs(stopped["Accuracy"] - never["Accuracy"]) < 0.005
    assert abs(stopped["ROCAUC"] - never["ROCAUC"]) < 0.1


def when_and_who(pieces: Pieces) -> dict[str, tuple[str, int]]:
    """Of each event: before, in or after the week, and the worker that reads it."""
    found: dict[str, tuple[str, int]] = {}
    parts = ["before"] * 96 + ["week"] + ["after"] * len(pieces)
    for part, piece in zip(parts, pieces, strict=False):
        for message in piece:
            if message.topic == EVENTS:
                found[json.loads(message.value)["id"]] = part, place_of(message) % WORKERS
    return found


def labels_in(messages: Sequence[Message]) -> list[int]:
    """How many labels each worker reads."""
    read = [place_of(message) % WORKERS for message in messages if message.topic == LABELS]
    return np.bincount(read, minlength=WORKERS).tolist()


@pytest.mark.timeout(900)
def test_two_processes_that_were_stopped_lose_nothing_and_stay_within_the_same_bounds(
    tmp_path: Path,
) -> None:
    pieces = cut(history(), *np.arange(0.5, 17, 0.5))
    missed = [message for piece in pieces[8:22] for message in piece]
    never = run(tmp_path / "never", [pieces])
    stopped = run(tmp_path / "stopped", [pieces[:8], [missed, *pieces[22:]]])
    assert never.predictions.keys() == stopped.predictions.keys()
    assert len(never.predictions) == sum(map(events_in, pieces))
    assert never.dead == stopped.dead
    for name, one in never.predictions.items():
        two = stopped.predictions[name]
        for feature, value in one["features"].items():
            if "merchant" not in feature:
                assert two["features"][feature] == pytest.approx(value, rel=1e-9, abs=1e-9)
    check_metrics(stopped.metrics, never.metrics)
    differences = [
        abs(one["score"] - stopped.predictions[name]["score"])
        for name, one in never.predictions.items()
    ]
    assert np.mean(differences) < 0.06
