"""On SIGTERM a soak test ends as after a failure, which cleans up everything it has started."""

from __future__ import annotations

import signal
from types import FrameType

import pytest


def _stop(_number: int, _frame: FrameType | None) -> None:
    pytest.exit("terminated")


def pytest_configure() -> None:
    """Exit on SIGTERM with cleanup: network namespaces and disks are released."""
    signal.signal(signal.SIGTERM, _stop)
