"""Output of `anabranch dead-letters`: tables, or one JSON object."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
from rich.table import Table

from anabranch.dataflows.telemetry.console import TextConsole, echo

if TYPE_CHECKING:
    from anabranch.dataflows.dead_letters.republish import HeldBack, Republished
    from anabranch.dataflows.dead_letters.stored import Listing

_REASONS_SHOWN = 20


def print_listing(listing: Listing, json: bool) -> None:
    """Print the dead letters by reason."""
    if json:
        echo(msgspec.json.encode(listing).decode())
        return
    console = TextConsole()
    if not listing.reasons:
        console.print(f"no dead letters on {listing.topic}", soft_wrap=True)
    else:
        title = f"{listing.read:,} dead letters on {listing.topic}"
        table = Table(title=title, title_justify="left")
        table.add_column("reason")
        table.add_column("messages", justify="right", no_wrap=True)
        table.add_column("first, last")
        table.add_column("the last")
        for each in listing.reasons:
            table.add_row(
                each.reason,
                f"{each.count:,}",
                f"{_time_text(each.first)}\n{_time_text(each.last)}",
                f"{each.place}: {each.detail}\n{each.payload}",
            )
        console.print(table)
    for line in _unreadable_lines(listing.unreadable):
        console.print(line, soft_wrap=True)


def print_republished(report: Republished, json: bool) -> None:
    """Print what was published again, or would be, and what was not."""
    if json:
        echo(msgspec.json.encode(report).decode())
        return
    console = TextConsole()
    if report.held_back:
        console.print(_held_back_table(report.held_back))
    for line in _lines(report):
        console.print(line, soft_wrap=True)


def _held_back_table(held_back: list[HeldBack]) -> Table:
    table = Table(title="dead letters that are not published again", title_justify="left")
    table.add_column("why")
    table.add_column("messages", justify="right", no_wrap=True)
    table.add_column("for example")
    for each in held_back[:_REASONS_SHOWN]:
        table.add_row(
            each.reason, f"{each.count:,}", f"{each.place}: {each.detail}\n{each.payload}"
        )
    more = len(held_back) - _REASONS_SHOWN
    if more > 0:
        table.add_row(f"and {more:,} more", "", "")
    return table


def _lines(report: Republished) -> Iterator[str]:
    if report.already:
        yield f"{report.already:,} had been published again before"
    if report.repeated:
        yield f"{report.repeated:,} are of a message that has another dead letter"
    if report.uncertain:
        yield (
            f"{report.uncertain:,} may have been published by a call that was killed, whose "
            "messages are not kept any more: they are left"
        )
    if report.without_original:
        yield (
            f"of {report.without_original:,} the message is not kept any more: their copies have "
            "no key or headers, and the time of the dead letter"
        )
    yield from _unreadable_lines(report.unreadable)
    topics = ", ".join(f"{count:,} to {topic}" for topic, count in sorted(report.published.items()))
    done = "would be published again" if report.dry_run else "published again"
    total = f"{report.count:,} of {report.considered:,} dead letters {done}"
    yield f"{total}: {topics}" if topics else total


def _unreadable_lines(count: int) -> Iterator[str]:
    if count:
        yield f"{count:,} messages on the topic are no dead letters, and were left out"


def _time_text(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds")
