"""``python -m benchmarks NAME [--quick] [--json]``: run one benchmark; exit 1 if a target fails."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys

from rich.console import Console

import benchmarks
from benchmarks.report import Report, print_json, print_report

_NOT_BENCHMARKS = {"__main__", "report"}


def names() -> list[str]:
    """Every benchmark: the modules of this package that have a ``run``."""
    found = (module.name for module in pkgutil.iter_modules(benchmarks.__path__))
    return sorted(
        name
        for name in found
        if name not in _NOT_BENCHMARKS
        and hasattr(importlib.import_module(f"benchmarks.{name}"), "run")
    )


def main() -> int:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=names())
    parser.add_argument(
        "--quick", action="store_true", help="use fewer messages; results are less accurate"
    )
    parser.add_argument(
        "--json", action="store_true", help="also print one JSON object, as the last line"
    )
    arguments = parser.parse_args()
    module = importlib.import_module(f"benchmarks.{arguments.name}")
    report: Report = module.run(arguments.quick)
    print_report(report, Console())
    if arguments.json:
        print_json(report)
    return 0 if report.holds else 1


if __name__ == "__main__":
    sys.exit(main())
