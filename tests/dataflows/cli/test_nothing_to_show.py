"""What commands print when there is nothing yet, and when the reader of their output has gone."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from river import metrics

from anabranch.dataflows.bus import open_bus
from anabranch.dataflows.telemetry.status import Status, quality_line, status_table
from anabranch.models.learners.learner import Predictions, Task
from anabranch.models.metrics.metrics import RiverMetric, metric, reported
from tests.support.commands import Command, run_command


def test_a_metric_reports_nothing_before_its_first_label() -> None:
    predictions = Predictions(np.array([0.7]))
    for name in ("LogLoss", "Accuracy", "F1", "ROCAUC", "BalancedAccuracy"):
        one = metric(name)
        assert math.isnan(reported(one))
        one.update_many(np.array([1.0]), predictions)
        assert math.isnan(reported(one)) == (name == "ROCAUC")  # it needs both classes
        one.update_many(np.array([0.0]), predictions)
        assert reported(one) == one.value
        other = metric(name)
        other.load(one.dump())
        assert reported(other) == one.value
    old = RiverMetric(metrics.BalancedAccuracy(), Task.BINARY)
    old.load((metrics.BalancedAccuracy(), 0))
    assert reported(old) == 0.0


def test_quality_without_labels_is_a_dash() -> None:
    assert quality_line({"LogLoss": math.nan, "ROCAUC": 0.5}) == "log loss —, ROC AUC 0.5000"
    table = status_table("p", Status(quality={"LogLoss": math.nan}), 0.0, {}, "now")
    assert "—" in list(table.columns[1].cells)


def test_a_run_without_labels_shows_dashes(tmp_path: Path) -> None:
    assert run_command(tmp_path, "simulate", "payments", "--events", "300").code == 0
    events = run_command(tmp_path, "consume", "payments.events", "--no-follow").out
    bus = open_bus(f"sqlite:{tmp_path}/unlabelled")
    bus.create_topics({"payments.events": 1, "payments.labels": 1})
    publisher = bus.publisher()
    publisher.append("payments.events", [line.encode() for line in events.splitlines()])
    publisher.close()
    done = run_command(tmp_path, "run", "payments", "--until-end", "--bus", bus.url)
    assert done.code == 0
    for line in done.err.splitlines():
        if "(prequential)" in line:
            assert "—" in line
    assert "(prequential)" in done.err
    assert "0.0000" not in done.err
    told = run_command(tmp_path, "state", "data/state/payments").out
    assert "0.0000" not in told


def test_consume_on_an_empty_topic_says_that_it_waits(tmp_path: Path) -> None:
    bus = open_bus(f"sqlite:{tmp_path}/data/bus")
    bus.create_topics({"empty": 1})
    with Command(tmp_path, "consume", "empty", "--limit", "1") as command:
        assert command.process.stderr is not None
        line = command.process.stderr.readline()
        assert line == "no message on empty to print yet: waiting for the first; Ctrl-C stops it\n"
        publisher = bus.publisher()
        publisher.append("empty", [b"x"])
        publisher.close()
        assert command.process.wait(120) == 0
        assert command.process.stderr.read() == ""


@pytest.mark.parametrize("style", ["--raw", "--pretty"])
def test_output_that_nobody_takes(style: str, tmp_path: Path) -> None:
    bus = open_bus(f"sqlite:{tmp_path}/data/bus")
    bus.create_topics({"t": 1})
    publisher = bus.publisher()
    publisher.append("t", [json.dumps({"n": number}).encode() for number in range(20_000)])
    publisher.close()
    command = [sys.executable, "-m", "anabranch", "consume", "t", "--no-follow", style]
    piped = subprocess.run(
        ["bash", "-c", '"$@" | head -n 1; exit ${PIPESTATUS[0]}', "-", *command],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert (piped.returncode, piped.stderr) == (141, b"")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=-1, check=False)
    assert done.returncode == 1
    assert done.stderr == b"error: the output can't be written: No space left on device\n"
