"""Faults of whoever sends payments, from some event on: for monitors to find."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
import numpy as np

from anabranch.producers.batch import Batch
from anabranch.state.errors import InputError

Payment = dict[str, Any]


def _cents(payment: Payment) -> Payment:
    return payment | {"amount": payment["amount"] * 100}


def _country(payment: Payment) -> Payment:
    return payment | {"country": "??"} if payment["country"] == "DE" else payment


def _feed(payment: Payment) -> Payment | None:
    return None if int(payment["merchant"][1:]) % 3 == 0 else payment


def _type(payment: Payment) -> Payment:
    return payment | {"amount": "?"} if int(payment["id"][1:]) % 7 == 0 else payment


UPSTREAM: dict[str, tuple[str, Callable[[Payment], Payment | None]]] = {
    "cents": ("amounts come in cents", _cents),
    "country": ("the code of a country is not known any more", _country),
    "feed": ("a third of the merchants send no more", _feed),
    "type": ("every seventh amount is a text", _type),
}
"""Name → what happens, and to a payment; None: it does not come."""


def broken(batches: Iterable[Batch], fault: str, at: int) -> Iterator[Batch]:
    """The same batches, but that events from number ``at`` on have a fault.

    Labels stay as they are, also of what does not come any more.

    Raises:
        InputError: there is no such fault.
    """
    if fault not in UPSTREAM:
        raise InputError(f"there is no fault {fault!r}: choose one of {', '.join(UPSTREAM)}")
    change = UPSTREAM[fault][1]
    decode, encode = msgspec.json.Decoder().decode, msgspec.json.Encoder().encode
    seen = 0
    for batch in batches:
        values: list[bytes | None] = list(batch.values)
        for row in np.flatnonzero(~batch.labels).tolist():
            seen += 1
            if seen <= at:
                continue
            try:
                changed = change(decode(batch.values[row]))
            except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
                continue  # a broken copy stays one
            values[row] = None if changed is None else encode(changed)
        kept = np.array([value is not None for value in values], np.bool_)
        yield Batch(
            [value for value in values if value is not None],
            [key for key, is_kept in zip(batch.keys, kept.tolist(), strict=True) if is_kept],
            batch.times[kept],
            batch.labels[kept],
        )
