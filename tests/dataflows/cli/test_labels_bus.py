"""Labels from another bus than the events."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path

import pytest

from anabranch import DeclarationError, read_outputs
from anabranch.dataflows.bus import open_bus
from anabranch.dataflows.pipelines.loader import load_pipeline
from tests.support.checkpoint_pipeline import refused
from tests.support.commands import Call, caller

PIPELINE = """
from river import linear_model, preprocessing
from anabranch import Event, Label, Pipeline, Topics, field

class Order(Event):
    id: str
    ts: int
    amount: float

class Dispute(Label):
    id: str
    ts: int
    disputed: bool

pipeline = Pipeline(
    name="risk-{own}",
    event=Order,
    label=Dispute.target("disputed", timeout="7d"),
    features=[field("amount")],
    model=preprocessing.StandardScaler() | linear_model.LogisticRegression(),
    topics=Topics(events="orders-{own}", labels="disputes-{own}", {more}),
)
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    own = uuid.uuid4().hex[:8]
    now = int(time.time() * 1000)
    orders = [{"id": f"o{n}", "ts": now - 60_000 + n, "amount": n + 0.5} for n in range(40)]
    disputes = [{"id": f"o{n}", "ts": now - 60_000 + n, "disputed": n % 2 == 0} for n in range(30)]
    (tmp_path / "orders.jsonl").write_text("\n".join(map(json.dumps, orders)))
    (tmp_path / "disputes.jsonl").write_text("\n".join(map(json.dumps, disputes)))
    return own


@pytest.fixture
def call(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    return caller(tmp_path, capfd)


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def other(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:{tmp_path}/other"
    return str(request.getfixturevalue("kafka_broker").url)


def declare(directory: Path, own: str, more: str) -> None:
    (directory / "risk.py").write_text(PIPELINE.format(own=own, more=more))


def test_labels_are_read_from_their_bus(call: Call, own: str, other: str, tmp_path: Path) -> None:
    more = f'labels_bus="{other}"'
    if other.startswith("kafka"):
        (tmp_path / "other.properties").write_text("reach.timeout.ms=20000\n")
        more += ', labels_bus_config="other.properties"'
    declare(tmp_path, own, more)
    url = f"sqlite:{tmp_path}/bus"
    sent = call("publish", "risk.py", "orders.jsonl", "--labels", "disputes.jsonl", "--bus", url)
    assert sent.code == 0, sent.err
    events, labels = open_bus(url), open_bus(other)
    assert events.topics().keys() == {f"orders-{own}"}
    assert sum(labels.end_offsets(f"disputes-{own}")) == 30
    for _ in range(2):  # the second resumes
        ran = call("run", "risk.py", "--until-end", "--bus", url)
        assert ran.code == 0, ran.err
    assert f"risk-{own}.predictions" in events.topics()
    assert f"risk-{own}.predictions" not in labels.topics()
    found = list(read_outputs(load_pipeline(str(tmp_path / "risk.py")), bus=events))
    assert len(found) == 40
    assert found[-1].version == 30
    assert sum(events.end_offsets(f"risk-{own}.dead-letters")) == 0
    listed = call("topics", "risk.py", "--json", "--bus", url)
    counts = {each["topic"]: each["messages"] for each in json.loads(listed.out)["topics"]}
    assert counts[f"disputes-{own}"] == 30
    replayed = call("replay", "risk.py", "--to", "rows.parquet", "--bus", url)
    assert replayed.code == 0, replayed.err
    events.close()
    labels.close()


def test_a_bus_that_does_not_respond_is_named(call: Call, own: str, tmp_path: Path) -> None:
    (tmp_path / "short.properties").write_text("reach.timeout.ms=300\n")
    declare(tmp_path, own, 'labels_bus="kafka://127.0.0.1:9", labels_bus_config="short.properties"')
    refused(call("run", "risk.py", "--until-end"), "can't reach Kafka at 127.0.0.1:9")
    declare(tmp_path, own, 'labels_bus="kafka://h:9", labels_bus_config="gone"')
    refused(call("run", "risk.py", "--until-end"), "gone can't be read")


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ('labels_bus="orders"', "labels_bus='orders' in topics= .* must be the URL of a bus"),
        ('labels_bus_config="file"', "names labels_bus_config= without labels_bus=: give both"),
    ],
)
def test_a_mistake_is_one_sentence(own: str, more: str, sentence: str, tmp_path: Path) -> None:
    declare(tmp_path, own, more)
    with pytest.raises(DeclarationError, match=sentence):
        load_pipeline(str(tmp_path / "risk.py"))
