"""``anabranch rollout``: see how rollouts stand, and steer them while the pipeline runs."""

from __future__ import annotations

import getpass
import signal
import socket
import threading
import uuid
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.live import Live

from anabranch.dataflows.cli.options import DEFAULT_BUS, BusSettings, BusUrl, opened_bus
from anabranch.dataflows.telemetry.logs import stderr_console
from anabranch.state.errors import InputError

if TYPE_CHECKING:
    from anabranch.dataflows.declaration.pipeline import Pipeline
    from anabranch.dataflows.rollout.client import RolloutLog
    from anabranch.dataflows.rollout.status import RolloutStatus

EXIT_REFUSED = 1
EXIT_UNANSWERED = 3
_TAIL = 20_000  # messages of each partition, when a topic is long
_REFRESH_S = 0.5

rollout = typer.Typer(
    name="rollout",
    help=(
        "See how the challengers of a pipeline stand, and steer them while it runs.\n\n"
        "A pipeline declares `challengers=` and how one of them gets to serve: "
        "`rollout=Shadow()`, `Canary()`, `ABTest()` or `Bandit(…)`. All that is decided, and on "
        "what evidence, is on the topic `<pipeline>.rollouts`. What you say here goes to "
        "`<pipeline>.control`; the run follows it between two rows, and answers.\n\n"
        "Exit codes: 0 done, 1 refused, or something you can mend, 3 nobody answered in time.\n\n"
        "Examples:\n\n"
        "    anabranch rollout fraud.py status --follow\n\n"
        "    anabranch rollout fraud.py start tree\n\n"
        "    anabranch rollout fraud.py set-traffic tree 0.05\n\n"
        "    anabranch rollout fraud.py rollback"
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
)

Challenger = Annotated[str, typer.Argument(metavar="CHALLENGER", help="Its name.")]
OneOrNone = Annotated[
    str,
    typer.Argument(
        metavar="[CHALLENGER]", help="Its name; may be left out where only one can be meant."
    ),
]
Timeout = Annotated[
    str, typer.Option("--timeout", metavar="TIME", help="How long to wait for the answer.")
]
By = Annotated[
    str, typer.Option("--by", metavar="WHO", help="Who says so.", show_default="you, at this host")
]
Json = Annotated[bool, typer.Option("--json", help="JSON instead of tables and sentences.")]


@rollout.callback()
def choose(
    context: typer.Context,
    pipeline: Annotated[
        str,
        typer.Argument(
            metavar="PIPELINE", help="A file such as fraud.py, or whatever `anabranch run` takes."
        ),
    ],
) -> None:
    """Which pipeline."""
    context.obj = pipeline


@rollout.command()
def status(
    context: typer.Context,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C, with each new decision.")
    ] = False,
    json: Json = False,
    bus: BusUrl = DEFAULT_BUS,
    bus_set: BusSettings = None,
) -> None:
    """Show the champion and each challenger: share, losses, evidence, guardrails.

    Losses are means on the same labels; a difference above 0 means that the challenger is better,
    and stands with its interval. The e-value is the evidence for that: once it reaches what is
    needed, 1 / alpha, a policy that promotes by evidence does so.

    Examples:

        anabranch rollout fraud.py status

        anabranch rollout fraud.py status --json | jq .challengers
    """
    from anabranch.dataflows.cli.display.rollout import status_table
    from anabranch.dataflows.pipelines.loader import load_pipeline
    from anabranch.dataflows.rollout.client import RolloutLog

    if follow and json:
        raise InputError("--follow shows a live table, and --json one answer: leave one out")
    declared = load_pipeline(context.obj)
    stop = threading.Event()
    with opened_bus(bus, bus_set) as opened, RolloutLog(declared, opened, _TAIL) as log:
        if follow:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: stop.set())
        found = _status(declared)
        found.take(log.history(stop))
        if json:
            typer.echo(msgspec.json.encode(found))
        elif follow:
            _follow(log, found, stop)
        elif not found.messages:
            typer.echo(
                f"nothing was decided yet about rollouts of {declared.name}: its topic "
                f"{declared.topics.rollouts} is empty"
            )
        else:
            Console().print(status_table(found))


