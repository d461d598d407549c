"""Two worker processes on one embedded bus: nothing lost, nothing doubled, features exact.

The command line starts them, as it does for users.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from anabranch.dataflows.bus import Bus, TopicPartition, open_bus
from anabranch.dataflows.bus.partitioner import partition_of_key
from anabranch.dataflows.runtime.supervisor import free_ports
from tests.support.waiting import wait_until

PARTITIONS = 4
T0 = 1_700_000_000_000
MINUTE = 60_000
PIPELINE = """
from river import linear_model, preprocessing

from anabranch import Event, Label, Pipeline, field, since_last, window


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
    allowed_lateness="10m",
    with_features=True,
)
"""
Json = dict[str, Any]

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at /proc"),
    pytest.mark.timeout(1200),
    pytest.mark.stress,
]


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
    publish(bus, rows, labelled)
    yield bus
    bus.close()


def publish(bus: Bus, rows: list[Json], labelled: bool = True) -> None:
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


def command(path: Path, *more: str, cluster: tuple[str, ...] = ("--processes", "2")) -> list[str]:
    file = path.parent / "trades_pipeline.py"
    file.write_text(PIPELINE)
    return [
        sys.executable, "-m", "anabranch", "run", str(file),
        "--bus", f"sqlite:{path}", *cluster, *more,
    ]  # fmt: skip


def run_cluster(path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(path, "--until-end", *more),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=path.parent,
    )


class Running:
    """A run; a context manager, after which neither it nor its workers are left."""

    def __init__(self, path: Path, *more: str, cluster: tuple[str, ...] = ("--processes", "2")):
        self._log = path.parent / f"said-{len(list(path.parent.glob('said-*')))}"
        with self._log.open("w") as log:
            arguments = command(path, *more, cluster=cluster)
            self.process = subprocess.Popen(arguments, stderr=log, cwd=path.parent)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()

    @property
    def said(self) -> str:
        return self._log.read_text()

    def kill(self, *, supervisor_only: bool = False) -> None:
        """Kill −9, as when its host goes down."""
        left = [] if supervisor_only else workers(self.process.pid)
        self.process.kill()
        self.process.wait()
        for each in left:
            os.kill(each, signal.SIGKILL)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(300)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        def ended_or_true() -> bool:
            assert self.process.poll() is None, self.said
            return condition()

        wait_until(ended_or_true, 300, lambda: f"a condition; the run said: {self.said}")

    def wait_until_said(self, text: str) -> None:
        self.wait_for(lambda: text in self.said)

    def wait_for_predictions(self, bus: Bus, count: int) -> None:
        self.wait_for(lambda: predictions(bus) >= count)


def predictions(bus: Bus) -> int:
    if "trades.predictions" not in bus.topics():
        return 0
    return sum(bus.end_offsets("trades.predictions"))


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
        ended = run_cluster(tmp_path / "bus", "--batch-size", "50")
        assert ended.returncode == 0, ended.stderr
        check_predictions(bus, rows)
        check_shops(bus, rows)
        assert messages(bus, "trades.dead-letters") == [[]] * PARTITIONS
        assert running(tmp_path / "bus") == []


def test_features_are_exact_though_one_worker_is_hours_ahead_of_the_other(tmp_path: Path) -> None:
    """Half of the partitions hold few events, so that their worker is through them at once."""
    rows = trades([60, 1500, 60, 1500], hours=6)
    with bus_with(tmp_path / "bus", rows, labelled=False) as bus:
        ended = run_cluster(tmp_path / "bus", "--batch-size", "20")
        assert ended.returncode == 0, ended.stderr
        check_predictions(bus, rows)


def test_workers_stopped_by_a_signal_end_without_an_error(tmp_path: Path) -> None:
    path = tmp_path / "bus"
    rows = trades([30] * PARTITIONS, hours=0.1)
    with bus_with(path, rows) as bus, Running(path) as cluster:
        cluster.wait_for_predictions(bus, len(rows))
        assert cluster.end() == 0, cluster.said
        assert "Traceback" not in cluster.said
        check_predictions(bus, rows)
        assert running(path) == []


def test_without_state_all_workers_end_when_one_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "bus"
    rows = trades([30] * PARTITIONS, hours=0.1)
    with bus_with(path, rows) as bus, Running(path, "--no-state") as cluster:
        cluster.wait_for_predictions(bus, len(rows))
        victim = workers(cluster.process.pid)[0]
        os.kill(victim, signal.SIGKILL)
        assert cluster.process.wait(300) == 1
        assert f"(process {victim}) was killed by SIGKILL, so all were stopped" in cluster.said
        assert "Traceback" not in cluster.said
        assert running(path) == []


def test_with_state_killed_workers_and_a_killed_supervisor_cost_nothing(tmp_path: Path) -> None:
    """A worker at work, one that has not connected yet, and the supervisor are killed; the next run
    starts while the workers of the killed one wind down."""
    path = tmp_path / "bus"
    rows = trades([60] * PARTITIONS, hours=0.15)
    with (
        bus_with(path, rows[:80]) as bus,
        Running(path, "--checkpoint-interval", "0.5s") as cluster,
    ):
        cluster.wait_for_predictions(bus, 80)
        second = run_cluster(path)
        assert second.returncode == 1
        assert f"(process {cluster.process.pid})" in second.stderr
        assert len(second.stderr.splitlines()) == 1
        cluster.wait_for(lambda: kept(path))
        for number in (1, 0):
            victim = workers(cluster.process.pid)[number]
            os.kill(victim, signal.SIGKILL)
            who = f"worker {number} of 2 (process {victim}) was killed by SIGKILL"
            cluster.wait_until_said(f"{who}; restarting all from generation ")
            cluster.wait_for(lambda gone=victim: new_workers(cluster.process.pid, gone))
        publish(bus, rows[80:160])
        cluster.wait_for_predictions(bus, 160)
        cluster.kill(supervisor_only=True)
        publish(bus, rows[160:])
        third = run_cluster(path, "--start-offset", "latest")
        assert third.returncode == 0, third.stderr
        assert "resuming from generation" in third.stderr
        assert "--start-offset latest is ignored" in third.stderr
        check_predictions(bus, rows)
        assert running(path) == []


def test_a_refusal_of_a_worker_is_reported_once_and_ends_all(tmp_path: Path) -> None:
    """The file changes after the supervisor has read it, so that only the workers refuse."""
    path = tmp_path / "bus"
    failing = PIPELINE + "\nimport os\nif 'ANABRANCH_SUPERVISED' in os.environ: pipeline = None\n"
    with bus_with(path, trades([3] * PARTITIONS, hours=0.1)):
        arguments = command(path)
        (tmp_path / "trades_pipeline.py").write_text(failing)
        ended = subprocess.run(arguments, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.count("has no pipeline named 'pipeline'") == 1
    assert ended.stderr.splitlines()[-1].startswith("error: ")
    assert "restarting all" not in ended.stderr
    assert "Traceback" not in ended.stderr


def by_address(number: int, ports: list[int]) -> tuple[str, ...]:
    listed = ",".join(f"127.0.0.1:{port}" for port in ports)
    return "--addresses", listed, "--process-id", str(number)


def test_by_address_without_state_the_loss_of_another_one_is_exit_code_3(tmp_path: Path) -> None:
    path, ports = tmp_path / "bus", free_ports(2)
    rows = trades([10] * PARTITIONS, hours=0.1)
    with (
        bus_with(path, rows) as bus,
        Running(path, "--no-state", cluster=by_address(0, ports)) as one,
        Running(path, "--no-state", cluster=by_address(1, ports)) as two,
    ):
        one.wait_for_predictions(bus, len(rows))
        two.kill()
        assert one.process.wait(300) == 3
        assert "error: worker 0 lost its connection to another one: " in one.said


def test_by_address_a_cluster_heals_when_the_lost_host_comes_back(tmp_path: Path) -> None:
    path, ports = tmp_path / "bus", free_ports(2)
    rows = trades([60] * PARTITIONS, hours=0.15)
    with (
        bus_with(path, rows[:120]) as bus,
        Running(path, "--checkpoint-interval", "0.5s", cluster=by_address(0, ports)) as one,
    ):
        with Running(path, "--checkpoint-interval", "0.5s", cluster=by_address(1, ports)) as two:
            one.wait_for_predictions(bus, 120)
            one.wait_for(lambda: kept(path, "trades-0") and kept(path, "trades-1"))
            two.kill()
        one.wait_until_said("lost its connection to another one; restarting it")
        publish(bus, rows[120:])
        with Running(path, "--checkpoint-interval", "0.5s", cluster=by_address(1, ports)) as two:
            one.wait_for_predictions(bus, len(rows))
            one.process.send_signal(signal.SIGTERM)
            assert two.end() == 0, two.said
        assert one.process.wait(300) == 0, one.said
        check_predictions(bus, rows)
        assert running(path) == []


def kept(path: Path, name: str = "trades") -> bool:
    """Whether the engine has committed an epoch of the pipeline's state on this host."""
    files = (path.parent / "data" / "state" / name / "recovery").glob("part-*.sqlite3")
    for file in files:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as store:
            if store.execute("SELECT max(commit_epoch) FROM commits").fetchone()[0]:
                return True
    return False


def new_workers(supervisor: int, gone: int) -> bool:
    """Whether two workers run, both started after ``gone``."""
    found = workers(supervisor)
    return len(found) == 2 and gone not in found


def workers(supervisor: int) -> list[int]:
    """The process ids of its workers."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return [
        int(child)
        for child in children
        if b"-m\0anabranch\0" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
