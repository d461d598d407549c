"""The versions that a run is made of."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Final

PACKAGES: Final = ("anabranch", "bytewax", "river")


def versions() -> dict[str, str]:
    """Of the packages, and of Python; *unknown* where one is run without being installed."""
    return {**{name: _version(name) for name in PACKAGES}, "python": platform.python_version()}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
