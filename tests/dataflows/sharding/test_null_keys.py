"""Null keys and combinations of keys have the same features when they are routed to shards."""

from __future__ import annotations

import json

import numpy as np
from river import linear_model

from anabranch import Event, Pipeline, field, inline, since_last, window
from anabranch.dataflows.batch.batch import EntityRows, RawBatch, RawRows
from anabranch.dataflows.sharding.entity_windows import EntityWindows, ValueReader
from anabranch.dataflows.sharding.router import Router
from anabranch.dataflows.source.decoder import BatchDecoder
from anabranch.state.keys.hashing import keys_of

T0 = 1_700_000_000_000


class Sale(Event):
    id: int
    ts: int
    card: int | None
    shop: str
    amount: float | None
    good: bool


PIPELINE = Pipeline(
    name="sales",
    event=Sale,
    label=inline("good"),
    features=[
        field("amount", fill_null=0.0),
        window("card", "amount", over="1h", stats=("count", "sum", "max")),
        window("card", over="1h", stats="count"),
        window(("card", "shop"), "amount", over="1h", stats=("count", "last")),
        since_last(("card", "shop"), within="1h"),
    ],
    model=linear_model.LogisticRegression(),
)


def messages(count: int) -> list[bytes]:
    return [
        json.dumps(
            {
                "id": n,
                "ts": T0 + n * 1000,
                "card": None if n % 3 == 0 else n % 2,
                "shop": "ab"[n % 5 % 2],
                "amount": None if n % 7 == 0 else n / 4,
                "good": True,
            }
        ).encode()
        for n in range(count)
    ]


def raw(values: list[bytes]) -> RawBatch:
    def rows(topic: str, values: list[bytes]) -> RawRows:
        at = np.arange(len(values))
        return RawRows(topic, values, at * 0, at, np.full(len(values), T0 + 10**7))

    order = np.arange(len(values))
    return RawBatch("0", 1, rows("sales.events", values), rows("sales.labels", []), order, 0.0)


def test_the_features_of_shards_are_those_of_one_worker() -> None:
    decoder, router = BatchDecoder(PIPELINE), Router(PIPELINE, 8, 2)
    whole = {name: EntityWindows(PIPELINE, name, False) for name in PIPELINE.entities}
    shards: dict[tuple[int, str], EntityWindows] = {}
    values = messages(60)
    for cut in (values[:7], values[7:8], values[8:]):
        batch = decoder.decode(raw(cut))
        assert not batch.dead_letters
        columns = ValueReader(PIPELINE).read(batch.columns)
        expected = {}
        for name, windows in whole.items():
            expected[name] = np.full((len(batch), windows.width), np.nan)
            keys = keys_of(batch.columns[name])
            windows.fill(keys, batch.times, columns, expected[name])
        assert np.isfinite(np.hstack(list(expected.values()))).all()
        of_null = [n for n, key in enumerate(batch.columns["card"]) if key is None]
        assert not expected["card"][of_null].any()
        assert (expected["card+shop"][of_null] == [0.0, 0.0, 3600.0]).all()
        for _, part in router.route(batch, T0):
            if isinstance(part, EntityRows):
                at = part.shard, part.entity
                windows = shards.setdefault(at, EntityWindows(PIPELINE, part.entity, False))
                found = np.full((len(part.rows), windows.width), np.nan)
                windows.fill(part.keys, part.times, part.columns, found)
                assert (found == expected[part.entity][part.rows]).all()
