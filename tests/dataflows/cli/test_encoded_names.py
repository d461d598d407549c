"""Fields under other names in messages: from a file to a topic, a run, a replay and a check."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from anabranch.dataflows.bus import open_bus
from tests.support.commands import Call, caller
from tests.support.kafka_broker import KafkaBroker

T = 1_736_121_600_000
DECLARED = """
import msgspec
from river import linear_model
from anabranch import Event, Label, Pipeline, field, target, window

class Payment(Event, rename="camel"):
    payment_id: str
    paid_at: int
    card_no: str
    amount: float = msgspec.field(name="AMOUNT")

class Verdict(Label, rename="kebab"):
    payment_id: str
    known_at: int
    is_fraud: bool

pipeline = Pipeline(
    name="renamed",
    event=Payment,
    id="payment_id",
    time="paid_at",
    label=Verdict.target("is_fraud", id="payment_id", time="known_at", timeout="1d"),
    features=[
        field("amount"),
        window("card_no", "amount", over="1h", stats=("mean",)),
        window("card_no", target(), over="1h", stats=("count",)),
    ],
    model=linear_model.LogisticRegression(),
    with_features=True,
)
"""


@pytest.fixture
def call(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    (tmp_path / "renamed.py").write_text(DECLARED)
    ids = [f"p{n}" for n in range(40)]
    pl.DataFrame(
        {
            "paymentId": ids,
            "paidAt": [T + 60_000 * n for n in range(40)],
            "cardNo": [f"{n % 3}" for n in range(40)],
            "AMOUNT": [n / 2 for n in range(40)],
        }
    ).write_csv(tmp_path / "events.csv")
    pl.DataFrame(
        {
            "payment-id": ids[:30],
            "known-at": [T + 60_000 * n + 90_000 for n in range(30)],
            "is-fraud": [n % 2 == 0 for n in range(30)],
        }
    ).write_parquet(tmp_path / "labels.parquet")
    return caller(tmp_path, capfd)


def test_every_command_takes_them(tmp_path: Path, call: Call) -> None:
    files = ("events.csv", "--labels", "labels.parquet")
    done = call("check", "renamed.py", *files)
    assert done.code == 0, done
    assert "30 of 30 join" in done.out
    done = call("publish", "renamed.py", *files, "--partitions", 2)
    assert done.code == 0, done
    done = call("check", "renamed.py")
    assert done.code == 0, done
    assert "30 of 30 join" in done.out
    done = call("run", "renamed.py", "--until-end", "--no-state")
    assert done.code == 0, done
    assert "found no event" not in done.err
    done = call("skew", "renamed.py", "--json")
    report = json.loads(done.out)
    assert (done.code, report["compared"]) == (0, 40), report
    done = call("replay", "renamed.py", "--from", "events.csv", *files[1:], "--to", "rows.parquet")
    assert done.code == 0, done
    rows = pl.read_parquet(tmp_path / "rows.parquet")
    assert rows["label"].count() == 30
    named = ("--events", "events.csv", "--labels", "labels.parquet", "--features", "rows.parquet")
    done = call("skew", "renamed.py", *named, "--order-tolerance", "0s")
    assert done.code == 0, done


def test_a_check_of_a_topic_of_kafka(call: Call, kafka_broker: KafkaBroker) -> None:
    bus = open_bus(kafka_broker.url)
    bus.create_topics({"renamed.events": 2, "renamed.labels": 2})
    bus.close()
    url = ("--bus", kafka_broker.url)
    assert call("publish", "renamed.py", "events.csv", *url).code == 0
    done = call("check", "renamed.py", "--rows", 8, "--json", *url)
    assert done.code == 0, done
    events = json.loads(done.out)["events"]
    assert (events["read"], events["total"]) == (8, 40)
    assert events["times"]["earliest"] == T
