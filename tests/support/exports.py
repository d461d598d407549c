"""Outputs of a pipeline on a bus, and what exports made of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import psycopg

from anabranch.dataflows.bus import Bus
from anabranch.dataflows.export.exporter import Exporter
from anabranch.dataflows.export.open_target import open_target
from anabranch.dataflows.export.output_tables import output_tables
from anabranch.dataflows.messages.outputs import DriftSignal, Moved, Prediction
from anabranch.dataflows.pipelines.loader import load_pipeline
from tests.support.export_servers import PASSWORD, PostgresServer, RedisServer

HOUR_MS = 3_600_000
BEGAN_MS = 1_764_489_600_000  # 2025-11-30 08:00 UTC

PIPELINE = """
from river import linear_model
from anabranch import Event, Pipeline, field, inline, window

class Payment(Event):
    id: str
    ts: int
    card: str
    amount: float
    fraud: bool

pipeline = Pipeline(
    name="fraud",
    event=Payment,
    label=inline("fraud"),
    features=[field("amount"), window("card", "amount", over="1h", stats=("count", "mean"))],
    model=linear_model.LogisticRegression(),
    with_features=True,
)
"""
PREDICTIONS, DRIFT, DEAD = "fraud.predictions", "fraud.drift", "fraud.dead-letters"


def prediction(number: int, **changes: Any) -> Prediction:
    """The prediction for the event of that number; a minute lies between two."""
    features = {"amount": number + 0.25, "card_amount_1h_count": 3.0, "card_amount_1h_mean": 0.1}
    made = Prediction(
        id=f"p{number}", ts=BEGAN_MS + 60_000 * number, topic="fraud.events", partition=0,
        offset=number, model="LogisticRegression", version=number, prediction=number % 2 == 0,
        score=number / 7, features=features,
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def drift_signal(number: int, **changes: Any) -> DriftSignal:
    """A drift signal at the time of that prediction."""
    made = DriftSignal(
        pipeline="fraud", subject="loss", detector="ADWIN", ts=BEGAN_MS + 60_000 * number,
        statistic={"p": 0.5}, topic="fraud.events", partition=0, offset=number,
        top=[Moved("US", 0.5, 0.25)],
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def publish(
    bus: Bus, topic: str, messages: Sequence[Any], partitions: int = 2, keys: int = 5
) -> None:
    """Append messages to a topic, which is created; keys are card-0, card-1 and so on."""
    bus.create_topics({topic: partitions})
    publisher = bus.publisher()
    publisher.append(
        topic,
        [each if isinstance(each, bytes) else msgspec.json.encode(each) for each in messages],
        keys=[f"card-{n % keys}".encode() for n in range(len(messages))],
        times=[BEGAN_MS + n for n in range(len(messages))],
    )
    publisher.close()


def messages_of(bus: Bus, topic: str) -> Iterator[tuple[int, int, bytes | None, Any]]:
    """Partition, offset, key and message of all that is on a topic."""
    from anabranch.dataflows.bus import TopicPartition
    from anabranch.dataflows.bus.read_to_end import ends_now, read_to_end

    starts = {TopicPartition(topic, n): at for n, at in enumerate(bus.start_offsets(topic))}
    reader = bus.reader(starts)
    for piece in read_to_end(reader, ends_now(bus, starts)):
        for offset, key, value in zip(
            piece.offsets.tolist(), piece.keys, piece.values, strict=True
        ):
            yield piece.partition, offset, key, msgspec.json.decode(value)
    reader.close()


class Place:
    """A target of a test, and what is in it."""

    def __init__(
        self, kind: str, directory: Path, server: PostgresServer | RedisServer | None = None
    ) -> None:
        self.kind, self.directory, self.server = kind, directory, server
        self.url = {
            "parquet": f"parquet:{directory}/exported",
            "sqlite": f"sqlite:{directory}/exported.db",
        }.get(kind) or server.url  # type: ignore[union-attr]

    @property
    def environment(self) -> dict[str, str]:
        """The environment that an export needs."""
        return {} if self.server is None else {"ANABRANCH_EXPORT_PASSWORD": PASSWORD}

    def rows(self, output: str = "predictions") -> list[dict[str, Any]]:
        """All rows of an output; of Redis, those of the keys."""
        if self.kind == "parquet":
            files = sorted(Path(self.directory, "exported", output).glob("*/*.parquet"))
            frames = [pl.read_parquet(file) for file in files]
            return pl.concat(frames, how="diagonal").to_dicts() if frames else []
        table = f"fraud_{output.replace('-', '_')}"
        if self.kind == "redis":
            assert isinstance(self.server, RedisServer)
            client = self.server.connect()
            keys = sorted(client.scan_iter(f"fraud.{output}:*"))
            return [{"at": key, **client.hgetall(key)} for key in keys]
        with self.sql() as connection:
            try:
                cursor = connection.execute(f"SELECT * FROM {table}")
            except (sqlite3.OperationalError, psycopg.errors.UndefinedTable):
                return []  # not yet
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    @contextmanager
    def sql(self) -> Iterator[Any]:
        """A connection to the database."""
        if self.kind == "sqlite":
            with closing(sqlite3.connect(self.directory / "exported.db", timeout=60)) as connection:
                yield connection
                connection.commit()
        else:
            assert isinstance(self.server, PostgresServer)
            with self.server.connect() as connection:
                yield connection


@contextmanager
def exporter(
    bus: Bus, directory: Path, url: str, outputs: Sequence[str] = ("predictions",), **options: Any
) -> Iterator[Exporter]:
    """An export of the pipeline in ``directory``."""
    pipeline = load_pipeline(str(directory / "fraud.py"))
    with (
        closing(open_target(url)) as target,
        closing(
            Exporter(bus, "fraud", output_tables(pipeline, outputs), target, **options)
        ) as opened,
    ):
        yield opened


def export(bus: Bus, place: Place, *outputs: str, **options: Any) -> dict[str, int]:
    """Export to the present end; how many messages of each output were exported."""
    opened = exporter(bus, place.directory, place.url, outputs or ("predictions",), **options)
    with opened as running:
        assert running.run(follow=False)
        return running.exported