@rollout.command()
def start(
    context: typer.Context,
    challenger: OneOrNone = "",
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Change an attribute of the policy, such as alpha=0.01; may be repeated.",
        ),
    ] = None,
    timeout: Timeout = "30s",
    by: By = "",
    json: Json = False,
    bus: BusUrl = DEFAULT_BUS,
    bus_set: BusSettings = None,
) -> None:
    """Try a challenger, as the pipeline's policy says; without a name the next one that waits.

    Examples:

        anabranch rollout fraud.py start tree

        anabranch rollout fraud.py start tree --set alpha=0.01
    """
    about = {"challenger": challenger, "policy": _changes(change)}
    _tell(context.obj, "start", about, timeout, by, json, bus, bus_set)


@rollout.command()
def pause(
    context: typer.Context,
    challenger: OneOrNone = "",
    timeout: Timeout = "30s",
    by: By = "",
    json: Json = False,
    bus: BusUrl = DEFAULT_BUS,
    bus_set: BusSettings = None,
) -> None:
    """Let a challenger keep its share, and decide nothing about it until it is resumed.

    Examples:

        anabranch rollout fraud.py pause tree
    """
    _tell(context.obj, "pause", {"challenger": challenger}, timeout, by, json, bus, bus_set)


@rollout.command()
def resume(
    context: typer.Context,
    challenger: OneOrNone = "",
    timeout: Timeout = "30s",
    by: By = "",
    json: Json = False,
    bus: BusUrl = DEFAULT_BUS,
    bus_set: BusSettings = None,
) -> None:
    """Go on with a challenger that was paused.

    Examples:

        anabranch rollout fraud.py resume tree
    """
    _tell(context.obj, "resume", {"challenger": challenger}, timeout, by, json, bus, bus_set)


@rollout.command()
def promote(
    context: typer.Context,
    challenger: Challenger,
    timeout: Timeout = "30s",
    by: By = "",
    json: Json = False,
    bus: BusUrl = DEFAULT_BUS,
    bus_set: BusSettings = None,
) -> None:
    """Make a challenger the champion now, whatever the evidence says.

    Examples:

        anabranch rollout fraud.py promote tree
    """
    _tell(context.obj, "promote", {"challenger": challenger}, timeout, by, json, bus, bus_set)


@rollout.command()
def rollback(
    context: typer.Context,
    challenger: OneOrNone = "",
    timeout: Timeout = "30s",
    by: By = "",
    json: Json = False,
    bus: BusUrl = DEFAULT_BUS,
    bus_set: BusSettings = None,
) -> None:
    """Take a challenger out of service now; or, if it leads already, go back to the model before.

    Examples:

        anabranch rollout fraud.py rollback tree
    """
    _tell(context.obj, "rollback", {"challenger": challenger}, timeout, by, json, bus, bus_set)


@rollout.command("set-traffic", context_settings={"ignore_unknown_options": True})
def set_traffic(
    context: typer.Context,
    challenger: Challenger,
    share: Annotated[
        float, typer.Argument(metavar="SHARE", help="Share of the keys, from 0 to 1.")
    ],
    timeout: Timeout = "30s",
    by: By = "",
    json: Json = False,
    bus: BusUrl = DEFAULT_BUS,
    bus_set: BusSettings = None,
) -> None:
    """Set the share of the keys that a challenger serves. A key keeps its model as a share grows.

    Examples:

        anabranch rollout fraud.py set-traffic tree 0.05
    """
    about = {"challenger": challenger, "share": share}
    _tell(context.obj, "set_traffic", about, timeout, by, json, bus, bus_set)


@rollout.command()
def add(
    context: typer.Context,
    challenger: Challenger,
    model: Annotated[
        str,
        typer.Argument(
            metavar="NAME@VERSION",
            help="A version in the registry of the run's state (`anabranch models list`).",
        ),
    ],
    timeout: Timeout = "30s",
    by: By = "",
    json: Json = False,
    bus: BusUrl = DEFAULT_BUS,
    bus_set: BusSettings = None,
) -> None:
    """Add a challenger: a model of the registry, under a name. It predicts and learns from now on.

    Examples:

        anabranch rollout fraud.py add candidate frozen@3
    """
    about = {"challenger": challenger, "model": model}
    _tell(context.obj, "add", about, timeout, by, json, bus, bus_set)


