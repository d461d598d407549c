"""Fixtures that several test files share."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

from tests.support.kafka_broker import KafkaBroker, missing_tools

# The first example of a test may compile kernels, and the machine may be busy.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


INSTALL = {
    "promtool": "apt-get install prometheus",
    "prometheus": "apt-get install prometheus",
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that `needs` a program which is not installed; the summary lists those tests."""
    for mark in item.iter_markers("needs"):
        for program in mark.args:
            if shutil.which(program) is None:
                pytest.skip(f"NOT RUN: {program} is not installed (Debian: {INSTALL[program]})")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """List skipped tests in red at the end, as a skipped test has not passed."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[reason.removeprefix("Skipped: ")] += 1
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"{count} tests skipped: {reason}", red=True, bold=True)


@pytest.fixture(scope="session")
def kafka_broker() -> Iterator[KafkaBroker]:
    """One Kafka broker for the whole run, started when the first test asks for it.

    Skips only when Java or Maven is not installed; any other failure fails the test.
    """
    reason = missing_tools()
    if reason is not None:
        pytest.skip(reason)
    with KafkaBroker(fast_start=True) as broker:
        yield broker
