"""Checks for training-serving skew: features recomputed independently, and distributions compared.

Nothing here shares code with the kernels of `state`: messages are read (`message_reader`) and
filtered (`late_and_duplicate`) by code of their own, sorted by entity and time (`timeline`), and
windows are combined from precomputed blocks (`sparse_table`). A bug on one side is not a bug on the
other.
"""
