"""Logs: one line for each thing, in a form that programs read, with levels that mean something."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from anabranch.dataflows.messages.outputs import DeadLetter
from anabranch.dataflows.telemetry import logs
from anabranch.dataflows.telemetry.stream_log import StreamLog
from tests.support.commands import Command, run_command

pytestmark = pytest.mark.stress

FAULT = ["--fault", "type", "--fault-at", "1000"]
KEYS = {"time", "level", "logger", "msg"}


@pytest.fixture
def written(capfd: pytest.CaptureFixture[str]) -> Iterator[pytest.CaptureFixture[str]]:
    """What goes to stderr; logging is as before afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with patch.dict(os.environ):
        yield capfd
    logs._FIELDS.clear()
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


def lines_of(written: pytest.CaptureFixture[str]) -> list[str]:
    return written.readouterr().err.splitlines()


def test_a_record_is_one_line_of_json_with_its_fields(written):
    logs.configure("json")
    logs.about(pipeline="p", worker=1)
    logging.getLogger("x.y").warning("a %s\nb", "big", extra={"count": 3})
    try:
        raise ValueError("no\nway")
    except ValueError:
        logging.getLogger("x").exception("it ended")
    first, second = map(json.loads, lines_of(written))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert first == {
        "level": "warning", "logger": "x.y", "msg": "a big\nb", "pipeline": "p", "worker": 1,
        "count": 3,
    }  # fmt: skip
    assert second["level"] == "error"
    assert "ValueError: no" in second["exception"]


def test_logfmt_quotes_what_would_be_read_wrongly(written):
    logs.configure("logfmt")
    logging.getLogger("x").info('says "hi" = a\nb', extra={"path": "/a b", "n": 2})
    (line,) = lines_of(written)
    assert re.sub(r"time=\S+ ", "", line) == (
        r'level=info logger=x msg="says \"hi\" = a\nb" path="/a b" n=2'
    )


def test_plain_lines_are_one_line_each_and_levels_leave_out(written):
    logs.configure("plain", "warning")
    logging.getLogger("x").info("not this")
    logging.getLogger("x").warning("a\nb")
    assert lines_of(written) == [r"WARNING x: a\nb"]


ODD = {"path": "bad\udcff", "big": 2**70, "pair": {(1, 2): 3}, "count": 3}


@pytest.mark.parametrize("form", ["json", "logfmt", "plain"])
@pytest.mark.parametrize(
    "text",
    ["a\rb", "a\u2028b", "a\x0bb", "a\x85b", "bad \udcff name"],
    ids=["carriage return", "line separator", "tab", "next line", "no UTF-8"],
)
def test_no_text_and_no_field_breaks_a_line(written, form: str, text: str):
    logs.configure(form)
    logger, own = logging.getLogger("x"), logging.getLogger().handlers[-1]
    # Not by way of pytest's handler: xdist can't send what that has kept.
    own.handle(logger.makeRecord("x", logging.INFO, "", 1, "%s", (text,), None, extra=ODD))
    (line,) = lines_of(written)
    if form == "json":
        found = json.loads(line)
        assert found["msg"] == text.replace("\udcff", "\\udcff")
        assert found["path"] == "bad\\udcff"
        assert (found["big"], found["count"]) == (str(2**70), 3)


def test_no_field_takes_the_place_of_level_and_time(written):
    logs.configure("json")
    logging.getLogger("x").warning("m", extra={"level": "mine", "time": "never"})
    (line,) = lines_of(written)
    assert json.loads(line)["level"] == "warning"
    assert json.loads(line)["time"] != "never"


def test_warnings_of_python_are_records(written):
    logs.configure("json")
    warnings.warn("two\nlines", UserWarning, stacklevel=1)
    (line,) = lines_of(written)
    found = json.loads(line)
    assert (found["level"], found["logger"]) == ("warning", "py.warnings")
    assert "two\nlines" in found["msg"]


def test_configuring_again_does_not_say_all_twice(written):
    logs.configure("json")
    logs.configure("json")
    logging.getLogger("x").info("once")
    assert len(lines_of(written)) == 1


def test_dead_letters_are_summed_up_once_a_minute(caplog):
    now = [0.0]
    log = StreamLog("p.dead-letters", lambda: now[0])
    letter = DeadLetter(topic="t", partition=0, offset=0, reason="late", detail="", payload="x")
    with caplog.at_level(logging.INFO):
        for _ in range(5):
            log.dead_letters([letter, letter])
        now[0] = 61.0
        log.flush()
        log.dead_letters([letter])
        log.finish()
        log.finish()
    assert [record.getMessage() for record in caplog.records] == [
        "2 messages could not be used (late 2): see p.dead-letters",
        "8 messages could not be used (late 8): see p.dead-letters",
        "1 messages could not be used (late 1): see p.dead-letters",
    ]


def records(err: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in err.splitlines()]
    assert all(each.keys() >= KEYS for each in found)
    return found


