"""Which model is to serve each event: by the place of its key, or as a bandit pulls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from river.bandit.base import Policy as RiverPolicy

from anabranch.models.rollout.assignment import places
from anabranch.models.rollout.observations import RolloutRows
from anabranch.models.rollout.policies import rewarded
from anabranch.models.rollout.trial import Contest

U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]


def divide(hashes: U64, contests: Sequence[Contest], champion: int) -> U8:
    """`(events,) uint8`: the number of the model that each key is served by.

    Every rollout has places of its own. With several, one takes of the keys that those before it
    left what makes its share of all.

    Args:
        hashes: `(events,) uint64` of the keys.
        contests: shares that sum to 1 at most.
        champion: the number of who serves the rest.
    """
    out = np.full(hashes.size, champion, np.uint8)
    left = 1.0
    for contest in contests:
        if contest.share <= 0.0:
            continue
        taken = places(hashes, contest.rollout) < contest.share / left
        out[taken & (out == champion)] = contest.number
        left = max(left - contest.share, 1e-12)
    return out


def pull_arms(rows: RolloutRows, policy: RiverPolicy, numbers: dict[str, int], unit: float) -> None:
    """Write into `rows.arms` which arm a bandit pulls for each event; it learns from each label.

    Args:
        rows: in whose order both is done.
        policy: it changes.
        numbers: of the models that may be pulled, by name.
        unit: a loss of so much is a reward of 0, none at all one of 1.
    """
    names = {number: name for name, number in numbers.items()}
    arms = rows.arms
    choices: list[int | str] = list(numbers)
    label_steps, label_rows = rows.label_steps.tolist(), rows.label_rows.tolist()
    losses = {name: rows.losses[name].tolist() for name in numbers}
    label = 0

    def learn(before: float) -> int:
        at = label
        while at < len(label_steps) and label_steps[at] < before:
            name = names.get(int(arms[label_rows[at]]))
            loss = np.nan if name is None else losses[name][at]
            if name is not None and loss == loss:
                reward = rewarded(policy, max(1.0 - loss / unit, 0.0))
                policy.update(name, reward)  # type: ignore[no-untyped-call]
            at += 1
        return at

    for step, row in zip(rows.event_steps.tolist(), rows.event_rows.tolist(), strict=True):
        label = learn(step)
        arms[row] = numbers[str(policy.pull(choices))]
    learn(np.inf)
