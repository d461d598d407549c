"""Statistics that `anabranch skew` recomputes by their definition."""

import numpy as np

from anabranch.dataflows.skew.defined_statistics import by_definition


def test_a_window_is_all_its_runs_in_order_of_time():
    values = np.array([1.0, 5.0, 2.0, 8.0])
    turns = np.array([0, 2, 1, 3])  # the second value is later than the third
    runs = [
        (np.array([0, 1, 2, 3]), np.array([0, 2, 3, -1]), np.array([1, 2, 1, 0])),
        (np.array([2]), np.array([0]), np.array([1])),
    ]
    found = by_definition({"first", "last", "sum", "count"}, values, turns, runs, 4)
    assert found["count"].tolist() == [1, 2, 2, 0]
    assert found["sum"].tolist() == [1, 7, 9, 0]
    assert found["first"].tolist() == [1, 2, 1, 0]
    assert found["last"].tolist() == [1, 5, 8, 0]
