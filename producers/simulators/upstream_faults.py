"""Faults of the program that publishes payments, from some event on, for monitors to detect."""

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


UPSTREAM_FAULTS: dict[str, tuple[str, Callable[[Payment], Payment | None]]] = {
    "cents": ("amounts come in cents", _cents),
    "country": ("the code of a country is missing", _country),
    "feed": ("a third of the merchants stop sending", _feed),
    "type": ("every seventh amount is text", _type),
}
"""Name → what goes wrong, and the changed payment; None: it is not sent."""


def with_upstream_fault(batches: Iterable[Batch], fault: str, at: int) -> Iterator[Batch]:
    """The same batches, with a fault in the events from number ``at`` on.

    Labels stay as they are, also those of events that are not sent.

    Raises:
        InputError: there is no such fault.
    """
    if fault not in UPSTREAM_FAULTS:
        raise InputError(f"there is no fault {fault!r}: choose one of {', '.join(UPSTREAM_FAULTS)}")
    change = UPSTREAM_FAULTS[fault][1]
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
                continue  # a malformed copy stays one
            values[row] = None if changed is None else encode(changed)
        kept = np.array([value is not None for value in values], np.bool_)
        yield Batch(
            [value for value in values if value is not None],
            [key for key, is_kept in zip(batch.keys, kept.tolist(), strict=True) if is_kept],
            batch.times[kept],
            batch.labels[kept],
        )
