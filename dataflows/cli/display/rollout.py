"""What `anabranch rollout` prints: decisions as sentences, the status as a table."""

from __future__ import annotations

from datetime import UTC, datetime

from rich.box import SIMPLE
from rich.table import Table

from anabranch.dataflows.messages.outputs import RolloutMessage
from anabranch.dataflows.rollout.status import ChallengerStatus, RolloutStatus
from anabranch.models.rollout.decision import ACTIONS

_COLUMNS = ("serves", "labels", "loss", "gain", "evidence")
_LEGEND = (
    "loss: the mean, and the champion's on the same labels. gain: the champion's loss minus the "
    "challenger's, and its interval. evidence: an e-value; at the figure below it the challenger "
    "is better."
)


def sentence(message: RolloutMessage) -> str:
    """A decision as one sentence."""
    model = message.challenger or message.champion
    share = "" if message.share is None else f", serves {message.share:.1%}"
    action = message.action.replace("_", " ")
    meaning = ACTIONS.get(message.action, "")
    return f"{model}: {action}{share}; {meaning}: {message.reason}"


def timed_sentence(message: RolloutMessage) -> str:
    """The same after its event time."""
    return f"{_time(message.ts)} {sentence(message)}"


def status_table(status: RolloutStatus) -> Table:
    """The champion in the title, and a row for each challenger; it fits eighty columns."""
    title = f"{status.pipeline}: champion {status.champion}, {status.policy}"
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


def _row(challenger: ChallengerStatus) -> list[str]:
    if challenger.action is None:
        return [f"{challenger.name}\nwaiting", *[""] * len(_COLUMNS), ""]
    figures = ["", "", "", ""]
    if (evidence := challenger.evidence) is not None:
        figures = [
            f"{evidence.labels:,}\n{evidence.served:,} served",
            f"{_number(evidence.challenger_loss)}\nvs {_number(evidence.champion_loss)}",
            f"{_number(evidence.difference)}\n> {_number(evidence.low)}\n"
            f"< {_number(evidence.high)}",
            f"{_number(evidence.e_value)}\nof {1 / evidence.alpha:g}",
        ]
    since = "" if challenger.since is None else f"\n{_time(challenger.since)[5:16]}"
    guardrails = [
        f"{name.split('_')[0]} {_number(value)}" for name, value in challenger.guardrails.items()
    ]
    return [
        f"{challenger.name}\n{challenger.action.replace('_', ' ')}{since}",
        "—" if challenger.share is None else f"{challenger.share:.1%}",
        *figures,
        "\n".join(guardrails),
    ]


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:.2g}" if abs(value) < 1 else f"{value:.3g}"


def _time(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"
