"""Checks for training-serving skew: the same features by other means, and the same distributions.

Nothing here shares code with the kernels of `state`: events are read and admitted anew
(`arrivals`), sorted by entity and time (`timeline`), and every window is put together from
blocks of doubling size (`doubling`), so that a fault of the one side is not a fault of the other.
"""
