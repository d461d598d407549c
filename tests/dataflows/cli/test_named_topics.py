"""Every command on a pipeline whose topics have names of their own, on both buses."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from anabranch import DeadLetter, InputError, read_outputs
from anabranch.dataflows.bus import open_bus
from anabranch.dataflows.cli.demo.topic_sample import all_messages
from tests.support.commands import Call, caller

PIPELINE = """
from river import linear_model, preprocessing
from anabranch import Event, Label, Pipeline, Topics, field, window

class Order(Event):
    id: str
    ts: int
    customer: str
    amount: float

class Dispute(Label):
    id: str
    ts: int
    disputed: bool

pipeline = Pipeline(
    name="Order.Risk-{own}",
    event=Order,
    label=Dispute.target("disputed", timeout="7d"),
    features=[field("amount"), window("customer", "amount", over="1h", stats=("count", "mean"))],
    model=preprocessing.StandardScaler() | linear_model.LogisticRegression(),
    with_features=True,
    topics=Topics(
        events="prod.orders.V2-{own}",
        labels="disputes-{own}",
        predictions="ml.order-risk-{own}",
    ),
)
"""


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:{tmp_path}/bus"
    return str(request.getfixturevalue("kafka_broker").url)


@pytest.fixture
def call(url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    run = caller(tmp_path, capfd)
    return lambda *arguments: run(*arguments, ANABRANCH_BUS=url)


@pytest.fixture
def own(tmp_path: Path) -> str:
    """The end of this test's topics; the pipeline is in order_risk.py."""
    own = uuid.uuid4().hex[:8]
    (tmp_path / "order_risk.py").write_text(PIPELINE.format(own=own))
    now = int(time.time() * 1000)
    orders = [
        {"id": f"o{n}", "ts": now - 60_000 + n, "customer": f"c{n % 3}", "amount": n + 0.5}
        for n in range(40)
    ]
    disputes = [{"id": f"o{n}", "ts": now, "disputed": n % 2 == 0} for n in range(30)]
    rows = [json.dumps(each) for each in orders]
    (tmp_path / "orders.jsonl").write_text("\n".join([*rows[:20], '{"id":"bad"}', *rows[20:]]))
    (tmp_path / "disputes.jsonl").write_text("\n".join(map(json.dumps, disputes)))
    return own


def test_each_command_finds_the_topics(
    call: Call, own: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = call("run", "order_risk.py", "--until-end")
    assert missing.code == 1
    assert f"topic 'prod.orders.V2-{own}'" in missing.err
    bus = open_bus(url)
    bus.create_topics({f"prod.orders.V2-{own}": 2})  # of another team

    created = call("topics", "order_risk.py", "--create")
    assert f"created ml.order-risk-{own}" in created.out
    assert f"left as they are, because they exist: prod.orders.V2-{own}" in created.out
    told = json.loads(call("topics", "order_risk.py", "--json").out)["topics"]
    assert {each["topic"]: each["partitions"] for each in told} == dict.fromkeys(
        [
            f"prod.orders.V2-{own}", f"disputes-{own}", f"ml.order-risk-{own}",
            f"Order.Risk-{own}.drift", f"Order.Risk-{own}.dead-letters",
        ],
        2,
    )  # fmt: skip

    sent = call("publish", "order_risk.py", "orders.jsonl", "--labels", "disputes.jsonl")
    assert sent.code == 0, sent.err
    ran = call("run", "order_risk.py", "--until-end")
    assert ran.code == 0, ran.err
    assert (tmp_path / "data" / "state" / f"Order.Risk-{own}").is_dir()
    assert len(list(all_messages(bus, f"ml.order-risk-{own}"))) == 40

    for arguments in (
        ["order_risk.py"],
        ["order_risk.py", "predictions"],
        [f"ml.order-risk-{own}"],
    ):
        done = call("consume", *arguments, "--no-follow")
        assert done.code == 0, done.err
        assert len(done.out.splitlines()) == 40
    for arguments in (["order_risk.py", "dead-letters"], ["order_risk.dead-letters"]):
        done = call("consume", *arguments, "--no-follow")
        assert [json.loads(line)["topic"] for line in done.out.splitlines()] == [
            f"prod.orders.V2-{own}"
        ]
    unknown = call("consume", "order_risk.py", "predicted", "--no-follow")
    assert "'predicted' is no output of a pipeline: name one of events, labels" in unknown.err

    monkeypatch.chdir(tmp_path)
    assert len(list(read_outputs("order_risk.py", bus=url))) == 40
    assert len(list(read_outputs("order_risk", bus=bus))) == 40
    assert len(list(read_outputs("order_risk.py", DeadLetter, bus=bus))) == 1
    assert call("skew", "order_risk.py").code == 0
    replayed = call("replay", "order_risk.py", "--to", "rows.parquet")
    assert replayed.code == 0, replayed.err
    assert len(pl.read_parquet(tmp_path / "rows.parquet")) == 40
    bus.close()


def test_an_output_may_have_more_partitions_than_the_input(call: Call, own: str, url: str) -> None:
    bus = open_bus(url)
    bus.create_topics({f"ml.order-risk-{own}": 5, f"prod.orders.V2-{own}": 2})
    assert call("publish", "order_risk.py", "orders.jsonl", "--labels", "disputes.jsonl").code == 0
    ran = call("run", "order_risk.py", "--until-end")
    assert ran.code == 0, ran.err
    again = call("run", "order_risk.py", "--until-end")
    assert again.code == 0, again.err
    assert len(bus.topics()) >= 5
    assert bus.topics()[f"ml.order-risk-{own}"] == 5
    ids = [json.loads(each)["id"] for each in all_messages(bus, f"ml.order-risk-{own}")]
    assert sorted(ids) == sorted(f"o{n}" for n in range(40))
    bus.close()


def test_a_name_that_is_unknown_is_told_how_to_name_the_pipeline(
    call: Call, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bus = open_bus(url)
    with pytest.raises(Exception, match="give read_outputs the pipeline, not its name"):
        read_outputs("nothing-of-this-name", bus=bus)
    with pytest.raises(InputError, match="is no type of output"):
        read_outputs("order_risk.py", dict[str, Any], bus=bus)  # type: ignore[type-var]
    bus.close()
