"""Labels that find no event are told of at the end, with an example of both sides' ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dataflows.cli.test_check_command import DECLARED, T, payments, publish, verdicts, write
from tests.support.commands import Call, caller, run_command

HOUR_MS = 3_600_000


@pytest.fixture
def call(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    (tmp_path / "pay.py").write_text(DECLARED)
    return caller(tmp_path, capfd)


@pytest.mark.parametrize(("name", "found"), [("o-{}", 0), ("{}", 20)])
@pytest.mark.parametrize("spread_ms", [1000, HOUR_MS])  # still waiting; given up
def test_the_end_of_a_replay(
    name: str, found: int, spread_ms: int, tmp_path: Path, call: Call
) -> None:
    events = [row | {"ts": T + spread_ms * n // 20} for n, row in enumerate(payments(40))]
    labels = [row | {"ts": T + n} for n, row in enumerate(verdicts(20, name))]
    write(tmp_path / "events.jsonl", events)
    write(tmp_path / "labels.jsonl", labels)
    done = call(
        "replay",
        "pay.py",
        "--from",
        "events.jsonl",
        "--labels",
        "labels.jsonl",
        "--to",
        "r.parquet",
    )
    assert done.code == 0, done
    says = "20 of 20 labels found no event"
    if found:
        assert says not in done.out
    else:
        assert says in done.out
        assert ("still wait" in done.out) == (spread_ms == 1000)
        assert "labels have ids such as 'o-0', events '0'" in done.out


def test_the_end_of_a_run(tmp_path: Path, call: Call) -> None:
    publish(tmp_path, "pay.events", payments(10))
    publish(tmp_path, "pay.labels", [*verdicts(5), *verdicts(7, "o-{}")])
    done = call("run", "pay.py", "--until-end", "--no-state")
    assert done.code == 0, done
    text = done.err.replace("\n", " ")
    assert "7 of 12 labels found no event (7 still wait for theirs)" in text
    assert "labels have ids such as 'o-0', events '0'" in text


def test_the_end_of_a_run_in_two_processes(tmp_path: Path) -> None:
    (tmp_path / "pay.py").write_text(DECLARED)
    publish(tmp_path, "pay.events", payments(10), partitions=2)
    publish(tmp_path, "pay.labels", verdicts(7, "o-{}"), partitions=2)
    done = run_command(tmp_path, "run", "pay.py", "--until-end", "--processes", "2")
    assert done.code == 0, done
    text = done.err.replace("\n", " ")
    assert "7 of 7 labels found no event" in text
    assert "labels have ids such as 'o-" in text
