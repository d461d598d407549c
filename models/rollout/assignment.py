"""Who is served by whom: a stable hash of the key, and of the rollout's name.

A key has a place in [0, 1) that is its own in each rollout. A challenger with a share of 0.05
serves the keys whose place is below 0.05. So a key keeps its model while the share stands still,
more keys come to the challenger and none leaves it while the share grows, and who is in one rollout
says nothing about who is in another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from anabranch.state.compile import kernel
from anabranch.state.keys.hashing import hash64

F64 = NDArray[np.float64]
U64 = NDArray[np.uint64]

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_FIRST: Final = np.uint64(0xBF58476D1CE4E5B9)
_SECOND: Final = np.uint64(0x94D049BB133111EB)
_BITS: Final = 1.0 / 9007199254740992.0  # 2**-53


def key_hashes(keys: Sequence[str]) -> U64:
    """`(keys,) uint64`, the same in every process; for `places`."""
    return hash64(keys)


def places(hashes: U64, rollout: str) -> F64:
    """`(keys,) float64` in [0, 1): where each key stands in a rollout.

    >>> hashes = key_hashes(["ann", "bob", "cid"])
    >>> places(hashes, "a-1").round(3), places(hashes, "b-2").round(3)
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
