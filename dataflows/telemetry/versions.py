"""The versions of the packages that a run uses."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Final

PACKAGES: Final = ("anabranch", "bytewax", "river")


def versions() -> dict[str, str]:
    """Package → version, and Python's; *unknown* for a package that is not installed."""
    return {**{name: _version(name) for name in PACKAGES}, "python": platform.python_version()}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
