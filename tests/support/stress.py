"""A pytest plugin that repeats tests while every core is kept busy (``make test-stress``).

    python -m pytest -p tests.support.stress --times 50 -m stress

It ends with a table of all tests: how often each has failed, and how long its slowest run took.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.cpu_load import cpu_load


@dataclass(slots=True)
class Runs:
    """The runs of one test."""

    count: int = 0
    failed: int = 0
    slowest_s: float = 0.0


_RUNS: dict[str, Runs] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--times``."""
    parser.addoption("--times", type=int, default=1, metavar="N", help="run each test N times")


@pytest.fixture
def _trial(request: pytest.FixtureRequest) -> Any:
    return request.param


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeat every test."""
    metafunc.fixturenames.append("_trial")
    times = metafunc.config.getoption("--times")
    metafunc.parametrize("_trial", range(times), ids=lambda n: f"run {n + 1}", indirect=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop() -> Iterator[None]:
    """Keep every core busy while tests run."""
    with cpu_load():
        return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count a run, or the failure of its setup or teardown."""
    name = re.sub(r"-?\brun \d+\b-?", "", report.nodeid).replace("[]", "")
    runs = _RUNS.setdefault(name, Runs())
    runs.count += report.when == "call"
    runs.failed += report.failed
    runs.slowest_s = max(runs.slowest_s, report.duration)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table, the tests that failed first."""
    write = terminalreporter.write_line
    write(
        f"{'failed':>7} {'runs':>5} {'slowest':>9}  test (beside a load on every core)", bold=True
    )
    for name, runs in sorted(_RUNS.items(), key=lambda item: (-item[1].failed, item[0])):
        line = f"{runs.failed:>7} {runs.count:>5} {runs.slowest_s:>7.1f} s  {name}"
        write(line, red=bool(runs.failed), green=not runs.failed)
