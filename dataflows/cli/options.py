"""Options that several commands share."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from anabranch.dataflows.bus import AdminBus, Bus, open_bus
from anabranch.state.errors import InputError

if TYPE_CHECKING:
    from anabranch.dataflows.declaration.declaration import Declaration

DEFAULT_BUS = "sqlite:data/bus"

BusUrl = Annotated[
    str,
    typer.Option(
        "--bus",
        metavar="URL",
        envvar="ANABRANCH_BUS",
        help="The message bus: sqlite:PATH (embedded, no server needed) or kafka://HOST:PORT,…",
    ),
]
BusSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--bus-set",
        envvar="ANABRANCH_BUS_SET",
        help="A librdkafka setting for a kafka:// bus, such as security.protocol=SSL. Can be "
        "given several times. The variable separates settings by blanks, and other users of this "
        "machine can see arguments: use --bus-config for passwords.",
        metavar="KEY=VALUE",
    ),
]
BusConfig = Annotated[
    Path | None,
    typer.Option(
        "--bus-config",
        envvar="ANABRANCH_BUS_CONFIG",
        help="A file of librdkafka settings for a kafka:// bus: a line KEY=VALUE for each, and "
        "comments that begin with #. --bus-set overrides it.",
        metavar="FILE",
    ),
]
PipelineName = Annotated[
    str,
    typer.Argument(
        help="A shipped pipeline (payments, clicks, trips), dataset:NAME, a file such as fraud.py "
        "or fraud.py:flow, or a module such as shop.fraud:flow.",
        metavar="PIPELINE",
    ),
]
Partitions = Annotated[
    int | None,
    typer.Option(
        "--partitions",
        metavar="N",
        min=1,
        help="Partition count of the topics that are created. Default: that of the pipeline's "
        "existing topics, or 1.",
    ),
]
Rate = Annotated[
    float | None,
    typer.Option(
        "--rate",
        metavar="N",
        help="Publish live traffic at this many messages per second. Default: as fast as possible.",
    ),
]
Speedup = Annotated[
    float | None,
    typer.Option(
        "--speedup",
        metavar="X",
        help="Publish live traffic in event time, X times faster than the wall clock.",
    ),
]
BatchSize = Annotated[
    int,
    typer.Option("--batch-size", min=1, metavar="N", help="Maximum number of messages per batch."),
]
Shards = Annotated[
    int,
    typer.Option(
        "--shards",
        min=1,
        metavar="N",
        help="Shards of each key space, the upper limit for --processes. Fixed once state exists.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]


class RenamedOptionError(typer.BadParameter):
    """An option, or its environment variable, was given by the name that it used to have."""

    def format_message(self) -> str:
        """The message alone: the value is not what is wrong."""
        return self.message


def renamed_options(renames: Mapping[str, str]) -> type[TyperCommand]:
    """A command class that rejects former option names, naming the current one.

    Pass it as ``cls=`` when a command is registered. The former environment variable is rejected
    likewise; an empty one counts as not set.

    Args:
        renames: Former name → current name, both with their dashes.
    """

    class Command(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            for old, new in renames.items():
                _reject(old, new, args, ctx)
                variable, current = (f"{ctx.auto_envvar_prefix}_{_suffix(n)}" for n in (old, new))
                _reject(variable, current, [name for name in os.environ if os.environ[name]], ctx)
            return super().parse_args(ctx, args)

    return Command


def _suffix(option: str) -> str:
    """``--start-offset`` as the end of an environment variable: ``START_OFFSET``."""
    return option.removeprefix("--").replace("-", "_").upper()


def _reject(old: str, new: str, given: Sequence[str], ctx: Any) -> None:
    """Raise if one of the arguments ``given`` is ``old`` or ``old=value``."""
    for argument in given:
        if argument == "--":
            return
        if argument.partition("=")[0] == old:
            raise RenamedOptionError(f"{old} is now called {new}", ctx=ctx)


@contextmanager
def opened_bus(
    url: str, settings: Sequence[str] | None, config: Path | None = None
) -> Iterator[AdminBus]:
    """Open the bus that the options name, list its topics once, and close it afterwards.

    Until the bus has responded, log messages of its client are suppressed: if it does not respond,
    the raised error says why.

    Raises:
        BusError: the bus does not respond, or ``url`` is not a bus.
        InputError: a setting is not ``key=value``, or the file ``config`` can't be read.
    """
    given = {**(read_settings(config) if config else {}), **parse_settings(settings)}
    client_log = logging.getLogger("anabranch.bus")
    client_log.setLevel(logging.CRITICAL)
    try:
        bus = open_bus(url, given)
        bus.topics()
    finally:
        client_log.setLevel(logging.NOTSET)
    try:
        yield bus
    finally:
        bus.close()


@contextmanager
def with_labels_bus(pipeline: Declaration, bus: AdminBus) -> Iterator[AdminBus]:
    """``bus``, or, where the labels of the pipeline are on another, both of them as one.

    Raises:
        BusError: the other bus does not respond, or its URL is not that of a bus.
        InputError: its file of settings can't be read.
    """
    topics = pipeline.topics
    if topics.labels_bus is None:
        yield bus
        return
    from anabranch.dataflows.bus.routed import RoutedBus

    config = None if topics.labels_bus_config is None else Path(topics.labels_bus_config)
    with opened_bus(topics.labels_bus, None, config) as other:
        yield RoutedBus(bus, other, topics.is_label)


@contextmanager
def bus_of(
    names: Sequence[str],
    url: str,
    settings: Sequence[str] | None,
    config: Path | None,
    pipeline: Declaration | None,
) -> Iterator[AdminBus | None]:
    """Open the bus, of the pipeline if there is one, if one of ``names`` is that of a topic.

    Else None is yielded.
    """
    from anabranch.dataflows.skew.sources import file_of

    if all(file_of(name) for name in names):
        yield None
        return
    with (
        opened_bus(url, settings, config) as own,
        nullcontext(own) if pipeline is None else with_labels_bus(pipeline, own) as opened,
    ):
        yield opened


def parse_settings(settings: Sequence[str] | None) -> dict[str, str]:
    """Parse ``key=value`` strings into a dict.

    >>> parse_settings(["security.protocol=SSL", "a=b=c"])
    {'security.protocol': 'SSL', 'a': 'b=c'}

    Raises:
        InputError: one has no ``=``.
    """
    pairs = {}
    for number, setting in enumerate(settings or (), 1):
        key, sign, value = setting.partition("=")
        if not sign or not key:  # its text may be part of a password
            raise InputError(
                f"bus setting {number} must be written KEY=VALUE: it has no "
                f"{'key' if sign else '='}"
            )
        pairs[key.strip()] = value
    return pairs


def read_settings(path: Path, option: str = "--bus-config") -> dict[str, str]:
    """Read a file of ``key=value`` lines; blank lines and those that begin with # are ignored.

    ``option`` is what named it, for messages.

    Blanks around keys and values are no part of them; a value may contain = and #.

    Raises:
        InputError: it can't be read, or a line is not a setting. No content is quoted.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"{option} {path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{option} {path} is not UTF-8 text") from None
    settings: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        key, sign, value = (part.strip() for part in line.partition("="))
        if not line.strip() or key.startswith("#"):
            continue
        if not sign or not key:
            raise InputError(f"{option} {path}, line {number}: write KEY=VALUE")
        if key in settings:
            raise InputError(f"{option} {path}, line {number}: {key} is there already")
        settings[key] = value
    return settings


def create_topics(bus: Bus, names: Sequence[str], partitions: int | None) -> list[str]:
    """Create the missing topics among ``names``, all with one partition count; return their names.

    Without ``partitions`` they get as many as the existing one with most.

    Raises:
        InputError: an existing one has another count than ``partitions``.
    """
    existing = bus.topics()
    counts = {name: existing[name] for name in names if name in existing}
    wanted = partitions or max(counts.values(), default=1)
    for name, count in counts.items():
        if partitions is not None and count != wanted:
            raise InputError(
                f"topic {name} has {count} partitions, not {wanted}: leave out --partitions, or "
                f"pass --partitions {count}"
            )
    return bus.create_topics({name: wanted for name in names if name not in counts})
