"""Decoding messages to columns, beside the libraries that make a dict of one message at a time.

How such a comparison can mislead, and what is done about it:

* Fields that nobody needs. Six fields are used, of 10 and of 40; the libraries make all of them,
  as they can't be told which. They are not charged for taking the six out of the dicts.
* Batches. A library takes a message at a time, whatever the batch; ours is measured with batches of
  1,000 and of 10.
* Noise. All sides take turns, CPU time counts, and the best of many turns.

A format is a function in `FORMATS` that gives its `Case`s; they may have any libraries to compare.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import orjson

from anabranch.dataflows.codec.json_codec import JsonCodec
from anabranch.dataflows.codec.protocol import Codec
from anabranch.dataflows.declaration.shape import Cast, path
from anabranch.dataflows.messages.inputs import Event
from benchmarks.binary_formats import in_avro, in_debezium, in_protobuf
from benchmarks.report import Report, Target

BATCHES = (1000, 10)
FIELDS = (10, 40)
USED = ("id", "card", "merchant", "amount", "country", "paid")
"""Of these columns are made; the event time is read as well."""

TEXTS = frozenset({"id", "card"})
_T0 = 1_736_121_600_000
_MOST_NESTED = 1.5
_MOST_UNKNOWN = 1.1


@dataclass(frozen=True, slots=True)
class Case:
    """One way to write messages, and who decodes them.

    Attributes:
        name: the format and its variant.
        fields: how many fields a message has.
        messages: as many as the largest batch.
        event: the type that our decoder makes columns for.
        codec: our codec.
        libraries: name → a function that decodes one message.
    """

    name: str
    fields: int
    messages: list[bytes]
    event: type[Event]
    codec: Codec
    libraries: Mapping[str, Callable[[bytes], Any]] = field(default_factory=dict)

    def reader(self) -> Callable[[list[bytes]], Any]:
        """Our decoder, as a function of a batch.

        Raises:
            AssertionError: the messages need the general path.
        """
        texts = {"texts": TEXTS} if self.codec.makes_texts else {}
        decoder = self.codec.column_decoder(self.event, "ts", USED, **texts)
        assert decoder is not None, self.name
        published = {count: np.full(count, _T0) for count in (*BATCHES, len(self.messages))}

        def read(values: list[bytes]) -> Any:
            columns = decoder.read(values, published[len(values)])
            assert columns is not None, self.name
            return columns

        return read


def rows(count: int, fields: int, seed: int = 7) -> list[dict[str, Any]]:
    """Payments of ``fields`` fields, flat: seven that are read, and others of every type."""
    rng = random.Random(seed)
    more: list[Callable[[int], Any]] = [
        lambda n: f"text {n % 97} of some length",
        lambda n: round(rng.uniform(-100, 100), 3),
        lambda n: n * 7919 % 10_000,
        lambda n: n % 3 == 0,
    ]
    found = []
    for n in range(count):
        row = {
            "id": str(10_000_000 + n),
            "ts": _T0 + n,
            "card": str(4929_0000 + rng.randrange(5000)),
            "merchant": f"merchant-{rng.randrange(300)}",
            "amount": round(rng.lognormvariate(3, 1), 2),
            "country": rng.choice(("US", "DE", "FR", "GB")),
            "paid": n % 7 == 0,
        }
        for extra in range(fields - len(row)):
            row[f"extra_{extra}"] = more[extra % len(more)](n + extra)
        found.append(row)
    return found


def nested(row: dict[str, Any]) -> dict[str, Any]:
    """The same payment as a database has it: nested, its ids numbers, its numbers texts."""
    rest = {name: value for name, value in row.items() if name.startswith("extra_")}
    names = list(rest)
    half = len(names) // 2
    return {
        "after": {
            "order": {"number": int(row["id"]), **{name: rest[name] for name in names[:half]}},
            "card": {"number": int(row["card"])},
            "total": {"amount": f"{row['amount']:.2f}", "country": row["country"]},
            "merchant": row["merchant"],
            "paid": int(row["paid"]),
            **{name: rest[name] for name in names[half:]},
        },
        "at": str(row["ts"]),
    }


class Used(Event):
    """The fields that are used, and no others."""

    id: str
    ts: int
    card: str
    merchant: str
    amount: float
    country: str
    paid: bool


class UsedNested(Event):
    """The fields that are used, where `nested` puts them."""

    id: int = path("after.order.number")
    ts: Cast[int] = path("at")
    card: int = path("after.card.number")
    merchant: str = path("after.merchant")
    amount: Cast[float] = path("after.total.amount")
    country: str = path("after.total.country")
    paid: Cast[bool] = path("after.paid")


def declared(row: dict[str, Any]) -> type[Event]:
    """An event type with all fields of a row."""
    return msgspec.defstruct(
        "Declared", [(name, type(value)) for name, value in row.items()], bases=(Event,)
    )  # type: ignore[return-value]


def json_cases(count: int) -> list[Case]:
    """JSON: flat with all fields declared, with those that are used, and nested with casts."""
    libraries = {"msgspec": msgspec.json.Decoder().decode, "orjson": orjson.loads}
    codec, cases = JsonCodec(), []
    for fields in FIELDS:
        made = rows(count, fields)
        flat = [_json(row) for row in made]
        envelopes = [_json(nested(row)) for row in made]
        cases += [
            Case("JSON, flat", fields, flat, declared(made[0]), codec, libraries),
            Case("JSON, flat, others unknown", fields, flat, Used, codec, libraries),
            Case("JSON, nested, casts", fields, envelopes, UsedNested, codec, libraries),
        ]
    return cases


def _json(row: dict[str, Any]) -> bytes:
    return json.dumps(row, separators=(",", ":")).encode()


def _cases(name: str, write: Callable[..., Any]) -> Callable[[int], list[Case]]:
    def make(count: int) -> list[Case]:
        cases = []
        for fields in FIELDS:
            messages, codec, libraries = write(rows(count, fields))
            cases.append(Case(name, fields, messages, Used, codec, libraries))
        return cases

    return make


FORMATS: Sequence[Callable[[int], list[Case]]] = (
    json_cases,
    _cases("Avro", in_avro),
    _cases("Protobuf", in_protobuf),
    _cases("JSON, Debezium", in_debezium),
)


def measure(case: Case, batch: int, turns: int) -> dict[str, float]:
    """Who → CPU µs per message, the best of many turns."""
    read = case.reader()
    values = case.messages
    batches = [values[at : at + batch] for at in range(0, len(values), batch)]

    def ours() -> None:
        for each in batches:
            read(each)

    def library(decode: Callable[[bytes], Any]) -> Callable[[], None]:
        def all_messages() -> None:
            for value in values:
                decode(value)

        return all_messages

    sides = {"anabranch": ours} | {name: library(each) for name, each in case.libraries.items()}
    best = dict.fromkeys(sides, float("inf"))
    for turn in range(turns + 1):
        for name, work in sides.items():
            began = time.process_time()
            work()
            if turn:  # the first one warms up
                best[name] = min(best[name], time.process_time() - began)
    return {name: seconds / len(values) * 1e6 for name, seconds in best.items()}


def check_agreement(count: int = 50) -> None:
    """Raise unless all variants of one format give the same columns."""
    for make in FORMATS:
        found: dict[int, list[Any]] = {}
        for case in make(count):
            times, columns, _ = case.reader()(case.messages)
            values = [times.tolist(), *(list(columns[name]) for name in USED)]
            expected = found.setdefault(case.fields, values)
            assert values == expected, f"{case.name} differs"


def run(quick: bool = False) -> Report:
    """Measure all formats; see the module."""
    check_agreement()
    turns = 10 if quick else 60
    table: list[dict[str, Any]] = []
    figures: dict[tuple[str, int, int], float] = {}
    faster: dict[tuple[str, int, int], float] = {}
    for make in FORMATS:
        for case in make(max(BATCHES)):
            for batch in BATCHES:
                found = measure(case, batch, turns)
                own = found.pop("anabranch")
                figures[case.name, case.fields, batch] = own
                row: dict[str, Any] = {
                    "messages": case.name,
                    "fields": case.fields,
                    "bytes": sum(map(len, case.messages)) // len(case.messages),
                    "batch": batch,
                    "anabranch, µs": own,
                }
                for name, each in found.items():
                    row[f"{name} to dicts, µs"] = each
                row["times faster"] = min(found.values()) / own if found else 0.0
                faster[case.name, case.fields, batch] = row["times faster"]
                table.append(row)
    targets = [
        Target(f"{wanted} / flat, {fields} fields, batch {batch}", ratio, most)
        for fields in FIELDS
        for batch in BATCHES
        for wanted, name, most in (
            ("nested with casts", "JSON, nested, casts", _MOST_NESTED),
            ("others unknown", "JSON, flat, others unknown", _MOST_UNKNOWN),
        )
        if (name, fields, batch) in figures
        for ratio in [figures[name, fields, batch] / figures["JSON, flat", fields, batch]]
    ]
    targets += [
        Target(f"{name} / {library}, {fields} fields, batch {batch}", 1 / ratio, 1 / least)
        for name, library, least in (("Avro", "fastavro", 5.0), ("Protobuf", "the runtime", 3.0))
        for fields in FIELDS
        for batch in BATCHES
        for ratio in [faster[name, fields, batch]]
    ]
    notes = [
        "CPU µs per message, the best of many turns; 6 fields and the time are used",
        "flat declares all fields, the other two only those that are used",
    ]
    return Report("formats", table, targets, notes)
