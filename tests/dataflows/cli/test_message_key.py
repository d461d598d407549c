"""Commands on a pipeline whose entity is the key of its messages."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from anabranch.dataflows.bus import open_bus
from tests.support.commands import Call, caller

PIPELINE = """
from river import linear_model, preprocessing
from anabranch import Event, Pipeline, Topics, coordinates, field, inline, message_key, window

class Order(Event):
    id: str = coordinates()
    customer: str = message_key()
    ts: int
    amount: float
    paid: bool

pipeline = Pipeline(
    name="orders",
    event=Order,
    label=inline("paid"),
    features=[field("amount"), window("customer", "amount", over="1h", stats=("count", "sum"))],
    model=preprocessing.StandardScaler() | linear_model.LogisticRegression(),
    with_features=True,
)
"""


@pytest.fixture
def call(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    (tmp_path / "orders.py").write_text(PIPELINE)
    return caller(tmp_path, capfd)


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_rows_of_files_get_their_key_and_all_that_is_published_fits(
    call: Call, tmp_path: Path, ending: str
) -> None:
    now = int(time.time() * 1000)
    rows = [
        {"customer": f"c{n % 3}", "ts": now - 1000 + n, "amount": n / 2, "paid": n % 2 == 0}
        for n in range(30)
    ]
    lines = [json.dumps(row) for row in rows]
    if ending == "csv":
        lines = ["customer,ts,amount,paid"]
        lines += [f"{r['customer']},{r['ts']},{r['amount']},{str(r['paid']).lower()}" for r in rows]
    (tmp_path / f"rows.{ending}").write_text("\n".join(lines))
    sent = call("publish", "orders.py", f"rows.{ending}", "--partitions", "2")
    assert sent.code == 0, sent.err
    checked = call("check", "orders.py")
    assert checked.code == 0, checked.out + checked.err
    ran = call("run", "orders.py", "--until-end")
    assert ran.code == 0, ran.err
    bus = open_bus(f"sqlite:{tmp_path}/data/bus")
    assert sum(bus.end_offsets("orders.predictions")) == 30
    assert sum(bus.end_offsets("orders.dead-letters")) == 0
    bus.close()
    skew = call("skew", "orders.py")
    assert skew.code == 0, skew.out + skew.err
