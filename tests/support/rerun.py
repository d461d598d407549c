"""Runs the tests that have just failed again, one at a time, and names those that pass then.

The second half of ``make test``: its first half runs two files of tests at a time, beside which a
test that depends on timing may fail. Such a test is a defect, so it is reported loudly.

    python -m tests.support.rerun
"""

from __future__ import annotations

import sys
from typing import Any

import pytest


class _Outcomes:
    """A plugin that remembers which tests passed and which failed."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.failed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)
        elif report.when == "call" and report.passed:
            self.passed.append(report.nodeid)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        unstable = [name for name in self.passed if name not in self.failed]
        if not unstable:
            return
        terminalreporter.section("UNSTABLE TESTS", sep="!", red=True, bold=True)
        terminalreporter.write_line(
            f"{len(unstable)} tests failed beside others and passed alone. Each depends on timing "
            "and needs to be fixed; `make test-stress TESTS=…` shows how often it fails:",
            red=True,
            bold=True,
        )
        for name in unstable:
            terminalreporter.write_line(f"  {name}", red=True, bold=True)


def main() -> int:
    """Run them; the exit code of pytest, 0 if all have passed."""
    print("make test: tests have failed; running those again, one at a time", flush=True)
    options = ["--last-failed", "--last-failed-no-failures", "none"]
    return int(pytest.main(options, plugins=[_Outcomes()]))


if __name__ == "__main__":
    sys.exit(main())
