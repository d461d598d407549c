"""``anabranch consume``: read a topic and print it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Annotated

import orjson
import typer
from rich.console import Console

from anabranch.dataflows.bus import Bus, BusError, TopicPartition
from anabranch.dataflows.bus.read_to_end import ends_now, read_to_end
from anabranch.dataflows.cli.options import DEFAULT_BUS, BusSettings, BusUrl, opened_bus
from anabranch.state.errors import InputError


def consume(
    topic: Annotated[
        str, typer.Argument(help="For example payments.predictions.", metavar="TOPIC")
    ],
    begin: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="WHERE",
            envvar="ANABRANCH_CONSUME_FROM",
            help="earliest, latest, or an offset (of every partition read).",
        ),
    ] = "earliest",
    partition: Annotated[
        int | None, typer.Option("--partition", min=0, metavar="N", help="Only this partition.")
    ] = None,
    follow: Annotated[
        bool,
        typer.Option("--follow/--no-follow", "-f/-F", help="Wait for more, or stop at the end."),
    ] = True,
    limit: Annotated[
        int | None,
        typer.Option("--limit", "-n", min=0, metavar="N", help="Stop after this many messages."),
    ] = None,
    raw: Annotated[
        bool,
        typer.Option("--raw/--pretty", help="One message a line as it is, or indented."),
    ] = True,
    bus: BusUrl = DEFAULT_BUS,
    bus_set: BusSettings = None,
) -> None:
    """Print the messages of a topic, oldest first. With --follow, Ctrl-C ends it.

    Examples:

        anabranch consume payments.predictions --limit 5 --pretty

        anabranch consume payments.dead-letters --no-follow | jq .reason
    """
    if begin not in ("earliest", "latest") and not begin.isdecimal():
        raise typer.BadParameter(f"--from must be earliest, latest or an offset, not {begin!r}")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with opened_bus(bus, bus_set) as opened:
        places = _places(opened, topic, partition, begin)
        ends = None if follow else ends_now(opened, places)
        try:
            _print(opened, places, ends, stop, limit, _write_raw if raw else _pretty_writer())
            sys.stdout.flush()
        except BrokenPipeError:  # the reader has what it wanted, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print(
    bus: Bus,
    places: dict[TopicPartition, int],
    ends: dict[TopicPartition, int] | None,
    stop: threading.Event,
    limit: int | None,
    write: Callable[[bytes], None],
) -> None:
    if limit == 0:
        return
    for printed, value in enumerate(_messages(bus, places, ends, stop), 1):
        write(value)
        if printed == limit:
            return


def _places(bus: Bus, topic: str, partition: int | None, begin: str) -> dict[TopicPartition, int]:
    known = bus.topics()
    if topic not in known:
        listed = ", ".join(sorted(known)) or "none yet"
        raise BusError(f"topic {topic!r} does not exist on {bus.url}; topics there: {listed}")
    if partition is not None and partition >= known[topic]:
        raise InputError(
            f"topic {topic!r} has no partition {partition}: it has {known[topic]}, from 0"
        )
    starts, ends = bus.start_offsets(topic), bus.end_offsets(topic)
    numbers = range(known[topic]) if partition is None else [partition]
    return {
        TopicPartition(topic, number): _offset(begin, starts[number], ends[number])
        for number in numbers
    }


def _offset(begin: str, start: int, end: int) -> int:
    if begin == "earliest":
        return start
    return end if begin == "latest" else min(max(int(begin), start), end)


def _messages(
    bus: Bus,
    places: dict[TopicPartition, int],
    ends: dict[TopicPartition, int] | None,
    stop: threading.Event,
) -> Iterator[bytes]:
    reader = bus.reader(places)
    try:
        for piece in read_to_end(reader, ends, limit=1000, stopped=stop.is_set):
            yield from piece.values
            sys.stdout.flush()
    finally:
        reader.close()


def _write_raw(value: bytes) -> None:
    sys.stdout.buffer.write(value + b"\n")


def _pretty_writer() -> Callable[[bytes], None]:
    console = Console(soft_wrap=True)

    def write(value: bytes) -> None:
        try:
            text = orjson.dumps(orjson.loads(value), option=orjson.OPT_INDENT_2).decode()
            console.print_json(text)
        except orjson.JSONDecodeError:
            console.print(repr(value), markup=False)

    return write
