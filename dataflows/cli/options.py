"""Options that several commands share."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer

from anabranch.dataflows.bus import Bus, open_bus
from anabranch.state.errors import InputError

DEFAULT_BUS = "sqlite:data/bus"

BusUrl = Annotated[
    str,
    typer.Option(
        "--bus",
        metavar="URL",
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
    int | None,
    typer.Option(
        "--partitions",
        metavar="N",
        min=1,
        help="Partitions of topics that are created; by default as many as those that exist "
        "have, else 1.",
    ),
]
Rate = Annotated[
    float | None,
    typer.Option(
        "--rate",
        metavar="N",
        help="Messages a second, as live traffic. Default: as fast as possible.",
    ),
]
Speedup = Annotated[
    float | None,
    typer.Option(
        "--speedup",
        metavar="X",
        help="As live traffic, with event time going by so many times faster than the clock.",
    ),
]


@contextmanager
def opened_bus(url: str, settings: Sequence[str] | None) -> Iterator[Bus]:
    """Open the bus that the options name, ask it for its topics, and close it afterwards.

    Until it has answered, a client's own remarks are kept off the terminal: if it does not answer,
    the error says so.
    """
    remarks = logging.getLogger("anabranch.bus")
    remarks.setLevel(logging.CRITICAL)
    try:
        bus = open_bus(url, parse_settings(settings))
        bus.topics()
    finally:
        remarks.setLevel(logging.NOTSET)
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


def create_topics(bus: Bus, names: Sequence[str], partitions: int | None) -> list[str]:
    """Create those of ``names`` that are missing, all with one partition count; return them.

    Raises:
        InputError: they exist with different counts, or with another than ``partitions``.
    """
    found = bus.topics()
    counts = {name: found[name] for name in names if name in found}
    if partitions is None and len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise InputError(
            f"these topics need equal partition counts (an event and its label go to the same "
            f"number): {listed}; delete one of them, or use another bus"
        )
    wanted = partitions or next(iter(counts.values()), 1)
    for name, count in counts.items():
        if count != wanted:
            raise InputError(
                f"topic {name} has {count} partitions, not {wanted}: leave out --partitions, or "
                f"say --partitions {count}"
            )
    return bus.create_topics(dict.fromkeys(names, wanted))
