"""``anabranch init``: declarations that run, of streams of any shape."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastavro
import polars as pl
import pytest

from anabranch.dataflows.bus import open_bus
from anabranch.dataflows.check.report import check
from anabranch.dataflows.check.sample import sample_of_topics
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.first_declaration.declare import declare
from anabranch.dataflows.first_declaration.fields import sampled_fields
from anabranch.dataflows.first_declaration.roles import event_roles
from anabranch.dataflows.first_declaration.samples import Fields
from anabranch.dataflows.pipelines.loader import load_pipeline
from tests.support.commands import Call, caller
from tests.support.schema_registry import RegistryServer

T = 1_764_000_000_000
N = 120
Rows = list[dict[str, Any]]


@pytest.fixture
def call(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    return caller(tmp_path, capfd)


def iso(n: int) -> str:
    return f"2025-11-24T{n // 60 % 24:02}:{n % 60:02}:00Z"


def flat() -> Rows:
    chance = random.Random(1)
    return [
        {
            "id": f"e{n}",
            "ts": T + 1000 * n,
            "card": f"c{n % 17}",
            "merchant": f"m{n % 30}",
            "amount": round(chance.random() * 100, 2),
            "country": chance.choice(["US", "DE", "FR"]),
            "currency": "EUR",
            "note": None,
            "fraud": chance.random() < 0.2,
        }
        for n in range(N)
    ]


def nested() -> Rows:
    return [
        {
            "order": {"number": f"A-{n}", "customer": {"id": n % 9, "since": "2020-01-01"}},
            "created": {"at": iso(n)},
            "total": {"amount": f"{n / 4:.2f}", "currency": "EUR", "tax": n / 9 if n % 3 else None},
            "items": [{"sku": "a", "price": 1.5}] * (n % 3),
            "class": "web" if n % 2 else "app",
            "path": "/a" if n % 3 else None,
            "import": n % 4,
        }
        for n in range(N)
    ]


def debezium() -> Rows:
    rows: Rows = [
        {
            "before": None,
            "after": {"id": n, "card_no": n % 11, "amount": n * 1.5, "status": "ab"[n % 2]},
            "op": "r" if n < 9 else "c",
            "ts_ms": T + 1000 * n,
            "source": {"table": "payments", "lsn": n},
        }
        for n in range(N)
    ]
    changed = rows[5] | {"op": "u", "before": rows[5]["after"], "ts_ms": T + 1000 * N}
    return [{"schema": {"type": "struct"}, "payload": each} for each in [*rows, changed]]


def epoch_texts() -> Rows:
    return [
        {
            "reading_id": 10**15 + n,
            "sensor": n % 9,
            "time": str(T // 1000 + n),
            "temp": 20 + n % 7 / 10,
            "humidity": None if n % 5 == 0 else 40 + n % 3,
            "mode": n % 3,
        }
        for n in range(N)
    ]


def table() -> Rows:
    chance = random.Random(2)
    return [
        {
            "Order ID": f"{n:06}",
            "Order Date": iso(n).replace("T", " ").removesuffix("Z"),
            "Customer": f"cust{n % 20}",
            "Quantity": n % 5 + 1 if n % 7 else "NA",
            "Price": f"{chance.random() * 10:.2f}",
            "Converted": n % 2,
        }
        for n in range(N)
    ]


def publish(directory: Path, topic: str, payloads: list[bytes], partitions: int = 1) -> None:
    bus = open_bus(f"sqlite:{directory / 'data/bus'}")
    bus.create_topics({topic: partitions})
    publisher = bus.publisher()
    publisher.append(topic, payloads, times=[T + 1000 * n for n in range(len(payloads))])
    publisher.close()
    bus.close()


def publish_rows(directory: Path, topic: str, rows: Rows) -> None:
    publish(directory, topic, [json.dumps(row).encode() for row in rows])


def write_csv(path: Path, rows: Rows) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def run(call: Call, directory: Path, name: str) -> Rows:
    """Run the declaration to the end; its predictions."""
    done = call("run", f"{name}.py", "--until-end")
    assert done.code == 0, done.err
    printed = call("consume", f"{name}.py", "predictions", "--no-follow", "--raw")
    return [json.loads(line) for line in printed.out.splitlines()]


def fits(directory: Path, pipeline: Pipeline) -> int:
    """How many events of a pipeline's topic fit it; all of those that are its own must."""
    bus = open_bus(f"sqlite:{directory / 'data/bus'}")
    report = check(pipeline, sample_of_topics(bus, pipeline.topics.all_events, 5000), None)
    bus.close()
    assert report.ok, report.events.reasons
    return report.events.fit


