#!/usr/bin/env bash
# River 0.26.1: a HoeffdingTreeRegressor that sees a feature which only grows can't be pickled.
#
# Its default splitter keeps the values of each numeric feature in an unbalanced binary search tree
# (E-BST) of nested objects. Rising values make that tree a chain, one object in the next, and pickle
# recurses once or more per object: a few hundred values are enough. A feature in random order, as
# often, pickles. Whoever checkpoints an online model by pickling it meets this on a counter, a time,
# or a balance, after a few hundred events, and not in a test with shuffled rows.
#
# Seen (Python 3.11): rising: RecursionError; shuffled: pickled.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check river==0.26.1
"$work/venv/bin/python" - <<'PY'
import pickle
import random

from river import tree


def outcome(values):
    model = tree.HoeffdingTreeRegressor(grace_period=100_000)  # no split: the leaf keeps all values
    for value in values:
        model.learn_one({"x": float(value)}, float(value % 7))
    try:
        pickle.dumps(model)
    except RecursionError:
        return "RecursionError"
    return "pickled"


rising = list(range(2_000))
shuffled = rising.copy()
random.Random(1).shuffle(shuffled)
seen = {"rising": outcome(rising), "shuffled": outcome(shuffled)}
print("river 0.26.1:", seen)
assert seen == {"rising": "RecursionError", "shuffled": "pickled"}, "the behaviour has changed"
PY
