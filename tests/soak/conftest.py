"""When a soak is told to end, it ends as after a failure: all that it has started goes."""

from __future__ import annotations

import signal
from types import FrameType

import pytest


def _stop(_number: int, _frame: FrameType | None) -> None:
    pytest.exit("told to end")


def pytest_configure() -> None:
    """SIGTERM ends the run in an orderly way: network namespaces and disks are given back."""
    signal.signal(signal.SIGTERM, _stop)
