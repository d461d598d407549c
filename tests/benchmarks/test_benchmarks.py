"""The benchmarks still run, and their contenders still agree."""

from __future__ import annotations

from functools import partial

import pytest

from benchmarks import bytewax_recovery, formats, labels, replay
from benchmarks.__main__ import names
from benchmarks.hotpath import EVERY_MS, START_MS, check_agreement, make_messages, make_pipeline
from benchmarks.recovery import check_agreement as check_recovery
from benchmarks.replay import check_agreement as check_replay
from benchmarks.report import Target
from benchmarks.stages import STAGES, stage_costs


def test_every_benchmark_is_found_by_its_name():
    assert names() == [
        "bus", "drift", "evidence", "formats", "hotpath", "labels", "metrics", "recovery", "replay",
        "rollouts",
    ]  # fmt: skip


def test_the_version_baseline_predicts_what_the_pipeline_predicts():
    check_agreement(make_messages(3000, cards=40, merchants=10))


def test_a_difference_between_the_contenders_is_noticed(monkeypatch):
    monkeypatch.setattr("benchmarks.baseline.Window.add_late", lambda *_: (1, 0.0, 0.0, 0.0))
    messages = make_messages(500, cards=5, merchants=2)
    messages[100], messages[120] = messages[120], messages[100]
    with pytest.raises(AssertionError, match="differ"):
        check_agreement(messages)


def test_both_ways_to_recover_give_equal_features_before_and_after():
    check_recovery(60)


def test_a_recovery_that_forgets_is_noticed(monkeypatch):
    def forgets(self, clock, events):
        found(self, clock, None)

    found = bytewax_recovery._Windows.__init__
    monkeypatch.setattr(bytewax_recovery._Windows, "__init__", forgets)
    with pytest.raises(AssertionError, match="differ"):
        check_recovery(60)


def test_every_way_to_write_a_message_gives_the_same_columns():
    formats.check_agreement()


def test_replay_pandas_and_polars_make_the_same_features():
    check_replay(3000)


def test_another_window_of_a_contender_is_noticed(monkeypatch):
    def wider(self, source, to):
        monkeypatch.setitem(replay.WIDTHS, "1d", 2 * 86_400_000)
        by_pandas(source, to)

    by_pandas = replay.by_pandas
    monkeypatch.setitem(replay.CONTESTANTS, "pandas groupby().rolling()", partial(wider, None))
    with pytest.raises(AssertionError, match="differ"):
        check_replay(3000)


def test_dicts_baseline_make_the_same_of_labels():
    labels.check_agreement(1_000)


def test_a_join_that_expires_predictions_too_soon_is_noticed(monkeypatch):
    def sooner(timeout_ms):
        return labels.Ours(timeout_ms - 1)

    monkeypatch.setitem(labels.CONTESTANTS, "anabranch", sooner)
    with pytest.raises(AssertionError, match="differ"):
        labels.check_agreement(1_000)


def test_every_stage_of_the_hot_path_is_timed():
    costs = stage_costs(make_pipeline(), make_messages(4000, 100, 30), START_MS, EVERY_MS)
    for of_batch in costs.values():
        assert all(of_batch[stage] > 0 for stage in STAGES if stage != "windows")


def test_a_target_holds_in_its_own_sense():
    assert Target("ratio", 26, 25, ">=").holds
    assert not Target("bytes", 26, 25).holds
