"""Interleaved rollouts, with visitors who click what they see."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from anabranch.models.learners.learner import Learner, Predictions, Task
from anabranch.models.metrics.ranking import EVENT, LIST
from anabranch.models.prequential.batch import EventBatch, LabelBatch
from anabranch.models.prequential.model_set import PrequentialSettings
from anabranch.models.prequential.prequential import Prequential
from anabranch.models.rollout import decision as d
from anabranch.models.rollout import interleaving
from anabranch.models.rollout.deployment import Deployment
from anabranch.models.rollout.policies import Interleave
from anabranch.models.rollout.serving import Serving
from anabranch.state.labels.label_limits import LabelLimits

SHOWN = 6
F64 = NDArray[np.float64]


class Fixed(Learner):
    """Scores by weights that it was given, and learns nothing."""

    def __init__(self, *weights: float) -> None:
        self._weights = np.array(weights)
        self.task, self.names, self.version = Task.BINARY, ("a", "b"), 0

    def run(self, features: F64, op: Any, row: Any, target: Any) -> Predictions:
        self.version += int(np.count_nonzero(op))
        return Predictions(1 / (1 + np.exp(-features[row[op == 0]] @ self._weights)))


def rollout(challenger: Fixed, policy: Interleave, champion: Fixed | None = None) -> Prequential:
    models = {"old": champion or Fixed(0.0, 0.2), "new": challenger}
    return Prequential(
        models,
        PrequentialSettings(
            rules=LabelLimits(timeout_ms=600_000),
            default=False,
            rollouts=Serving(Deployment("old", ["new"], policy, Task.BINARY, "p"), Task.BINARY),
            ranking=True,
        ),
    )


def visits(step: Prequential, pages: int, seed: int) -> list[d.Decision]:
    """Pages whose visitors look from the top: they like what has a large ``a``, if they look."""
    rng = np.random.default_rng(seed)
    decisions: list[d.Decision] = []
    clicked: tuple[str, int] | None = None
    for page in range(pages):
        features = rng.normal(size=(SHOWN, 2))
        ids = [f"{page}/{item}" for item in range(SHOWN)]
        labels = [] if clicked is None else [f"{clicked[0]}/{clicked[1]}"]
        outcome = step.run(
            EventBatch(
                features=features,
                times=np.full(SHOWN, page * 1000),
                ids=ids,
                fields={EVENT: np.zeros(SHOWN, np.int64), LIST: np.full(SHOWN, page, np.uint64)},
                keys=[f"v{page % 97}"] * SHOWN,
            ),
            LabelBatch(
                ids=labels,
                values=np.ones(len(labels)),
                times=np.full(len(labels), page * 1000 - 500),
            ),
            order=np.r_[np.arange(SHOWN, SHOWN + len(labels)), np.arange(SHOWN)],
        )
        assert outcome.served is not None
        assert outcome.ranks is not None
        decisions += [decision for decision, _ in outcome.served.decisions]
        clicked = None
        for place, item in enumerate(np.argsort(outcome.ranks).tolist()):
            likes = 1 / (1 + math.exp(1.0 - 1.5 * features[item, 0]))
            if rng.random() < likes * 0.8**place:
                clicked = str(page), item
                break
    return decisions


def likings(
    step: Prequential,
    pages: int,
    seed: int,
    cut: int = 1,
    shown: int = SHOWN,
    most: int = 3,
    later: int = 0,
) -> list[d.Decision]:
    """Visitors of two tastes, equally many, who click on the items that suit theirs most.

    On all of them at once, or ``later`` pages after the first one.
    """
    rng, chance = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    decisions: list[d.Decision] = []
    waiting: list[tuple[int, str]] = []
    for first in range(0, pages, cut):
        size = min(cut, pages - first)
        events = np.repeat(np.arange(size), shown)
        ids = [f"{first + event}/{item}" for event in range(size) for item in range(shown)]
        rows = rng.normal(size=(size, shown, 2))
        clicks: list[tuple[int, str]] = []
        order: list[int] = []
        for event in range(size):
            page = first + event
            suits = np.argsort(-rows[event, :, chance.integers(0, 2)])[:most].tolist()
            due = [page] + [page + later] * (most - 1)
            waiting += [(at, f"{page}/{item}") for at, item in zip(due, suits, strict=True)]
            now = [(page, item) for at, item in waiting if at == page]
            waiting = [(at, item) for at, item in waiting if at != page]
            order += range(event * shown, (event + 1) * shown)
            order += [len(ids) + len(clicks) + at for at in range(len(now))]
            clicks += now
        outcome = step.run(
            EventBatch(
                features=rows.reshape(-1, 2),
                times=(first + events) * 1000,
                ids=ids,
                fields={EVENT: events, LIST: (first + events).astype(np.uint64)},
                keys=[f"v{first + event}" for event in events.tolist()],
            ),
            LabelBatch(
                ids=[item for _, item in clicks],
                values=np.ones(len(clicks)),
                times=np.array([page * 1000 + 500 for page, _ in clicks], np.int64),
            ),
            order=np.array(order),
        )
        assert outcome.served is not None
        decisions += [decision for decision, _ in outcome.served.decisions]
    return decisions


def tastes(**policy: Any) -> Prequential:
    """A ranker for either taste: they are equally good."""
    return rollout(Fixed(3.0, 0.0), Interleave(min_effect=0.0, **policy), Fixed(0.0, 3.0))


def test_visitors_who_click_a_lot_are_no_evidence_each_time():
    # Were each click a point, a fifth of these were promoted: on long lists, all that suits a taste
    # is drafted by the ranker of that taste.
    found = [ends(likings(tastes(), 200, seed, 20, shown=24, most=6)) for seed in range(60)]
    assert found.count(d.PROMOTED) <= 0.05 * 60


@pytest.mark.parametrize("later", [0, 2, 150])
@pytest.mark.parametrize("cut", [1, 3, 100])
def test_a_list_gives_one_point_however_the_stream_is_cut(cut, later):
    step, other = tastes(alpha=1e-6, report_every=10), tastes(alpha=1e-6, report_every=10)
    told = [(e.action, e.time, e.evidence) for e in likings(step, 200, 7, cut, later=later)]
    assert step.models.rollouts is not None
    assert step.models.rank_quality is not None
    assert step.models.rank_quality.chosen == 200 + 2 * (200 - later)
    assert step.models.rollouts.deployment.trials[0].labels == 200
    assert told == [(e.action, e.time, e.evidence) for e in likings(other, 200, 7, 17, later=later)]


def test_lists_are_forgotten_when_nothing_of_them_waits_and_not_before(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(interleaving, "_LISTS", 4)
    step = tastes(alpha=1e-6)
    likings(step, 3000, 8, later=500)  # a wait is over after 600 of them
    assert step.models.rollouts is not None
    at_work = step.models.rollouts.deployment.trials[0]
    assert at_work.labels == 3000
    assert len(at_work._pairs._counted) < 1500


def ends(decisions: list[d.Decision]) -> str:
    told = [each.action for each in decisions if each.action not in (d.STARTED, d.PROGRESS)]
    return told[0] if told else "open"


def test_equals_are_promoted_no_more_often_than_alpha_says():
    policy = Interleave(alpha=0.1, min_effect=0.0)
    found = []
    for seed in range(60):
        # Other tastes that are equally good: none knows what visitors like.
        step = rollout(Fixed(0.0, -1.0), policy, Fixed(0.0, 1.0))
        found.append(ends(visits(step, 250, seed)))
    assert found.count(d.PROMOTED) <= 0.1 * 60 + 3 * math.sqrt(60 * 0.1 * 0.9)
    assert found.count("open") > 40


def test_a_better_ranker_is_promoted_within_a_few_hundred_clicks():
    step = rollout(Fixed(1.0, 0.0), Interleave())
    decisions = visits(step, 1500, seed=1)
    promoted = next(each for each in decisions if each.action == d.PROMOTED)
    assert promoted.challenger == "new"
    assert promoted.evidence is not None
    assert promoted.evidence.labels < 400
    # Of clicks: the share that went to the other team.
    assert promoted.evidence.champion_loss > 0.6
    assert promoted.evidence.challenger_loss == pytest.approx(1 - promoted.evidence.champion_loss)
    assert step.models.champion == "new"


def test_a_worse_ranker_goes():
    step = rollout(Fixed(-1.0, 0.0), Interleave(), Fixed(1.0, 0.0))
    decisions = visits(step, 1500, seed=2)
    assert ends(decisions) == d.ROLLED_BACK


def test_half_of_the_keys_see_the_champions_list_and_do_not_count():
    step = rollout(Fixed(1.0, 0.0), Interleave(split=0.5, min_effect=0.0, alpha=1e-40))
    visits(step, 600, seed=3)
    assert step.models.rollouts is not None
    trial = step.models.rollouts.deployment.trials[0]
    all_clicks = step.models.rank_quality.chosen if step.models.rank_quality is not None else 0
    assert 0.3 * all_clicks < trial.labels < 0.7 * all_clicks
