"""The result of a run (outputs, windows, models), and checks that it is correct."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections import Counter
from collections.abc import Iterator
from types import MethodType
from typing import Any

import numpy as np
from river.proba.base import Distribution

from anabranch.dataflows.bus import TopicPartition, open_bus
from anabranch.dataflows.recovery.inspection import inspect
from anabranch.dataflows.recovery.state_partition import DATABASE
from anabranch.dataflows.sharding.entity_windows import EntityWindows
from anabranch.dataflows.steps.learning import label_windows
from anabranch.dataflows.steps.model_step import ModelStep
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics
from anabranch.models.prequential.label_windows import LABEL_WINDOWS
from anabranch.state.store.read_only import ReadOnlyStore
from tests.support.crash_trial import Trial
from tests.support.window_fingerprint import fingerprint

Row = dict[str, Any]
Where = tuple[int, int]
"""Partition and offset of an event."""


def messages(trial: Trial, topic: str) -> list[list[bytes]]:
    """All messages of a topic, by partition."""
    bus = open_bus(trial.url)
    try:
        ends = bus.end_offsets(topic)
        found: list[list[bytes]] = [[] for _ in ends]
        starts = bus.start_offsets(topic)
        places = {TopicPartition(topic, number): at for number, at in enumerate(starts)}
        reader = bus.reader(places)
        while any(reader.positions()[at] < ends[at.partition] for at in places):
            for piece in reader.poll(10_000, 0.5):
                found[piece.partition] += piece.values
        reader.close()
        return found
    finally:
        bus.close()


def rows(trial: Trial, topic: str) -> Iterator[Row]:
    """The messages of an output topic, partition by partition."""
    for partition in messages(trial, topic):
        yield from map(json.loads, partition)


def window_fingerprints(trial: Trial, state: str) -> dict[str, list[str]]:
    """By entity; for the layout of a single worker."""
    manifest = inspect(trial.directory / state).manifest
    place = trial.directory / state / f"layout-{manifest.layout}" / "windows"
    image = ReadOnlyStore(place / DATABASE).image()
    found = {}
    for entity in trial.declared.entities:
        windows = EntityWindows(trial.declared, entity, False)
        windows.restore(image.part(entity))
        found[entity] = [fingerprint(each) for _, each in windows.groups]
    return found


def label_window_fingerprints(trial: Trial, state: str) -> dict[str, str]:
    """By entity."""
    windows = label_windows(trial.declared)
    if windows is None:
        return {}
    image = ReadOnlyStore(trial.directory / state / "models" / DATABASE).image()
    windows.restore(image.part(LABEL_WINDOWS))
    return {entity: fingerprint(each) for entity, each in windows.states.items()}


def model_digests(trial: Trial, state: str) -> dict[str, str]:
    """Digests of learners, metrics, monitors and pending predictions."""
    step = ModelStep(trial.declared, WorkerMetrics(trial.declared.name)).prequential
    image = ReadOnlyStore(trial.directory / state / "models" / DATABASE).image()
    step.restore(image)
    models = step.models
    waiting = image.rows["pending/state"].columns["waits"]
    return {
        **{f"model {name}": _digest(learner) for name, learner in models.learners.items()},
        "metrics": _digest(models.metrics),
        "values": repr(
            {n: {k: m.value for k, m in of.items()} for n, of in models.metrics.items()}
        ),
        "monitors": _digest(models.monitors.watches),
        "slices": repr(models.slices.report()),
        "waiting": str(int(waiting.sum())),
    }


class _Values(pickle.Pickler):
    """Pickles values without object identity.

    River's distributions hold a randomly seeded generator, which is not used, and its detectors
    hold bound methods.
    """

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, 5)
        self.fast = True

    def reducer_override(self, found: Any) -> Any:
        if isinstance(found, MethodType):
            return str, (found.__name__,)
        if not isinstance(found, Distribution) or "_rng" not in vars(found):
            return NotImplemented
        rest = {name: value for name, value in vars(found).items() if name != "_rng"}
        return type(found), (), rest


def _digest(state: Any) -> str:
    file = io.BytesIO()
    _Values(file).dump(state)
    return hashlib.blake2b(file.getvalue(), digest_size=16).hexdigest()


def check_once(trial: Trial) -> None:
    """Assert that each event has one prediction or dead letter, and each message its own cause."""
    topics = trial.declared.topics
    seen = Counter((row["partition"], row["offset"]) for row in rows(trial, topics.predictions))
    doubled = [at for at, times in seen.items() if times > 1]
    assert not doubled, f"{len(doubled)} events were predicted twice, first {min(doubled)}"
    _check_order(trial)
    refused = {
        (row["partition"], row["offset"])
        for row in rows(trial, topics.dead_letters)
        if row["topic"] == topics.events
    }
    events = messages(trial, topics.events)
    expected = {(p, offset) for p, values in enumerate(events) for offset in range(len(values))}
    lost = expected - seen.keys() - refused
    assert not lost, f"{len(lost)} events of {len(expected)} are lost, first {min(lost)}"
    assert not seen.keys() & refused
    assert seen.keys() | refused == expected
    for topic in (topics.dead_letters, topics.drift):
        marks = Counter(
            (row["topic"], row["partition"], row["offset"], row.get("reason", row.get("subject")))
            for row in rows(trial, topic)
        )
        assert all(times == 1 for times in marks.values()), f"doubled on {topic}"


def _check_order(trial: Trial) -> None:
    for partition in messages(trial, trial.declared.topics.predictions):
        offsets = np.array([json.loads(value)["offset"] for value in partition])
        assert (np.diff(offsets) > 0).all()


def check_same(trial: Trial, state: str, unharmed: Trial, its_state: str = "state") -> None:
    """Assert that outputs, windows, models and metrics are equal bit for bit."""
    for topic in trial.declared.topics.outputs:
        assert messages(trial, topic) == messages(unharmed, topic), f"{topic} differs"
    assert window_fingerprints(trial, state) == window_fingerprints(unharmed, its_state)
    of_labels = label_window_fingerprints(trial, state)
    assert of_labels == label_window_fingerprints(unharmed, its_state)
    assert model_digests(trial, state) == model_digests(unharmed, its_state)


def dead_letters(trial: Trial) -> set[tuple[Any, ...]]:
    """The dead letters with their reasons, without how late a late one is."""
    return {
        (row["topic"], row["partition"], row["offset"], row["reason"], row["payload"])
        for row in rows(trial, trial.declared.topics.dead_letters)
    }


def features(trial: Trial, columns: list[str]) -> tuple[list[Where], np.ndarray[Any, Any]]:
    """Events in order, and these columns of their features, ``(events, columns) float64``."""
    found = {
        (row["partition"], row["offset"]): [row["features"][name] for name in columns]
        for row in rows(trial, trial.declared.topics.predictions)
    }
    order = sorted(found)
    return order, np.array([found[at] for at in order], np.float64)


def check_features(trial: Trial, unharmed: Trial, tolerance: float = 1e-9) -> None:
    """Assert the features of the card, whose payments are on one partition, in order."""
    own = [name for name in trial.declared.columns if not name.startswith("merchant")]
    assert 0 < len(own) < len(trial.declared.columns)
    (events, found), (others, expected) = features(trial, own), features(unharmed, own)
    assert events == others
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def check_merchants(trial: Trial, hour_ms: int = 3_600_000) -> None:
    """Assert that no payment of a merchant counts twice, on all partitions, in any order."""
    merchants = {
        (p, offset): json.loads(value)["merchant"]
        for p, values in enumerate(messages(trial, trial.declared.topics.events))
        for offset, value in enumerate(values)
        if value.startswith(b"{") and value.endswith(b"}")
    }
    times: dict[str, list[int]] = {}
    counted = []
    for row in rows(trial, trial.declared.topics.predictions):
        merchant = merchants[row["partition"], row["offset"]]
        times.setdefault(merchant, []).append(row["ts"])
        counted.append((merchant, row["ts"], row["features"]["merchant_amount_1h_count"]))
    known = {merchant: np.sort(np.array(each)) for merchant, each in times.items()}
    for merchant, ts, count in counted:
        low, high = np.searchsorted(known[merchant], [ts - hour_ms, ts], "right")
        assert 1 <= count <= high - low
