"""Two worker processes on one embedded bus: nothing lost, nothing doubled, features exact.

The command line starts them, as it does for users.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dataflows.bus import Bus, TopicPartition, open_bus
from dataflows.bus.partitioner import partition_of_key

PARTITIONS = 4
T0 = 1_700_000_000_000
MINUTE = 60_000
PIPELINE = """
from river import linear_model, preprocessing

from dataflows import Event, Label, Pipeline, field, since_last, window


class Trade(Event):
    id: str
    ts: int
    account: str
    shop: str
    amount: float


class Verdict(Label):
    id: str
    ts: int
    fraud: bool


pipeline = Pipeline(
    name="trades",
    event=Trade,
    label=Verdict.target("fraud"),
    features=[
        field("amount"),
        window("account", "amount", over=("1m", "5m"), stats=("count", "sum", "max")),
        since_last("account", within="2h"),
        window("shop", "amount", over="1h", stats=("count", "sum")),
    ],
    model=preprocessing.StandardScaler() | linear_model.LogisticRegression(),
    lateness="10m",
    with_features=True,
)
"""
Json = dict[str, Any]

pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at /proc")


def account_in(partition: int, number: int) -> str:
    """The name of an account whose events go to this partition."""
    names = (f"account {i}" for i in range(10_000))
    found = (name for name in names if partition_of_key(name.encode(), PARTITIONS) == partition)
    return [next(found) for _ in range(number + 1)][-1]


def trades(counts: list[int], hours: float) -> list[Json]:
    """Trades of each partition, evenly over the hours, in the order of their times."""
    rows = []
    for partition, count in enumerate(counts):
        accounts = [account_in(partition, number) for number in range(3)]
        for i in range(count):
            at = T0 + int(hours * 60 * MINUTE * i / count) + partition
            rows.append(
                {
                    "id": f"{partition}/{i}",
                    "ts": at,
                    "account": accounts[i * 7 % 3],
                    "shop": f"shop {i * 5 % 4}",
                    "amount": float(i * 13 % 101),
                }
            )
    return sorted(rows, key=lambda row: row["ts"])


@contextmanager
def bus_with(path: Path, rows: list[Json], labelled: bool = True) -> Iterator[Bus]:
    bus = open_bus(f"sqlite:{path}")
    bus.create_topics({"trades.events": PARTITIONS, "trades.labels": PARTITIONS})
    publisher = bus.publisher()
    keys = [row["account"].encode() for row in rows]
    publisher.append(
        "trades.events",
        [json.dumps(row).encode() for row in rows],
        keys=keys,
        times=[row["ts"] for row in rows],
    )
    if labelled:
        labels = [
            {"id": row["id"], "ts": row["ts"] + MINUTE, "fraud": row["amount"] > 50} for row in rows
        ]
        publisher.append(
            "trades.labels",
            [json.dumps(label).encode() for label in labels],
            keys=keys,
            times=[label["ts"] for label in labels],
        )
    publisher.close()
    yield bus
    bus.close()


def command(path: Path, *more: str) -> list[str]:
    file = path.parent / "trades_pipeline.py"
    file.write_text(PIPELINE)
    return [
        sys.executable, "-m", "dataflows.cli", "run", str(file),
        "--bus", f"sqlite:{path}", "--processes", "2", *more,
    ]  # fmt: skip


def run_cluster(path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(path, "--until-end", *more), capture_output=True, text=True, timeout=90, check=False
    )


def messages(bus: Bus, topic: str) -> list[list[Json]]:
    """All messages of a topic by partition."""
    found: list[list[Json]] = [[] for _ in range(PARTITIONS)]
    reader = bus.reader({TopicPartition(topic, number): 0 for number in range(PARTITIONS)})
    while slices := reader.poll(10_000):
        for part in slices:
            found[part.partition] += map(json.loads, part.values)
    reader.close()
    return found


def running(path: Path) -> list[str]:
    """The command lines of the processes that work on this bus."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = place.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(path) in line:
            found.append(line)
    return found


