"""Output of `anabranch check`: tables and a verdict, or one JSON object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console
from rich.table import Table

from anabranch.dataflows.telemetry.console import TextConsole, echo
from anabranch.state.durations import format_duration_ms

if TYPE_CHECKING:
    from anabranch.dataflows.check.fields import FieldFit, FieldsReport
    from anabranch.dataflows.check.labels import JoinReport
    from anabranch.dataflows.check.report import CheckReport, MessagesReport, ReasonCount


_REASONS_SHOWN = 20


def print_report(report: CheckReport, json: bool) -> None:
    """Print what fits and what does not."""
    if json:
        echo(msgspec.json.encode(report).decode())
        return
    console = TextConsole()
    for messages in (report.events, report.labels):
        if messages is not None:
            _print_messages(console, messages)
    lines = [] if report.join is None else list(_join_lines(report.join))
    for line in [*lines, _verdict(report)]:
        console.print(line, soft_wrap=True)


def print_reasons(console: Console, reasons: Sequence[ReasonCount], title: str) -> None:
    """Print a table of dead letters: the reason, how many, and an example."""
    table = Table(title=title, title_justify="left")
    table.add_column("reason")
    table.add_column("messages", justify="right", no_wrap=True)
    table.add_column("for example")
    for each in reasons[:_REASONS_SHOWN]:
        table.add_row(
            each.reason, f"{each.count:,}", f"{each.place}: {each.detail}\n{each.payload}"
        )
    console.print(table)
    if len(reasons) > _REASONS_SHOWN:
        console.print(f"and {len(reasons) - _REASONS_SHOWN:,} more reasons")


def _print_messages(console: Console, report: MessagesReport) -> None:
    console.print(_fields_table(report))
    for line in _unknown_lines(report.fields):
        console.print(line, soft_wrap=True)
    if report.reasons:
        print_reasons(console, report.reasons, f"{report.kind} that would be dead letters")
    for line in _time_lines(report):
        console.print(line, soft_wrap=True)


def _fields_table(report: MessagesReport) -> Table:
    read = f"{report.read:,} {report.kind} of {report.source}"
    if report.total is None or report.total > report.read:
        of = "" if report.total is None else f" {report.total:,}"
        read = f"{report.read:,} of the{of} {report.kind} of {report.source}"
    table = Table(title=f"{read}, as {report.fields.type}", title_justify="left")
    table.add_column("field", no_wrap=True)
    table.add_column("type")
    for name in ("there", "null"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("for example")
    table.add_column("does not fit")
    for each in report.fields.fields:
        table.add_row(
            each.name,
            each.type if each.required else f"{each.type}, optional",
            f"{each.present:,}",
            f"{each.nulls:,}",
            each.example,
            "\n".join(_misfits(each)),
            style="red" if each.misfits else None,
        )
    return table


def _misfits(fit: FieldFit) -> Iterator[str]:
    for each in fit.misfits:
        example = f" ({each.example})" if each.example else ""
        yield f"{each.count:,}: {each.why}, {each.place}{example}"
        if each.castable:
            which = "it" if each.castable == each.count else f"{each.castable:,} of them"
            yield f"Cast[{fit.type}] takes {which}"
    if fit.similar is not None:
        yield f"{fit.similar!r} is there"


def _unknown_lines(report: FieldsReport) -> Iterator[str]:
    if not report.unknown:
        return
    what = "such a message is a dead letter" if report.refused else "they are ignored"
    yield f"fields that {report.type} does not have ({what}):"
    for each in report.unknown:
        similar = "" if each.similar is None else f"; did you mean {each.similar!r}?"
        yield f"  {each.name}: {each.count:,}, {each.place} ({each.example}){similar}"


def _time_lines(report: MessagesReport) -> Iterator[str]:
    times = report.times
    if report.skipped:
        yield f"{report.skipped:,} messages are none of the pipeline's, and skipped"
    if times is not None:
        order = "in order"
        if times.out_of_order:
            order = (
                f"{times.out_of_order:,} out of order, by up to "
                f"{format_duration_ms(times.behind_ms)}"
            )
        line = f"times: {_time_text(times.earliest)} to {_time_text(times.latest)}, {order}"
        if times.arrival_ms is not None and times.arrival_ms > 0:
            line += f"; published {format_duration_ms(times.arrival_ms)} later (median)"
        yield line
        if times.advice is not None:
            yield times.advice
    if report.repeated is not None:
        each = report.repeated
        yield (
            f"{each.ids:,} ids are repeated after dedup_window, and are events of their own, such "
            f"as {each.example!r} ({each.places[0]}; {each.places[1]})"
        )


def _join_lines(join: JoinReport) -> Iterator[str]:
    if not join.labels:
        return
    line = f"labels: {join.joined:,} of {join.labels:,} join one of the {join.events:,} events"
    if join.median_delay_ms is not None:
        line += f", {format_duration_ms(max(join.median_delay_ms, 0))} after it (median)"
    yield line
    if join.of_refused:
        yield f"{join.of_refused:,} labels are of events that would be dead letters"
    if join.label_ids:
        labels, events = (", ".join(map(repr, ids)) for ids in (join.label_ids, join.event_ids))
        differ = "" if join.differ is None else f": the ids differ {join.differ}"
        more = "" if join.complete else " (their events may not be in the sample)"
        yield f"labels without an event have ids such as {labels}, events {events}{differ}{more}"
    for count, what in (
        (join.before_event, "are earlier than their event"),
        (join.after_timeout, "come after the timeout, and would be dead letters"),
        (join.repeated, "repeat the id of another label, and would be dead letters"),
        (join.without_value, "have no value, and would be dead letters"),
    ):
        if count:
            yield f"{count:,} labels {what}"


def _verdict(report: CheckReport) -> str:
    parts = []
    for each in (report.events, report.labels):
        if each is not None and each.reasons:
            bad = sum(reason.count for reason in each.reasons)
            parts.append(f"{bad:,} of {each.read:,} {each.kind} would be dead letters")
    if report.join is not None and report.join.refused:
        parts.append(f"{report.join.refused:,} labels would not be learned")
    if parts:
        return "; ".join(parts)
    labels = "" if report.labels is None else f" and {report.labels.read:,} labels"
    return f"all fits: {report.events.read:,} events{labels}"


def _time_text(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds")
