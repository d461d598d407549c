"""``anabranch replay``: its summary and its error messages."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from anabranch.dataflows.bus import open_bus
from anabranch.dataflows.pipelines.loader import load_pipeline
from anabranch.dataflows.replay.replay import InterruptedReplayError, ReplaySettings, replay
from anabranch.producers.simulators.faults import Faults
from tests.support.checkpoint_pipeline import StopAfter, refused
from tests.support.commands import Call, Command, caller
from tests.support.history import (
    EVENTS,
    LABELS,
    Message,
    copy_of_topic,
    cut_by_time,
    of_topic,
    publish,
    simulated,
    values,
    write,
)
from tests.support.waiting import wait_until

Row = dict[str, Any]
MESSAGES = simulated(400, Faults(duplicates=0.02))
EVENT_VALUES = [message.value for message in of_topic(MESSAGES, EVENTS)]
LABEL_VALUES = [message.value for message in of_topic(MESSAGES, LABELS)]
TO = ("--to", "rows.parquet")


@pytest.fixture
def call(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    return caller(tmp_path, capfd)


def changed(change: Callable[[int, Row], None]) -> list[bytes]:
    """The events, each transformed."""
    rows = [json.loads(value) for value in EVENT_VALUES]
    for number, row in enumerate(rows):
        change(number, row)
    return [json.dumps(row).encode() for row in rows]


def nothing_is_left(directory: Path, *known: str) -> None:
    """Assert that a replay has left no files."""
    assert sorted(path.name for path in directory.iterdir()) == sorted(known)


def test_a_run_continues_from_a_replayed_topic(tmp_path: Path, call: Call) -> None:
    first, rest = cut_by_time(MESSAGES, 0.5)
    publish(f"sqlite:{tmp_path / 'bus'}", first)
    bus = ("--bus", "sqlite:bus")
    done = call("replay", "payments", "--from", EVENTS, *TO, "--state", "kept", *bus)
    assert done.code == 0, done.err
    events, labels = len(of_topic(first, EVENTS)), len(of_topic(first, LABELS))
    rows = pl.read_parquet(tmp_path / "rows.parquet")
    lines = done.out.splitlines()
    assert lines[0].startswith(f"replayed {events:,} events and {labels:,} labels in ")
    assert lines[1] == f"rows.parquet: {len(rows):,} rows, {rows['label'].count():,} with a label"
    assert lines[2].startswith("quality: ROC AUC ")
    assert lines[3].startswith(f"{events - len(rows)} dead letters ({events - len(rows)} duplicate")
    assert (
        lines[4] == f"kept: a run continues from {EVENTS} 0 at {events:,}, {LABELS} 0 at {labels:,}"
    )
    assert lines[5] == "next: anabranch run payments --state kept"
    publish(f"sqlite:{tmp_path / 'bus'}", rest)
    done = call("run", "payments", "--state", "kept", "--until-end", *bus)
    assert done.code == 0, done.err
    served = [json.loads(v) for v in values(f"sqlite:{tmp_path / 'bus'}", "payments.predictions")]
    assert min(row["offset"] for row in served) >= events
    ids = [*rows["id"].to_list(), *(row["id"] for row in served)]
    assert len(ids) == len(set(ids)) == len({json.loads(v)["id"] for v in EVENT_VALUES})


def test_dead_letters_are_written_to_the_given_file(tmp_path: Path, call: Call) -> None:
    def spoil(number: int, row: Row) -> None:
        if number % 40 == 0:
            row["amount"] = "much"

    write(tmp_path / "e.jsonl", changed(spoil))
    more = ("--dead-letters", "dead.jsonl")
    done = call("replay", "payments", "--from", "e.jsonl", *TO, *more)
    assert done.code == 0, done.err
    dead = [json.loads(line) for line in (tmp_path / "dead.jsonl").read_text().splitlines()]
    assert [row["offset"] for row in dead if row["reason"] == "does not fit the type"] == [
        *range(0, len(EVENT_VALUES), 40)
    ]
    assert "does not fit the type" in done.out
    assert "dead.jsonl" in done.out
    nothing_is_left(tmp_path, "e.jsonl", "rows.parquet", "dead.jsonl")


def test_blank_lines_are_no_rows(tmp_path: Path, call: Call) -> None:
    texts = [value.decode() for value in EVENT_VALUES[:3]]
    lines(tmp_path / "e.jsonl", "", texts[0], "  ", "", texts[1], texts[2], "")
    done = call("replay", "payments", "--from", "e.jsonl", *TO)
    assert done.code == 0, done.err
    assert pl.read_parquet(tmp_path / "rows.parquet")["offset"].to_list() == [0, 1, 2]


def test_rows_that_are_out_of_order_are_dead_letters_and_the_summary_says_what_to_do(
    tmp_path: Path, call: Call
) -> None:
    write(tmp_path / "e.parquet", EVENT_VALUES[::-1])
    done = call("replay", "payments", "--from", "e.parquet", *TO)
    assert done.code == 0, done.err
    rows = pl.read_parquet(tmp_path / "rows.parquet")
    assert 0 < len(rows) < len(EVENT_VALUES) / 2
    assert "late" in done.out.splitlines()[-2]
    assert done.out.splitlines()[-1].startswith("most events were late: sort e.parquet by time")


def drop(name: str) -> list[bytes]:
    return changed(lambda _, row: row.pop(name) and None)


def cut_short(path: Path) -> None:
    write(path, EVENT_VALUES)
    path.write_bytes(path.read_bytes()[:-40])


def damaged(path: Path) -> None:
    """Damage a file in the middle."""
    write(path, [*EVENT_VALUES, *changed(lambda n, row: row.update(id=f"{n}x"))] * 3)
    content = bytearray(path.read_bytes())
    content[len(content) // 4 : len(content) // 2] = os.urandom(len(content) // 4 + 1)[
        : len(content) // 2 - len(content) // 4
    ]
    path.write_bytes(content)


def placed(path: Path, offsets: list[int], partition: int = 0) -> None:
    places = [{"partition": partition, "offset": offset} for offset in offsets]
    write(path, EVENT_VALUES[: len(offsets)], places)


def lines(path: Path, *texts: str) -> None:
    path.write_text("".join(f"{text}\n" for text in texts))


def test_columns_that_are_not_declared_are_ignored_and_told_of(tmp_path: Path, call: Call) -> None:
    write(tmp_path / "e.parquet", changed(lambda _, row: row.update(colour="red")))
    done = call("replay", "payments", "--from", "e.parquet", *TO)
    assert done.code == 0, done
    assert "e.parquet has columns that Payment does not declare, and they are" in done.err
    assert "colour" in done.err


PAYMENT = '"id":"a","ts":1736121600000,"card":"c","merchant":"m","amount":1.0,"country":"US"'


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda d: write(d / "e.parquet", drop("merchant")), ["no column 'merchant'", "requires"]),
        (lambda d: write(d / "e.csv", drop("amount")), ["no column 'amount' in e.csv"]),
        (lambda d: write(d / "e.parquet", drop("ts")), ["no column 'ts'"]),
        (lambda d: write(d / "e.jsonl", drop("ts")), ["no field 'ts'"]),
        (lambda d: write(d / "e.jsonl", drop("card")), ["none of the", "missing required field"]),
        (
            lambda d: write(d / "e.parquet", changed(lambda _, row: row.update(amount="much"))),
            ["none of the", "could be used", "does not fit the type", "$.amount"],
        ),
        (
            lambda d: write(d / "e.csv", changed(lambda _, row: row.update(ts="soon"))),
            ["column 'ts'", "which is not a time"],
        ),
        (lambda d: cut_short(d / "e.parquet"), ["e.parquet is not a complete Parquet file"]),
        (lambda d: damaged(d / "e.parquet"), ["e.parquet is damaged"]),
        (lambda d: lines(d / "e.csv", "id,ts"), ["e.csv has a header but no rows"]),
        (lambda d: (d / "e.jsonl").touch(), ["e.jsonl is empty"]),
        (lambda d: lines(d / "e.jsonl", "", ""), ["e.jsonl has only blank lines"]),
        (lambda d: placed(d / "e.parquet", [0, 2, 1]), ["partition 0", "do not rise"]),
        (lambda d: placed(d / "e.csv", [0, 1, 1]), ["do not rise", "sort the file"]),
        (lambda d: placed(d / "e.parquet", [0, 1], -1), ["partition -1", "another topic"]),
        (
            lambda d: lines(
                d / "e.jsonl", f'{{"partition":0,"offset":0,{PAYMENT}}}', f"{{{PAYMENT}}}"
            ),
            ["line 2 of e.jsonl", "partition, offset"],
        ),
        (
            lambda d: lines(d / "e.csv", "id,ts,card,merchant,amount,country", "a,1,c"),
            ["e.csv"],
        ),
    ],
)
def test_a_file_that_can_not_be_used_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, call: Call, make: Callable[[Path], Any], words: list[str]
) -> None:
    make(tmp_path)
    (name,) = (path.name for path in tmp_path.iterdir())
    refused(call("replay", "payments", "--from", name, *TO), *words)
    nothing_is_left(tmp_path, name)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--from", "f.jsonl"), ["there is no file f.jsonl"]),
        (("--from", "e.jsonl", "--to", "rows.csv"), ["must end in .parquet"]),
        (("--from", "e.jsonl", "--to", "no/such/rows.parquet"), ["its directory does not exist"]),
        (("--from", "e.jsonl", "--to", "d.parquet"), ["d.parquet", "it is a directory"]),
        (("--from", "e.jsonl", "--dead-letters", "no/d.jsonl"), ["no/d.jsonl", "does not exist"]),
        (("--from", "e.jsonl", "--labels", "bad.csv"), ["no column 'fraud' in bad.csv"]),
        (("--from", "old.events", "--bus", "sqlite:bus"), ["topic 'old.events' does not exist"]),
        (("--from", "e.jsonl", "--continue-at", "latest"), ["--continue-at needs --state"]),
        (
            ("--from", "e.jsonl", "--bus", "sqlite:bus", "--state", "state"),
            ["it is unknown which messages of payments.events", "--continue-at earliest"],
        ),
        (
            ("--from", EVENTS, "--bus", "sqlite:bus", "--state", "s", "--continue-at", "latest"),
            ["--continue-at is not needed"],
        ),
        (("--from", EVENTS, "--bus", "sqlite:bus", "--state", "full"), ["full exists already"]),
        (
            ("--from", "far.parquet", "--labels", LABELS, "--bus", "sqlite:bus", "--state", "s"),
            ["far.parquet ends at offset 90,001", "another topic"],
        ),
    ],
)
def test_wrong_options_are_one_sentence(
    tmp_path: Path, call: Call, arguments: tuple[str, ...], words: list[str]
) -> None:
    publish(f"sqlite:{tmp_path / 'bus'}", MESSAGES)
    write(tmp_path / "e.jsonl", EVENT_VALUES)
    lines(tmp_path / "bad.csv", "id,ts", "a,1")
    placed(tmp_path / "far.parquet", [0, 90_000])
    (tmp_path / "d.parquet").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    to = () if "--to" in arguments else TO
    refused(call("replay", "payments", *arguments, *to), *words)
    nothing_is_left(tmp_path, "bus", "d.parquet", "e.jsonl", "bad.csv", "far.parquet", "full")


def test_a_failed_replay_leaves_existing_files_untouched(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anabranch.producers.files.tables.PARQUET_ROWS", 500)
    (tmp_path / "rows.parquet").write_text("of yesterday")
    damaged(tmp_path / "e.parquet")
    refused(call("replay", "payments", "--from", "e.parquet", *TO), "is damaged after row ")
    assert (tmp_path / "rows.parquet").read_text() == "of yesterday"
    nothing_is_left(tmp_path, "e.parquet", "rows.parquet")


def test_leftovers_of_a_killed_replay_are_removed_by_the_next(tmp_path: Path, call: Call) -> None:
    write(tmp_path / "e.jsonl", EVENT_VALUES)
    (tmp_path / ".rows.parquet.replaying").mkdir()
    (tmp_path / ".rows.parquet.replaying" / "labels-000000").write_bytes(b"\1" * 24)
    write(tmp_path / "l.jsonl", LABEL_VALUES)
    done = call("replay", "payments", "--from", "e.jsonl", "--labels", "l.jsonl", *TO)
    assert done.code == 0, done.err
    nothing_is_left(tmp_path, "e.jsonl", "l.jsonl", "rows.parquet")


def test_a_replay_that_is_stopped_leaves_neither_rows_nor_state(tmp_path: Path) -> None:
    publish(f"sqlite:{tmp_path / 'bus'}", MESSAGES)
    bus = open_bus(f"sqlite:{tmp_path / 'bus'}")
    settings = ReplaySettings(
        events=EVENTS,
        rows=tmp_path / "rows.parquet",
        state=tmp_path / "state",
        dead_letters=tmp_path / "dead.jsonl",
        batch_size=10,
    )
    stop = StopAfter(20)
    with pytest.raises(InterruptedReplayError):
        replay(load_pipeline("payments"), settings, bus, stop=stop)
    bus.close()
    nothing_is_left(tmp_path, "bus")


def test_ctrl_c_ends_it_with_130(tmp_path: Path) -> None:
    many = [Message(EVENTS, value, None, 0) for value in EVENT_VALUES]
    text = b"\n".join(message.value for message in many) + b"\n"
    (tmp_path / "e.jsonl").write_bytes(text * 2000)  # duplicates, all but the first
    with Command(tmp_path, "replay", "payments", "--from", "e.jsonl", *TO) as command:
        wait_until(lambda: (tmp_path / ".rows.parquet.replaying").exists())
        command.send(signal.SIGINT)
        done = command.done()
    assert done.code == 130, done
    assert done.out.startswith("interrupted after ")
    assert "Traceback" not in done.err
    nothing_is_left(tmp_path, "e.jsonl")


def test_a_copy_of_a_topic_needs_no_continue_at(tmp_path: Path, call: Call) -> None:
    url = f"sqlite:{tmp_path / 'bus'}"
    publish(url, MESSAGES)
    copy_of_topic(tmp_path / "e.jsonl", url, EVENTS)
    options = ("--labels", LABELS, "--bus", "sqlite:bus", "--state", "kept")
    done = call("replay", "payments", "--from", "e.jsonl", *TO, *options)
    assert done.code == 0, done.err
    assert f"{EVENTS} 0 at {len(EVENT_VALUES):,}" in done.out