@pytest.mark.parametrize(
    ("rows", "id", "time", "unit", "entities", "label"),
    [
        (flat, "id", "ts", "ms", {"card", "merchant"}, "fraud"),
        (nested, "order_number", "created_at", "ms", {"customer_id"}, "class_"),
        (debezium, "id", "ts_ms", "ms", {"card_no"}, None),
        (epoch_texts, "reading_id", "time", "s", {"sensor"}, None),
    ],
    ids=["flat", "nested", "Debezium", "integer ids, epoch texts"],
)
def test_a_topic_gets_a_declaration_that_runs(
    tmp_path: Path,
    call: Call,
    rows: Callable[[], Rows],
    id: str,
    time: str,
    unit: str,
    entities: set[str],
    label: str | None,
) -> None:
    publish_rows(tmp_path, "prod.Things.v2", rows())
    told = call("init", "prod.Things.v2", "--to", "things.py")
    assert told.code == 0, told.err
    assert f"{N} of " in told.out
    pipeline = load_pipeline(str(tmp_path / "things.py"))
    assert (pipeline.id, pipeline.time, pipeline.time_unit) == (id, time, unit)
    assert set(pipeline.entities) == entities
    assert getattr(pipeline.label, "field", None) == label
    assert fits(tmp_path, pipeline) == N
    predictions = run(call, tmp_path, "things")
    assert len({each["id"] for each in predictions}) == len(predictions) == N


def test_a_csv_gets_a_declaration_that_runs(tmp_path: Path, call: Call) -> None:
    write_csv(tmp_path / "shop.csv", table())
    told = call("init", "shop.csv")
    assert told.code == 0, told.err
    assert f"{N} of {N} events of shop.csv fit" in told.out
    pipeline = load_pipeline(str(tmp_path / "shop.py"))
    assert (pipeline.id, pipeline.time, set(pipeline.entities)) == (
        "order_id",
        "order_date",
        {"Customer"},
    )
    assert call("publish", "shop.py", "shop.csv").code == 0
    assert fits(tmp_path, pipeline) == N
    assert [each["id"] for each in run(call, tmp_path, "shop")] == [f"{n:06}" for n in range(N)]


