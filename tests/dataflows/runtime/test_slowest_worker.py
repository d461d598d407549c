"""What comes together from several workers goes by the time of the slowest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from anabranch import target, window
from anabranch.dataflows.batch.batch import IDLE
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.pipelines.loader import load_pipeline
from anabranch.dataflows.sharding import worker_watermarks
from anabranch.dataflows.sharding.worker_watermarks import WorkerWatermarks
from anabranch.producers.simulators.payments import simulate_payments
from tests.support.history import EVENTS, WORLD, Message, messages_of
from tests.support.manual_cluster import Cluster

SETTINGS = replace(WORLD, rate=0.002, verdict_median_s=20_000.0, unlabelled=0.2)
RULES: dict[str, dict[str, Any]] = {
    "dropped": {"timeout": "1d"},
    "assumed": {"timeout": "1d", "default": False},
    "corrected": {"timeout": "1d", "default": False, "late": "update", "update_within": "30d"},
}


@pytest.fixture(autouse=True)
def workers_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a kernel is compiled before the second one reads."""
    monkeypatch.setattr(worker_watermarks, "UNHEARD_TIMEOUT_S", 3600.0)


@pytest.fixture(scope="module")
def messages() -> list[Message]:
    """A week of payments and verdicts, in the order of their publishing."""
    batches = simulate_payments(events=1200, seed=5, settings=SETTINGS)
    found = [message for batch in batches for message in messages_of(batch)]
    return sorted(found, key=lambda message: message.time)


def payments(rules: str) -> Pipeline:
    shipped = load_pipeline("payments")
    of_labels = window("merchant", target(), over=("1h", "1d"), stats=("count", "sum"))
    label = replace(shipped.label, **RULES[rules])
    return replace(shipped, features=[*shipped.features, of_labels], label=label)


@pytest.mark.parametrize("rules", list(RULES))
@pytest.mark.parametrize("first", [0, 1])
def test_a_worker_that_is_a_week_behind_loses_no_label(messages, rules, first):
    in_step, apart = Cluster(payments(rules)), Cluster(payments(rules))
    for cluster in (in_step, apart):
        cluster.publish(messages)
    in_step.in_step()
    apart.one_after_the_other(first)
    expected = in_step.learned()
    assert {who: sorted(what) for who, what in apart.learned().items()} == {
        who: sorted(what) for who, what in expected.items()
    }
    assert sum(map(len, expected.values())) > 500


def test_labels_in_windows_are_those_of_the_last_days_though_one_is_a_week_ahead(messages):
    """Its own events let nothing go that the other's will ask for."""
    pipeline = payments("dropped")
    cluster = Cluster(pipeline)
    cluster.publish(messages)
    cluster.one_after_the_other(0)
    at = pipeline.columns.index("merchant_target_1d_count")
    known: list[tuple[str, int]] = []
    merchants: dict[str, str] = {}
    checked = 0
    for results in cluster.made:
        batch, training_steps = results.batch, results.learned
        merchants |= dict(zip(batch.ids, batch.columns["merchant"], strict=True))
        for row, id in enumerate(batch.ids):
            now = int(batch.times[row])
            seen = sum(m == merchants[id] and now - 86_400_000 < t <= now for m, t in known)
            more = 0 if training_steps is None else len(training_steps.times)
            assert seen <= batch.features[row, at] <= seen + more
            checked += seen > 0
        if training_steps is not None:
            ids = batch.labels.ids
            for label, time in zip(
                training_steps.label.tolist(), training_steps.times.tolist(), strict=True
            ):
                if label >= 0:
                    known.append((merchants[ids[label]], time))
    assert checked > 500


def test_workers_with_nothing_to_read_hold_back_no_other():
    origins = WorkerWatermarks(3)
    origins.advance("0", 10)
    assert origins.limit("0") == origins.slowest() == -IDLE
    origins.advance("1", 5)
    origins.update("2", IDLE)
    assert (origins.limit("0"), origins.limit("1"), origins.limit("2")) == (5, 10, 5)
    assert origins.slowest() == 5
    origins.update("1", IDLE)
    assert (origins.limit("0"), origins.slowest()) == (IDLE, 10)
    origins.advance("1", 7)
    assert (origins.limit("0"), origins.slowest()) == (7, 7)
    origins.advance("1", 6)
    assert origins.slowest() == 7


def test_at_the_end_of_its_input_a_worker_no_longer_holds_back_the_waits_of_others(messages):
    cluster = Cluster(payments("assumed"))
    cluster.publish(messages[:600])
    cluster.in_step()
    cluster.publish(messages[600:])
    [reader, _] = cluster.readers
    mine = reader.read()
    for batch in mine[: len(mine) // 2]:
        cluster.work(batch)
    held = len(cluster.models.prequential.models.pending)
    cluster.pass_on(cluster.router.end_of_stream("1"))
    for batch in mine[len(mine) // 2 :]:
        cluster.work(batch)
    assert len(cluster.models.prequential.models.pending) < held / 2


@pytest.mark.parametrize("rules", list(RULES))
@pytest.mark.parametrize("first", [0, 1])
def test_labels_find_their_events_though_another_worker_reads_those(messages, rules, first):
    """Each label is on a partition of the other worker, which is a week ahead or behind."""
    together, apart = Cluster(payments(rules)), Cluster(payments(rules))
    together.publish(messages)
    together.in_step()
    apart.publish(messages, labels_apart=True)
    apart.one_after_the_other(first)
    expected, found = (
        sorted(label for of_worker in cluster.learned().values() for label in of_worker)
        for cluster in (together, apart)
    )
    if rules == "corrected":  # one that is too late is learned at once, and for good
        assert {id for id, _, _ in found} >= {id for id, _, _ in expected}
    else:
        assert found == expected


@pytest.mark.parametrize("rules", ["dropped", "assumed"])
@pytest.mark.parametrize("first", [0, 1])
def test_when_nothing_more_comes_all_times_out_that_is_due(messages, rules, first):
    """As in a single process: by the latest time of all."""
    in_step, apart = Cluster(payments(rules)), Cluster(payments(rules))
    for cluster in (in_step, apart):
        cluster.publish(messages)
    in_step.in_step()
    apart.one_after_the_other(first)
    for cluster in (in_step, apart):
        cluster.end()
    pending = [cluster.models.prequential.models.pending for cluster in (in_step, apart)]
    latest = max(
        int(times.max())
        for results in apart.made
        for times in (results.batch.times, results.batch.labels.times)
        if len(times)
    )
    assert [each.watermark for each in pending] == [latest, latest]
    assert len(pending[0]) == len(pending[1])
    assert apart.made[-1].batch.lets_time_pass
    assert apart.made[-1].dead_letters == []
    made = len(apart.made)
    apart.end()  # it is no news
    assert len(apart.made) == made


def test_time_passes_by_what_was_read_before_a_restart_too(messages):
    cluster = Cluster(payments("assumed"))
    cluster.publish([message for message in messages if message.topic == EVENTS])
    cluster.one_after_the_other(0)
    pending, watermarks = cluster.models.prequential.models.pending, cluster.models._watermarks
    assert watermarks is not None
    watermarks._furthest = -IDLE  # as after a restart: workers report it with their first silence
    cluster.end()
    times = [int(each.batch.times.max()) for each in cluster.made if len(each.batch)]
    assert pending.watermark == max(times)
