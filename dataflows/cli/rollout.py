"""``anabranch rollout``: shows the rollouts of a pipeline, and controls them while it runs."""

from __future__ import annotations

import functools
import getpass
import inspect
import signal
import socket
import threading
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import msgspec
import typer
from rich.live import Live

from anabranch.dataflows.cli.options import (
    DEFAULT_BUS,
    BusConfig,
    BusSettings,
    BusUrl,
    PipelineName,
    opened_bus,
)
from anabranch.dataflows.telemetry.console import TextConsole, echo
from anabranch.dataflows.telemetry.logs import stderr_console
from anabranch.state.errors import InputError

if TYPE_CHECKING:
    from anabranch.dataflows.declaration.pipeline import Pipeline
    from anabranch.dataflows.rollout.client import RolloutLog
    from anabranch.dataflows.rollout.status import RolloutStatus

EXIT_REJECTED = 1
EXIT_NO_RESPONSE = 3
_TAIL = 20_000  # messages of each partition, when a topic is long
_REFRESH_S = 0.5

rollout = typer.Typer(
    name="rollout",
    help=(
        "Show how the challengers of a pipeline compare, and control them while it runs.\n\n"
        "A pipeline declares `challengers=`, and `rollout=`, the policy by which one of them gets "
        "to serve. Every decision, with its evidence, is on the topic `<pipeline>.rollouts`. These "
        "commands go to `<pipeline>.control`; the run executes them between two rows, and "
        "responds.\n\n"
        "Exit codes: 0 done, 1 rejected, or an error that you can fix, 3 no response in time.\n\n"
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
OptionalChallenger = Annotated[
    str,
    typer.Argument(metavar="[CHALLENGER]", help="Its name; may be left out if there is only one."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables and sentences.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The options of every command that is sent to the run."""

    timeout: Annotated[
        str, typer.Option("--timeout", metavar="TIME", help="How long to wait for the response.")
    ] = "30s"
    by: Annotated[
        str,
        typer.Option(
            "--by", metavar="WHO", help="Who requests it.", show_default="you, at this host"
        ),
    ] = ""
    json: Json = False
    bus: BusUrl = DEFAULT_BUS
    bus_set: BusSettings = None
    bus_config: BusConfig = None


def request(command: Callable[..., dict[str, Any]]) -> Callable[..., None]:
    """Make a command of a function that returns the fields of its control message.

    The command has the name, the help and the parameters of the function, and the options of
    `Request`. It sends the message, waits for the responses, and prints them.
    """
    hints = get_type_hints(command, include_extras=True)
    options = get_type_hints(Request, include_extras=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("context", keyword, annotation=typer.Context)]
    for name, parameter in inspect.signature(command).parameters.items():
        parameters.append(parameter.replace(kind=keyword, annotation=hints[name]))
    for option in fields(Request):
        parameters.append(
            inspect.Parameter(
                option.name, keyword, default=option.default, annotation=options[option.name]
            )
        )

    @functools.wraps(command)
    def send(context: typer.Context, **arguments: Any) -> None:
        own = {name: value for name, value in arguments.items() if name not in options}
        shared = Request(**{name: arguments[name] for name in options})
        _send(context.obj, command.__name__, command(**own), shared)

    send.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    send.__annotations__ = {each.name: each.annotation for each in parameters}
    return send


@rollout.callback()
def choose(context: typer.Context, pipeline: PipelineName) -> None:
    """Choose the pipeline."""
    context.obj = pipeline


@rollout.command()
def status(
    context: typer.Context,
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Run until Ctrl-C, and show each new decision."),
    ] = False,
    json: Json = False,
    bus: BusUrl = DEFAULT_BUS,
    bus_set: BusSettings = None,
    bus_config: BusConfig = None,
) -> None:
    """Show the champion and each challenger: share, losses, evidence, guardrails.

    Losses are means on the same labels; a difference above 0 means that the challenger is better,
    and is shown with its interval. The e-value is the evidence for that: when it reaches
    1 / alpha, a policy that promotes by evidence does so.

    Examples:

        anabranch rollout fraud.py status

        anabranch rollout fraud.py status --json | jq .challengers
    """
    from anabranch.dataflows.cli.display.rollout import status_table
    from anabranch.dataflows.pipelines.loader import load_pipeline
    from anabranch.dataflows.rollout.client import RolloutLog

    if follow and json:
        raise InputError("--follow shows a live table, and --json prints once: leave one out")
    pipeline = load_pipeline(context.obj)
    stop = threading.Event()
    with opened_bus(bus, bus_set, bus_config) as opened, RolloutLog(pipeline, opened, _TAIL) as log:
        if follow:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: stop.set())
        current = _declared_status(pipeline)
        current.update(log.history(stop))
        if json:
            echo(msgspec.json.encode(current).decode())
        elif follow:
            _follow(log, current, stop)
        elif not current.messages:
            echo(
                f"no decision about rollouts of {pipeline.name} yet: its topic "
                f"{pipeline.topics.rollouts} is empty"
            )
        else:
            TextConsole().print(status_table(current))


@rollout.command()
@request
def start(
    challenger: OptionalChallenger = "",
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Change a parameter of the policy, such as alpha=0.01; may be repeated.",
        ),
    ] = None,
) -> dict[str, Any]:
    """Try a challenger, by the pipeline's policy; without a name the next one that waits.

    Examples:

        anabranch rollout fraud.py start tree

        anabranch rollout fraud.py start tree --set alpha=0.01
    """
    return {"challenger": challenger, "policy": _changes(change)}


@rollout.command()
@request
def pause(challenger: OptionalChallenger = "") -> dict[str, Any]:
    """Let a challenger keep its share, and decide nothing about it until it is resumed.

    Examples:

        anabranch rollout fraud.py pause tree
    """
    return {"challenger": challenger}


@rollout.command()
@request
def resume(challenger: OptionalChallenger = "") -> dict[str, Any]:
    """Resume a challenger that was paused.

    Examples:

        anabranch rollout fraud.py resume tree
    """
    return {"challenger": challenger}


@rollout.command()
@request
def promote(challenger: Challenger) -> dict[str, Any]:
    """Make a challenger the champion now, whatever the evidence says.

    Examples:

        anabranch rollout fraud.py promote tree
    """
    return {"challenger": challenger}


@rollout.command()
@request
def rollback(challenger: OptionalChallenger = "") -> dict[str, Any]:
    """Take a challenger out of service now; a champion is replaced by the previous one.

    Examples:

        anabranch rollout fraud.py rollback tree
    """
    return {"challenger": challenger}


@rollout.command("set-traffic", context_settings={"ignore_unknown_options": True})
@request
def set_traffic(
    challenger: Challenger,
    share: Annotated[
        float, typer.Argument(metavar="SHARE", help="Share of the keys, from 0 to 1.")
    ],
) -> dict[str, Any]:
    """Set the share of the keys that a challenger serves. A key keeps its model as a share grows.

    Examples:

        anabranch rollout fraud.py set-traffic tree 0.05
    """
    return {"challenger": challenger, "share": share}


@rollout.command()
@request
def add(
    challenger: Challenger,
    model: Annotated[
        str,
        typer.Argument(
            metavar="NAME@VERSION",
            help="A version in the registry of the run's state (`anabranch models list`).",
        ),
    ],
) -> dict[str, Any]:
    """Add a model of the registry as a challenger. It predicts and learns from now on.

    Examples:

        anabranch rollout fraud.py add candidate frozen@3
    """
    return {"challenger": challenger, "model": model}


@rollout.command()
@request
def remove(challenger: Challenger) -> dict[str, Any]:
    """Remove a challenger, with all that it has learned.

    Examples:

        anabranch rollout fraud.py remove tree
    """
    return {"challenger": challenger}


def _send(pipeline_name: str, kind: Any, about: dict[str, Any], options: Request) -> None:
    """Send a command to the run, and print the responses."""
    from anabranch.dataflows.cli.display.rollout import sentence
    from anabranch.dataflows.messages.control import Control
    from anabranch.dataflows.pipelines.loader import load_pipeline
    from anabranch.dataflows.rollout.client import send_command
    from anabranch.models.rollout.decision import REJECTED
    from anabranch.state.durations import parse_duration_ms

    control = Control(kind=kind, id=uuid.uuid4().hex, requested_by=options.by or _me(), **about)
    if (problem := control.command().problem()) is not None:
        raise InputError(problem)
    timeout_s = parse_duration_ms(options.timeout) / 1000
    pipeline = load_pipeline(pipeline_name)
    with opened_bus(options.bus, options.bus_set, options.bus_config) as opened:
        responses = send_command(pipeline, opened, control, timeout_s)
    rejected = any(response.action == REJECTED for response in responses)
    if options.json:
        echo(msgspec.json.encode(responses).decode())
    console = stderr_console() if rejected else TextConsole()
    for response in responses if not options.json else ():
        console.print(sentence(response), highlight=False, soft_wrap=True, markup=False)
    if not responses:
        stderr_console().print(
            f"no response within {options.timeout}: is `anabranch run` running? If it starts "
            "later, it will still execute the command",
            highlight=False, soft_wrap=True, markup=False,
        )  # fmt: skip
        raise typer.Exit(EXIT_NO_RESPONSE)
    if rejected:
        raise typer.Exit(EXIT_REJECTED)


def _me() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"[:200]
    except (KeyError, OSError):  # a container's user may have no name
        return socket.gethostname()[:200]


def _changes(settings: list[str] | None) -> dict[str, Any]:
    """Parameters of the policy by name, of ``NAME=VALUE`` texts; a value may be JSON."""
    changes: dict[str, Any] = {}
    for setting in settings or ():
        name, sign, value = setting.partition("=")
        if not sign or not name.strip():
            raise InputError(f"--set {setting!r} must be written NAME=VALUE, such as alpha=0.01")
        try:
            changes[name.strip()] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            changes[name.strip()] = value
    return changes


def _declared_status(pipeline: Pipeline) -> RolloutStatus:
    """The status as it is declared, before any decision."""
    from anabranch.dataflows.rollout.status import ChallengerStatus, RolloutStatus

    return RolloutStatus(
        pipeline=pipeline.name,
        champion=pipeline.model_name,
        policy=type(pipeline.rollout).__name__,
        challengers={name: ChallengerStatus(name=name) for name in pipeline.challengers},
    )


def _follow(log: RolloutLog, current: RolloutStatus, stop: threading.Event) -> None:
    """Show a live table, on a terminal, and each new decision as a line above it."""
    from anabranch.dataflows.cli.display.rollout import status_table, timed_sentence

    console = TextConsole(soft_wrap=True)
    live = Live(status_table(current), console=console, auto_refresh=False)
    if not console.is_terminal:
        console.print(status_table(current))
    with live if console.is_terminal else nullcontext():
        while not stop.is_set():
            messages = log.poll(_REFRESH_S)
            for message in messages:
                console.print(timed_sentence(message), highlight=False, markup=False)
            if messages:
                current.update(messages)
                live.update(status_table(current), refresh=console.is_terminal)
