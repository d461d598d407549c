"""``anabranch consume``: prints the messages of a topic."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated

import orjson
import typer
from rich.highlighter import JSONHighlighter

from anabranch.dataflows.bus import Bus, BusError, TopicPartition
from anabranch.dataflows.bus.read_to_end import ends_now, read_to_end
from anabranch.dataflows.cli.options import DEFAULT_BUS, BusConfig, BusSettings, BusUrl, opened_bus
from anabranch.dataflows.telemetry.console import EXIT_PIPE, TextConsole, drop_output, printable
from anabranch.dataflows.telemetry.logs import stderr_console
from anabranch.state.errors import InputError

_SAY_AFTER_S = 1.0


def consume(
    topic: Annotated[
        str,
        typer.Argument(
            help="The topic, for example payments.predictions; or a pipeline, such as fraud.py, of "
            "which OUTPUT is printed.",
            metavar="TOPIC",
        ),
    ],
    output: Annotated[
        str | None,
        typer.Argument(
            help="With a pipeline: predictions, drift, dead-letters, rollouts, events, labels or "
            "control.",
            metavar="[OUTPUT]",
            show_default="predictions",
        ),
    ] = None,
    start_offset: Annotated[
        str,
        typer.Option(
            "--start-offset",
            metavar="WHERE",
            help="earliest, latest, or an offset, which applies to every partition.",
        ),
    ] = "earliest",
    partition: Annotated[
        int | None, typer.Option("--partition", min=0, metavar="N", help="Read only partition N.")
    ] = None,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow/--no-follow",
            "-f/-F",
            help="Wait for new messages, or stop at the end that the topic has now.",
        ),
    ] = True,
    limit: Annotated[
        int | None,
        typer.Option("--limit", "-n", min=0, metavar="N", help="Stop after N messages."),
    ] = None,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw/--pretty",
            help="Print each message unchanged on one line (on a terminal with control characters "
            "escaped), or indented JSON.",
        ),
    ] = True,
    schema_registry: Annotated[
        str | None,
        typer.Option(
            "--schema-registry",
            metavar="URL",
            envvar="ANABRANCH_SCHEMA_REGISTRY",
            help="Print messages with the prefix of this registry as JSON, by their schemas.",
        ),
    ] = None,
    bus: BusUrl = DEFAULT_BUS,
    bus_set: BusSettings = None,
    bus_config: BusConfig = None,
) -> None:
    """Print the messages of a topic, oldest first. With --follow, Ctrl-C stops it.

    Examples:

        anabranch consume payments.predictions --limit 5 --pretty

        anabranch consume payments.dead-letters --no-follow | jq .reason

        anabranch consume fraud.py drift
    """
    if start_offset not in ("earliest", "latest") and not start_offset.isdecimal():
        raise typer.BadParameter(
            f"--start-offset must be earliest, latest or an offset, not {start_offset!r}"
        )
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with opened_bus(bus, bus_set, bus_config) as opened:
        topic = _topic_named(topic, output, opened.topics())
        positions = _positions(opened, topic, partition, start_offset)
        ends = None if follow else ends_now(opened, positions)
        try:
            write = _raw_writer() if raw else _pretty_writer()
            if schema_registry is not None:
                write = _decoded_writer(schema_registry, write)
            _print(opened, positions, ends, stop, limit, write)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader of the pipe has seen enough, such as `head`
            drop_output()
            raise typer.Exit(EXIT_PIPE) from None
        except OSError as error:
            drop_output()
            raise InputError(f"the output can't be written: {error.strerror}") from None


def _topic_named(name: str, output: str | None, existing: Mapping[str, int]) -> str:
    """The topic that ``name`` is or stands for: a pipeline's, by its role.

    ``PIPELINE.OUTPUT`` is the topic that the pipeline has for it, whatever its name.

    Raises:
        InputError: ``output`` is no role, or ``name`` no pipeline.
        DeclarationError: the pipeline can't be loaded.
    """
    from anabranch.dataflows.declaration.topics import ROLES, role_named

    if output is None and name in existing:
        return name
    before, _, last = name.rpartition(".")
    role = role_named(last) if output is None else role_named(output)
    is_pipeline = output is not None or name.partition(":")[0].endswith(".py")
    if not is_pipeline and (role is None or not before):
        return name
    from anabranch.dataflows.pipelines.loader import find_pipeline, load_pipeline

    if is_pipeline:
        if output is not None and role is None:
            listed = ", ".join(each.replace("_", "-") for each in ROLES)
            raise InputError(f"{output!r} is no output of a pipeline: name one of {listed}")
        return load_pipeline(name).topics.of_role(role or "predictions")
    declared = find_pipeline(before)
    return name if declared is None or role is None else declared.topics.of_role(role)


def _print(
    bus: Bus,
    positions: dict[TopicPartition, int],
    ends: dict[TopicPartition, int] | None,
    stop: threading.Event,
    limit: int | None,
    write: Callable[[bytes], None],
) -> None:
    if limit == 0:
        return
    for printed, value in enumerate(_messages(bus, positions, ends, stop), 1):
        write(value)
        if printed == limit:
            return


def _positions(
    bus: Bus, topic: str, partition: int | None, start_offset: str
) -> dict[TopicPartition, int]:
    """Where to start reading each partition."""
    counts = bus.topics()
    if topic not in counts:
        listed = ", ".join(sorted(counts)) or "none yet"
        raise BusError(f"topic {topic!r} does not exist on {bus.url}; topics there: {listed}")
    if partition is not None and partition >= counts[topic]:
        raise InputError(
            f"topic {topic!r} has no partition {partition}: its partitions are 0 to "
            f"{counts[topic] - 1}"
        )
    starts, ends = bus.start_offsets(topic), bus.end_offsets(topic)
    numbers = range(counts[topic]) if partition is None else [partition]
    return {
        TopicPartition(topic, number): _offset(start_offset, starts[number], ends[number])
        for number in numbers
    }


def _offset(wanted: str, first: int, end: int) -> int:
    if wanted == "earliest":
        return first
    return end if wanted == "latest" else min(max(int(wanted), first), end)


def _messages(
    bus: Bus,
    positions: dict[TopicPartition, int],
    ends: dict[TopicPartition, int] | None,
    stop: threading.Event,
) -> Iterator[bytes]:
    reader = bus.reader(positions)
    waits_since = time.monotonic() if ends is None else None

    def stopped() -> bool:  # asked between two polls
        nonlocal waits_since
        if waits_since is not None and time.monotonic() - waits_since > _SAY_AFTER_S:
            waits_since = None
            _say_waiting(next(iter(positions)).topic)
        return stop.is_set()

    try:
        for piece in read_to_end(reader, ends, limit=1000, stopped=stopped):
            waits_since = None
            yield from piece.values
            sys.stdout.flush()
    finally:
        reader.close()


def _say_waiting(topic: str) -> None:
    stderr_console().print(
        f"no message on {topic} to print yet: waiting for the first; Ctrl-C stops it",
        soft_wrap=True,
    )


def _raw_writer() -> Callable[[bytes], None]:
    """Write bytes unchanged, but to a terminal as text, with control characters escaped."""
    if not sys.stdout.isatty():
        return _write_line
    return lambda value: print(printable(value.decode(errors="backslashreplace")))


def _decoded_writer(url: str, write: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """Write what messages with a registry's prefix hold, as JSON; others as they are."""
    from anabranch.dataflows.codec.any_registered import registered_as_json

    as_json = registered_as_json(url)
    return lambda value: write(as_json(value))


def _write_line(value: bytes) -> None:
    sys.stdout.buffer.write(value + b"\n")


def _pretty_writer() -> Callable[[bytes], None]:
    console, highlighted = TextConsole(soft_wrap=True), JSONHighlighter()

    def write(value: bytes) -> None:
        try:
            text = orjson.dumps(orjson.loads(value), option=orjson.OPT_INDENT_2).decode()
        except orjson.JSONDecodeError:
            text = repr(value)
        console.print(highlighted(printable(text)))

    return write
