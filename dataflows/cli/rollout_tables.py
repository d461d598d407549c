"""What `anabranch rollout` prints: decisions as sentences, and how rollouts stand as a table."""

from __future__ import annotations

from datetime import UTC, datetime

from rich.table import Table

from dataflows.messages import RolloutMessage
from dataflows.rollout_status import ChallengerStatus, RolloutStatus
from models.decision import ACTIONS

_COLUMNS = ("share", "labels (served)", "loss of it | champion", "difference", "e-value | needed")


def sentence(message: RolloutMessage) -> str:
    """A decision for people."""
    about = message.challenger or message.champion
    share = "" if message.share is None else f", serves {message.share:.1%}"
    action = message.action.replace("_", " ")
    what = ACTIONS.get(message.action, "")
    return f"{about}: {action}{share}; {what}: {message.why}"


def timed_sentence(message: RolloutMessage) -> str:
    """The same behind its event time."""
    return f"{_time(message.ts)} {sentence(message)}"


def status_table(status: RolloutStatus) -> Table:
    """The champion in the title, and a row for each challenger."""
    title = (
        f"rollouts of {status.pipeline}: {status.champion} is the champion, "
        f"policy {status.policy}, {status.messages:,} messages"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("challenger", no_wrap=True)
    table.add_column("state")
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    table.add_column("since")
    table.add_column("guardrails")
    for each in status.challengers.values():
        table.add_row(*_row(each))
    return table


def _row(each: ChallengerStatus) -> list[str]:
    if each.action is None:
        return [each.name, "waits", *[""] * len(_COLUMNS), "", ""]
    figures = ["", "", "", ""]
    if (found := each.evidence) is not None:
        low, high = _number(found.low), _number(found.high)
        figures = [
            f"{found.labels:,} ({found.served:,})",
            f"{_number(found.challenger_loss)} | {_number(found.champion_loss)}",
            f"{_number(found.difference)}\n[{low}, {high}]",
            f"{_number(found.e_value)} | {1 / found.alpha:g}",
        ]
    return [
        each.name,
        each.action.replace("_", " "),
        "—" if each.share is None else f"{each.share:.1%}",
        *figures,
        "" if each.since is None else _time(each.since),
        "\n".join(f"{name} {_number(value)}" for name, value in each.guardrails.items()),
    ]


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:.3g}"


def _time(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"
