"""Traffic split: which model serves each key, by a stable hash of the key and the rollout's name.

A key falls into a bucket in [0, 1) that differs from rollout to rollout. A challenger with a share
of 0.05 serves the keys whose bucket is below 0.05. So a key keeps its model while the share stands,
a growing share adds keys and takes none away, and the keys of one rollout say nothing about those
of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from anabranch.state.compile import kernel
from anabranch.state.keys.hashing import hash64

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_FIRST: Final = np.uint64(0xBF58476D1CE4E5B9)
_SECOND: Final = np.uint64(0x94D049BB133111EB)
_BITS: Final = 1.0 / 9007199254740992.0  # 2**-53


class SharingTrial(Protocol):
    """What the traffic split needs of a trial; see `models.rollout.trial.Trial`."""

    arm_id: int
    rollout: str
    share: float


def split_traffic(hashes: U64, trials: Sequence[SharingTrial], champion: int) -> U8:
    """`(events,) uint8`: arm id of the model that serves each key.

    Every rollout has buckets of its own. With several, each takes of the keys that those before it
    left, so many that they make its share of all keys.

    Args:
        hashes: `(events,) uint64` of the keys.
        trials: with shares that sum to 1 at most.
        champion: arm id of the model that serves the rest.
    """
    out = np.full(hashes.size, champion, np.uint8)
    left = 1.0
    for trial in trials:
        if trial.share <= 0.0:
            continue
        taken = buckets(hashes, trial.rollout) < trial.share / left
        out[taken & (out == champion)] = trial.arm_id
        left = max(left - trial.share, 1e-12)
    return out


def key_hashes(keys: Sequence[str]) -> U64:
    """`(keys,) uint64`, the same in every process; for `buckets`."""
    return hash64(keys)


def buckets(hashes: U64, rollout: str) -> F64:
    """`(keys,) float64` in [0, 1): the bucket of each key in a rollout.

    >>> hashes = key_hashes(["ann", "bob", "cid"])
    >>> buckets(hashes, "a-1").round(3), buckets(hashes, "b-2").round(3)
    (array([0.565, 0.331, 0.385]), array([0.76 , 0.616, 0.573]))
    """
    out = np.empty(hashes.size)
    _mix(hashes, hash64([rollout])[0], out)
    return out


@kernel
def _mix(hashes: U64, salt: np.uint64, out: F64) -> None:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014) of hash and salt, as 53 bits of a fraction.

    The salt is mixed in twice, since XOR alone would keep keys that differ in few bits together.
    """
    for i in range(hashes.size):
        z = (hashes[i] ^ salt) + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _FIRST
        z = (z ^ (z >> np.uint64(27))) * _SECOND
        z = (z ^ (z >> np.uint64(31))) + salt
        z = (z ^ (z >> np.uint64(30))) * _FIRST
        z = (z ^ (z >> np.uint64(27))) * _SECOND
        out[i] = np.float64((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * _BITS