def test_labels_of_a_file_are_joined_and_learned(tmp_path: Path, call: Call) -> None:
    """By the field of the events that has their ids, of another name."""
    events = [
        {"ref": f"r{n}", "id": f"x{n}", "at": iso(n), "shop": n % 5, "sum": n} for n in range(N)
    ]
    labels = [
        {"case": 7 * n, "order": f"r{n}", "when": iso(n + 30), "outcome": "yes" if n % 3 else "no"}
        for n in range(N)
    ]
    for name, rows in (("orders", events), ("disputes", labels)):
        lines = [json.dumps(row) for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    told = call("init", "orders.jsonl", "--labels", "disputes.jsonl", "--name", "risk")
    assert told.code == 0, told.err
    assert f"{N} of {N} labels of disputes.jsonl fit" in told.out
    pipeline = load_pipeline(str(tmp_path / "risk.py"))
    label: Any = pipeline.label
    assert (pipeline.id, label.id, label.time, label.field) == ("ref", "order", "when", "outcome")
    published = call("publish", "risk.py", "orders.jsonl", "--labels", "disputes.jsonl")
    assert published.code == 0, published.err
    predictions = run(call, tmp_path, "risk")
    assert len(predictions) == N
    assert predictions[-1]["version"] > 0


def test_avro_is_read_with_the_registered_schema(tmp_path: Path, call: Call) -> None:
    fields = [
        {"name": "id", "type": "string"},
        {"name": "ts", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "user", "type": "string"},
        {"name": "price", "type": "double"},
        {"name": "discount", "type": ["null", "double"], "default": None},
        {"name": "clicked", "type": "boolean"},
    ]
    schema = {"type": "record", "name": "Click", "fields": fields}
    registry = RegistryServer()
    try:
        number = registry.add("clicks-value", schema)
        payloads = []
        for n in range(N):
            row = {"id": f"e{n}", "ts": T + n * 1000, "user": f"u{n % 7}", "price": n / 2}
            buffer = io.BytesIO()
            fastavro.schemaless_writer(
                buffer, schema, row | {"discount": 0.5 + n, "clicked": n % 2 == 0}
            )
            payloads.append(registry.frame(number, buffer.getvalue()))
        publish(tmp_path, "clicks", payloads)
        bare = call("init", "clicks", "--to", "c.py")
        assert bare.code == 1
        assert "--registry" in bare.err
        told = call("init", "clicks", "--registry", registry.url, "--to", "c.py")
        assert told.code == 0, told.err
        text = (tmp_path / "c.py").read_text()
        assert "discount: float | None = None" in text
        assert len(run(call, tmp_path, "c")) == N
    finally:
        registry.close()


def test_parquet_and_messages_without_an_id(tmp_path: Path, call: Call) -> None:
    rows = [{"user": f"u{n % 6}", "when": iso(n), "clicks": n % 4} for n in range(N)]
    frame = pl.DataFrame(rows).with_columns(pl.col("when").str.to_datetime(time_zone="UTC"))
    frame.write_parquet(tmp_path / "visits.parquet")
    told = call("init", "visits.parquet")
    assert told.code == 0, told.err
    assert "coordinates()" in (tmp_path / "visits.py").read_text()
    assert call("publish", "visits.py", "visits.parquet").code == 0
    assert len(run(call, tmp_path, "visits")) == N


def test_no_file_is_overwritten(tmp_path: Path, call: Call) -> None:
    publish_rows(tmp_path, "things.events", flat())
    (tmp_path / "things.py").write_text("mine")
    told = call("init", "things.events")
    assert told.code == 1
    assert "things.py exists" in told.err
    assert (tmp_path / "things.py").read_text() == "mine"
    shown = call("init", "things.events", "--to", "-")
    assert shown.code == 0
    assert "class Thing(Event):" in shown.out
    assert "topics=" not in shown.out


def test_what_is_no_stream_of_events_is_one_sentence(tmp_path: Path, call: Call) -> None:
    publish_rows(tmp_path, "names", [{"name": f"n{n}"} for n in range(5)])
    publish(tmp_path, "blobs", [b"\x80\x81"] * 3)
    (tmp_path / "empty.jsonl").write_text("")
    for source, part in (
        ("names", "no field of names is a time"),
        ("blobs", "none of the messages of topic 'blobs' can be read"),
        ("empty.jsonl", "is empty"),
        ("gone", "does not exist"),
        ("gone.csv", "there is no file"),
    ):
        told = call("init", source, "--to", "x.py")
        assert told.code == 1, source
        assert part in " ".join(told.err.split())
    assert not (tmp_path / "x.py").exists()


def load(tmp_path: Path, rows: Rows) -> Pipeline:
    written, _ = declare("odd.name-2", Fields("odd", False, rows), None)
    path = tmp_path / f"p{abs(hash(written.text))}.py"
    path.write_text(written.text)
    return load_pipeline(str(path))


NAMES = [
    *("class", "path", "int", "str", "Event", "self", "2nd", "a-b", "a.b", "ß", "_x", "with space"),
    *("'quoted'", 'double"', "tab\there", "[0]", "$.top", "café", "Cast", "None", "id", "+ plus"),
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_field_gives_a_declaration(tmp_path: Path, name: str) -> None:
    rows = [{name: f"v{n % 5}", "x": {name: n + 0.5}, "ts": T + n} for n in range(30)]
    pipeline = load(tmp_path, rows)
    assert pipeline.columns


def test_kinds_of_values(tmp_path: Path) -> None:
    rows = [
        {
            "id": n if n % 2 else str(n),
            "ts": (T + n) * 1000,
            "zip": f"0{1000 + n % 3}",
            "price": "1.50" if n % 2 else 2,
            "late": None if n % 2 else 1,
            "huge": 10**200 + n,
            "mixed": [n] if n % 2 else n,
            "many": {"deep": {"er": n % 2 == 0}},
        }
        for n in range(40)
    ]
    fields = {each.path: each for each in sampled_fields(rows)}
    assert fields["ts"].time_unit == "us"
    assert (fields["price"].type.annotation, fields["price"].type.cast) == ("float", True)
    assert fields["zip"].type.annotation == "str"
    assert fields["mixed"].type.kind == "other"
    assert fields["many.deep.er"].type.annotation == "bool"
    roles = event_roles(list(fields.values()), [], "rows")
    assert fields["huge"] not in roles.used
    assert load(tmp_path, rows).time_unit == "us"


def test_events_that_come_late_get_the_lateness_that_they_need(tmp_path: Path) -> None:
    rows = [{"id": n, "ts": T + (n if n % 9 else -5000) * 1000, "x": n / 2} for n in range(40)]
    assert load(tmp_path, rows).allowed_lateness == "6h"