def account_features(rows: list[Json]) -> dict[str, list[float]]:
    """What each trade's features of its account must be; trades in the order of their times."""
    history: dict[str, list[Json]] = defaultdict(list)
    features = {}
    for row in rows:
        past = history[row["account"]]
        values = []
        for width in (MINUTE, 5 * MINUTE):
            amounts = [p["amount"] for p in [*past, row] if row["ts"] - width < p["ts"]]
            values += [float(len(amounts)), sum(amounts), max(amounts)]
        before = (row["ts"] - past[-1]["ts"]) / 1000 if past else 7200.0
        features[row["id"]] = [*values, min(before, 7200.0)]
        past.append(row)
    return features


def check_predictions(bus: Bus, rows: list[Json]) -> None:
    """Exactly one for each trade, in its own partition, with its exact features."""
    expected = account_features(rows)
    seen = []
    for number, predictions in enumerate(messages(bus, "trades.predictions")):
        assert [p["offset"] for p in predictions] == list(range(len(predictions)))
        for prediction in predictions:
            assert prediction["partition"] == number == int(prediction["id"].partition("/")[0])
            features = list(prediction["features"].values())
            assert features[1:8] == pytest.approx(expected[prediction["id"]]), prediction
            seen.append(prediction["id"])
    assert sorted(seen) == sorted(expected)


def check_shops(bus: Bus, rows: list[Json]) -> None:
    """A shop's trades come through both workers, which are not in step: itself, and none twice."""
    widest = 60 * MINUTE
    times = defaultdict(list)
    for row in rows:
        times[row["shop"]].append(row["ts"])
    shops = {row["id"]: row["shop"] for row in rows}
    for predictions in messages(bus, "trades.predictions"):
        for prediction in predictions:
            at = prediction["ts"]
            most = sum(at - widest < t <= at for t in times[shops[prediction["id"]]])
            assert 1 <= prediction["features"]["shop_amount_1h_count"] <= most


def test_two_processes_give_each_event_one_prediction_with_exact_features(tmp_path: Path) -> None:
    rows = trades([300, 200, 250, 150], hours=0.15)  # within the lateness
    with bus_with(tmp_path / "bus", rows) as bus:
        ended = run_cluster(tmp_path / "bus", "--batch", "50")
        assert ended.returncode == 0, ended.stderr
        check_predictions(bus, rows)
        check_shops(bus, rows)
        assert messages(bus, "trades.dead-letters") == [[]] * PARTITIONS
        assert running(tmp_path / "bus") == []


def test_features_are_exact_though_one_worker_is_hours_ahead_of_the_other(tmp_path: Path) -> None:
    """Half of the partitions hold few events, so that their worker is through them at once."""
    rows = trades([60, 1500, 60, 1500], hours=6)
    with bus_with(tmp_path / "bus", rows, labelled=False) as bus:
        ended = run_cluster(tmp_path / "bus", "--batch", "20")
        assert ended.returncode == 0, ended.stderr
        check_predictions(bus, rows)


@pytest.mark.parametrize("how", ["the supervisor is told to stop", "a worker is killed"])
def test_all_workers_end_together(tmp_path: Path, how: str) -> None:
    path = tmp_path / "bus"
    rows = trades([30] * PARTITIONS, hours=0.1)
    with bus_with(path, rows) as bus:
        cluster = subprocess.Popen(command(path), stderr=subprocess.PIPE, text=True)
        try:
            wait_for_predictions(bus, len(rows), cluster)
            if how == "a worker is killed":
                os.kill(workers(cluster.pid)[0], signal.SIGKILL)
            else:
                cluster.send_signal(signal.SIGTERM)
            _, told = cluster.communicate(timeout=60)
        finally:
            if cluster.poll() is None:
                cluster.kill()
                cluster.wait(30)
        assert "Traceback" not in told
        if how == "a worker is killed":
            assert cluster.returncode == 1
            assert "SIGKILL" in told
        else:
            assert cluster.returncode == 0, told
        check_predictions(bus, rows)
        assert running(path) == []


def wait_for_predictions(bus: Bus, count: int, cluster: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and cluster.poll() is None:
        topics = bus.topics()
        if "trades.predictions" in topics and sum(bus.end_offsets("trades.predictions")) == count:
            return
        time.sleep(0.1)


def workers(supervisor: int) -> list[int]:
    """The process ids of its workers."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return [
        int(child)
        for child in children
        if b"dataflows.cli" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
