"""What `anabranch rollout` prints: decisions as sentences, and how rollouts stand as a table."""

from __future__ import annotations

from datetime import UTC, datetime

from rich.box import SIMPLE
from rich.table import Table

from anabranch.dataflows.messages.outputs import RolloutMessage
from anabranch.dataflows.rollout.status import ChallengerStatus, RolloutStatus
from anabranch.models.rollout.decision import ACTIONS

_COLUMNS = ("serves", "labels", "loss", "gain", "evidence")


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
    """The champion in the title, and a row for each challenger; it fits eighty columns."""
    title = f"{status.pipeline}: {status.champion} leads, {status.policy}"
    table = Table(
        title=title, title_justify="left", caption=_LEGEND, caption_justify="left",
        box=SIMPLE, padding=(0, 1), pad_edge=False, show_lines=True,
    )  # fmt: skip
    table.add_column("challenger", no_wrap=True)
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("guardrails", no_wrap=True)
    for each in status.challengers.values():
        table.add_row(*_row(each))
    return table


_LEGEND = (
    "loss: its mean, and the champion's on the same labels. gain: the champion's less its own, and "
    "the interval of that. evidence: an e-value; at the figure below it the challenger is better."
)


def _row(each: ChallengerStatus) -> list[str]:
    if each.action is None:
        return [f"{each.name}\nwaits", *[""] * len(_COLUMNS), ""]
    figures = ["", "", "", ""]
    if (found := each.evidence) is not None:
        figures = [
            f"{found.labels:,}\n{found.served:,} served",
            f"{_number(found.challenger_loss)}\nvs {_number(found.champion_loss)}",
            f"{_number(found.difference)}\n> {_number(found.low)}\n< {_number(found.high)}",
            f"{_number(found.e_value)}\nof {1 / found.alpha:g}",
        ]
    since = "" if each.since is None else f"\n{_time(each.since)[5:16]}"
    return [
        f"{each.name}\n{each.action.replace('_', ' ')}{since}",
        "—" if each.share is None else f"{each.share:.1%}",
        *figures,
        "\n".join(
            f"{name.split('_')[0]} {_number(value)}" for name, value in each.guardrails.items()
        ),
    ]


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:.2g}" if abs(value) < 1 else f"{value:.3g}"


def _time(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"