def test_every_line_of_a_run_is_a_record(tmp_path: Path):
    simulated = run_command(tmp_path, "simulate", "payments", "--events", "3000", *FAULT)
    assert simulated.code == 0
    done = run_command(tmp_path, "run", "payments", "--until-end", "--log-format", "json")
    assert done.code == 0, done.err
    found = records(done.err)
    running = next(each for each in found if "running payments on" in each["msg"])
    assert running["versions"].keys() == {"anabranch", "bytewax", "python", "river"}
    ended = found[-1]
    assert (ended["msg"], ended["pipeline"]) == ("ended", "payments")
    assert ended["events"] == 3000
    assert ended["dead_letters"] > 0
    warned = [each for each in found if each["level"] == "warning"]
    logged = [each["reasons"] for each in warned if "could not be used" in each["msg"]]
    assert sum(sum(reasons.values()) for reasons in logged) == ended["dead_letters"]


@pytest.mark.timeout(600)
def test_workers_say_who_they_are_and_a_restart_is_a_warning(tmp_path: Path):
    run_command(tmp_path, "simulate", "payments", "--events", "3000", *FAULT)
    arguments = ["run", "payments", "--processes", "2", "--checkpoint-interval", "500ms"]
    with Command(tmp_path, *arguments, ANABRANCH_LOG_FORMAT="json") as command:
        assert command.process.stderr is not None
        found: list[dict[str, Any]] = []
        killed = False
        for line in command.process.stderr:
            found += records(line)
            if not killed and any("could not be used" in each["msg"] for each in found):
                killed = True
                children = Path(f"/proc/{command.process.pid}/task/{command.process.pid}/children")
                os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
            if any("restarting all" in each["msg"] for each in found):
                break
        command.process.send_signal(signal.SIGINT)
        command.process.wait(300)
    restart = next(each for each in found if "restarting all" in each["msg"])
    assert restart["level"] == "warning"
    workers = {each["worker"] for each in found if "worker" in each}
    assert workers <= {0, 1}
    assert workers


def test_what_ends_it_is_a_record_too(tmp_path: Path):
    done = run_command(tmp_path, "run", "payments", ANABRANCH_LOG_FORMAT="json")
    assert done.code == 1
    (only,) = records(done.err)
    assert only["level"] == "error"
    assert "payments.events" in only["msg"]


def test_a_name_that_is_no_text_is_reported_in_one_record(tmp_path: Path):
    done = run_command(tmp_path, "state", os.fsdecode(b"bad\xff"), ANABRANCH_LOG_FORMAT="json")
    assert done.code == 1
    (only,) = records(done.err)
    assert only["msg"].startswith(r"bad\udcff is no state directory")


def test_what_is_no_format_is_one_sentence(tmp_path: Path):
    done = run_command(tmp_path, "topics", ANABRANCH_LOG_FORMAT="yaml")
    assert done.code == 1
    assert "error: ANABRANCH_LOG_FORMAT is 'yaml': set it to one of plain, logfmt, json" in done.err
    done = run_command(tmp_path, "run", "payments", "--log-level", "loud")
    assert done.code == 2


PIPELINE_THAT_WRITES = """
import os, sys, threading, warnings
from river import linear_model
from anabranch import Event, Pipeline, field, inline

os.write(2, b"thread 'main' panicked at engine.rs:1:\\nnote: \\xff\\x1b[31m\\n")
print("printed by a library", file=sys.stderr)
warnings.warn("look out")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
if os.environ.get("UNCAUGHT"):
    class Odd(BaseException):
        pass
    raise Odd("not\\ncaught")

class Thing(Event):
    id: str
    ts: int
    size: float
    good: bool

pipeline = Pipeline(name="odd", event=Thing, label=inline("good"), features=[field("size")],
    model=linear_model.LogisticRegression())
"""


@pytest.mark.parametrize("by", ["variable", "option"])
def test_what_others_write_to_standard_error_is_records_too(by: str, tmp_path: Path):
    (tmp_path / "odd.py").write_text(PIPELINE_THAT_WRITES)
    if by == "variable":
        done = run_command(tmp_path, "topics", "odd.py", ANABRANCH_LOG_FORMAT="json")
    else:
        run_command(tmp_path, "topics", "odd.py", "--create", ANABRANCH_LOG_FORMAT="json")
        command = ["run", "odd.py", "--until-end", "--no-state", "--log-format", "json"]
        done = run_command(tmp_path, *command)
    assert done.code == 0, done.err
    found = records(done.err)
    texts = [each["msg"] for each in found]
    for text in ("thread 'main' panicked at engine.rs:1:", "printed by a library"):
        (own,) = [each for each in found if each["msg"] == text]
        assert (own["level"], own["logger"]) == ("warning", "anabranch.stderr")
    assert "note: \\xff\x1b[31m" in texts
    assert any("look out" in text for text in texts)
    uncaught = next(each for each in found if each["msg"] == "uncaught ZeroDivisionError")
    assert "division by zero" in uncaught["exception"]


def test_an_uncaught_error_is_one_record(tmp_path: Path):
    (tmp_path / "odd.py").write_text(PIPELINE_THAT_WRITES)
    done = run_command(tmp_path, "topics", "odd.py", ANABRANCH_LOG_FORMAT="json", UNCAUGHT="1")
    assert done.code == 1
    last = records(done.err)[-1]
    assert last["msg"] == "uncaught Odd"
    assert "not\ncaught" in last["exception"]
