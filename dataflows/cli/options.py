"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer

from dataflows.bus import Bus, open_bus
from state.errors import InputError

DEFAULT_BUS = "sqlite:data/bus"

BusUrl = Annotated[
    str,
    typer.Option(
        "--bus",
        envvar="ANABRANCH_BUS",
        help="Where topics live: sqlite:PATH (embedded, no server) or kafka://HOST:PORT,…",
    ),
]
BusSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--bus-set",
        envvar="ANABRANCH_BUS_SET",
        help="A librdkafka setting for kafka://, as key=value; may be repeated.",
        metavar="KEY=VALUE",
    ),
]
PipelineName = Annotated[
    str,
    typer.Argument(
        help="payments, clicks or trips; dataset:NAME; a file such as fraud.py or fraud.py:flow; "
        "or a module such as shop.fraud:flow.",
        metavar="PIPELINE",
    ),
]
Partitions = Annotated[
    int, typer.Option("--partitions", min=1, help="Partitions of topics that are created.")
]


@contextmanager
def opened_bus(url: str, settings: Sequence[str] | None) -> Iterator[Bus]:
    """Open the bus that the options name, and close it afterwards."""
    bus = open_bus(url, parse_settings(settings))
    try:
        yield bus
    finally:
        bus.close()


def parse_settings(settings: Sequence[str] | None) -> dict[str, str]:
    """``key=value`` texts as a dict.

    >>> parse_settings(["security.protocol=SSL", "a=b=c"])
    {'security.protocol': 'SSL', 'a': 'b=c'}

    Raises:
        InputError: one has no ``=``.
    """
    pairs = {}
    for setting in settings or ():
        key, sign, value = setting.partition("=")
        if not sign or not key:
            raise InputError(f"bus setting {setting!r} must be written KEY=VALUE")
        pairs[key.strip()] = value
    return pairs