@rollout.command()
def remove(
    context: typer.Context,
    challenger: Challenger,
    timeout: Timeout = "30s",
    by: By = "",
    json: Json = False,
    bus: BusUrl = DEFAULT_BUS,
    bus_set: BusSettings = None,
) -> None:
    """Take a challenger away, with all that it has learned.

    Examples:

        anabranch rollout fraud.py remove tree
    """
    _tell(context.obj, "remove", {"challenger": challenger}, timeout, by, json, bus, bus_set)


def _tell(
    pipeline: str,
    kind: Any,
    about: dict[str, Any],
    timeout: str,
    by: str,
    json: bool,
    bus: str,
    bus_set: list[str] | None,
) -> None:
    """Say it to the run, and print what became of it."""
    from anabranch.dataflows.cli.display.rollout import sentence
    from anabranch.dataflows.messages.control import Control
    from anabranch.dataflows.pipelines.loader import load_pipeline
    from anabranch.dataflows.rollout.client import ask
    from anabranch.models.rollout.decision import REFUSED
    from anabranch.state.durations import parse_duration_ms

    control = Control(kind=kind, id=uuid.uuid4().hex, by=by or _me(), **about)
    if (fault := control.command().problem()) is not None:
        raise InputError(fault)
    timeout_s = parse_duration_ms(timeout) / 1000
    declared = load_pipeline(pipeline)
    with opened_bus(bus, bus_set) as opened:
        answers = ask(declared, opened, control, timeout_s)
    refused = any(answer.action == REFUSED for answer in answers)
    if json:
        typer.echo(msgspec.json.encode(answers))
    console = stderr_console() if refused else Console()
    for answer in answers if not json else ():
        console.print(sentence(answer), highlight=False, soft_wrap=True, markup=False)
    if not answers:
        stderr_console().print(
            f"nobody answered within {timeout}: is `anabranch run` going? If it starts later, it "
            "will still follow what was said",
            highlight=False, soft_wrap=True, markup=False,
        )  # fmt: skip
        raise typer.Exit(EXIT_UNANSWERED)
    if refused:
        raise typer.Exit(EXIT_REFUSED)


def _me() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"[:200]
    except (KeyError, OSError):  # a container's user may have no name
        return socket.gethostname()[:200]


def _changes(settings: list[str] | None) -> dict[str, Any]:
    """``NAME=VALUE`` texts; a value that is JSON is taken as such."""
    found: dict[str, Any] = {}
    for setting in settings or ():
        name, sign, value = setting.partition("=")
        if not sign or not name.strip():
            raise InputError(f"--set {setting!r} must be written NAME=VALUE, such as alpha=0.01")
        try:
            found[name.strip()] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            found[name.strip()] = value
    return found


def _status(pipeline: Pipeline) -> RolloutStatus:
    """As it is declared, before anything was heard."""
    from anabranch.dataflows.rollout.status import ChallengerStatus, RolloutStatus

    return RolloutStatus(
        pipeline=pipeline.name,
        champion=pipeline.model_name,
        policy=type(pipeline.rollout).__name__,
        challengers={name: ChallengerStatus(name=name) for name in pipeline.challengers},
    )


def _follow(log: RolloutLog, found: RolloutStatus, stop: threading.Event) -> None:
    """A live table, on a terminal, and each new decision as a line above it."""
    from anabranch.dataflows.cli.display.rollout import status_table, timed_sentence

    console = Console(soft_wrap=True)
    live = Live(status_table(found), console=console, auto_refresh=False)
    if not console.is_terminal:
        console.print(status_table(found))
    with live if console.is_terminal else nullcontext():
        while not stop.is_set():
            messages = log.poll(_REFRESH_S)
            for message in messages:
                console.print(timed_sentence(message), highlight=False, markup=False)
            if messages:
                found.take(messages)
                live.update(status_table(found), refresh=console.is_terminal)
