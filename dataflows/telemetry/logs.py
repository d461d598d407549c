"""Logging: one line for each record, as plain text, logfmt or JSON.

* ``plain``: the sentences that a command prints, and ``LEVEL logger: message`` for the others;
* ``logfmt``: ``time=… level=… logger=… msg="…"`` and fields, a line each;
* ``json``: the same as an object, a line each.

Levels: *debug* is for developers of Anabranch; *info* is normal operation (started, resumed,
stopped); *warning* needs attention while the run continues (a broker is unavailable, workers are
restarted, drift); *error* is that it has ended.

Loggers: ``anabranch`` has what commands print; below it are ``anabranch.bus``, ``anabranch.sink``,
``anabranch.state``, ``anabranch.models``, ``anabranch.drift``, ``anabranch.rollout`` and
``anabranch.dead_letters``.

In ``logfmt`` and ``json`` what a command would print on stderr becomes a record as well, and so do
Python's warnings and uncaught errors. In a process of its own a command also makes records of lines
that others write straight to standard error, such as the engine's report of a failed step
(``anabranch.stderr``); see `StderrCapture`.
"""

from __future__ import annotations

import atexit
import fcntl
import io
import logging
import os
import re
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, TextIO

import orjson
from rich.console import Console

from anabranch.dataflows.telemetry.console import TextConsole, one_line, printable
from anabranch.state.errors import InputError

FORMAT: Final = "ANABRANCH_LOG_FORMAT"
LEVEL: Final = "ANABRANCH_LOG_LEVEL"

_FIELDS: dict[str, Any] = {}
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_COMMAND = logging.getLogger("anabranch")
_STDERR = logging.getLogger("anabranch.stderr")
_UNSAFE = re.compile(r'[\s"=]')
_JSON = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


class LogFormat(StrEnum):
    """The format of log lines."""

    plain = "plain"
    logfmt = "logfmt"
    json = "json"


class LogLevel(StrEnum):
    """The lowest level that is logged."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to the current ``sys.stderr``, which a live table replaces to print above itself.

    While standard error is captured it writes past the capture.
    """

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr if _capture is None else _capture.output


class StderrCapture:
    """Makes a record of each line that is written to file descriptor 2, by whatever code.

    Lines that are records pass unchanged: worker processes, which inherit the descriptor, write
    records themselves.
    """

    def __init__(self, as_json: bool) -> None:
        self._json = as_json
        self._original = os.dup(2)
        self.output: TextIO = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8")
        reader, writer = os.pipe()
        with suppress(OSError):
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 1 << 20)  # a report never waits for the reader
        sys.stderr.flush()
        os.dup2(writer, 2)
        os.close(writer)
        self._thread = threading.Thread(
            target=self._read, args=(reader,), name="standard error", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Write the records of what was captured, and restore standard error."""
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        os.dup2(self._original, 2)
        self._thread.join(2.0)  # workers that still run keep the pipe open

    def _read(self, reader: int) -> None:
        with os.fdopen(reader, "r", encoding="utf-8", errors="backslashreplace") as lines:
            for line in lines:
                text = line.rstrip("\n")
                if self._is_record(text):
                    print(text, file=self.output, flush=True)
                elif text.strip():
                    # Past the level: what a library has to say in this way is seldom harmless.
                    made = _STDERR.makeRecord(
                        _STDERR.name, logging.WARNING, "", 0, "%s", (text,), None
                    )
                    for handler in logging.getLogger().handlers:
                        handler.handle(made)

    def _is_record(self, text: str) -> bool:
        if not self._json:
            return text.startswith("time=") and " level=" in text
        try:
            return isinstance(orjson.loads(text), dict)
        except orjson.JSONDecodeError:
            return False


_capture: StderrCapture | None = None
_own_process = False


def own_process() -> None:
    """Let `configure` capture standard error: this process runs a command and nothing else.

    A supervised worker leaves that to its supervisor.
    """
    global _own_process
    _own_process = "ANABRANCH_SUPERVISED" not in os.environ


def stop_capture() -> None:
    """Restore standard error, after all that was captured is written."""
    global _capture
    if _capture is not None:
        _capture.stop()
        _capture = None


class _Lines(logging.Formatter):
    """A record as one line, ``logfmt`` or ``json``."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self._json = as_json

    def format(self, record: logging.LogRecord) -> str:
        own = {
            "time": _iso(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage().rstrip("\n"),
        }
        extra = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        fields = {**own, **_FIELDS, **extra, **own}  # its own come first, and win
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        if self._json:
            return _encoded(fields)
        return " ".join(f"{key}={_quoted(value)}" for key, value in fields.items())


class _Plain(logging.Formatter):
    """A record as plain text; line breaks and control characters are escaped."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        return one_line(super().formatMessage(record))

    def formatException(self, exc_info: Any) -> str:
        return printable(super().formatException(exc_info))


class RecordConsole(Console):
    """A console that logs what is printed."""

    def __init__(self) -> None:
        super().__init__(file=io.StringIO(), force_terminal=False)

    def print(self, *objects: Any, style: Any = None, **_: Any) -> None:
        """Log it, as an error or a warning if its style is that of one."""
        text, colours = " ".join(str(each) for each in objects), str(style).split()
        level = logging.WARNING if "yellow" in colours else logging.INFO
        level = logging.ERROR if "red" in colours else level
        _COMMAND.log(level, "%s", text)


def configure(form: LogFormat | str | None = None, level: LogLevel | str | None = None) -> None:
    """Set up logging; by default as the environment says, else plain from *info* on.

    Raises:
        InputError: the environment names no such format or level.
    """
    chosen: LogFormat = _parse(LogFormat, form or os.environ.get(FORMAT) or "plain", FORMAT)
    lowest: LogLevel = _parse(LogLevel, level or os.environ.get(LEVEL) or "info", LEVEL)
    handler, root = _Stderr(), logging.getLogger()
    plain = chosen is LogFormat.plain
    handler.setFormatter(_Plain() if plain else _Lines(chosen is LogFormat.json))
    for other in root.handlers[:]:
        if isinstance(other, _Stderr):
            root.removeHandler(other)
    root.addHandler(handler)
    root.setLevel(lowest.value.upper())
    logging.captureWarnings(not plain)
    _log_uncaught_errors(not plain)
    _capture_stderr(chosen)
    _FIELDS.clear()
    # For the workers that this process starts.
    os.environ[FORMAT], os.environ[LEVEL] = chosen.value, lowest.value


def _capture_stderr(form: LogFormat) -> None:
    global _capture
    stop_capture()
    if _own_process and form is not LogFormat.plain:
        _capture = StderrCapture(form is LogFormat.json)
        atexit.register(stop_capture)


def _log_uncaught_errors(enabled: bool) -> None:
    """Make records of errors that nothing has caught, in any thread."""
    if not enabled:
        sys.excepthook, threading.excepthook = sys.__excepthook__, threading.__excepthook__
        sys.unraisablehook = sys.__unraisablehook__
        return

    def uncaught(hook: Any) -> None:
        log_uncaught(hook.exc_type, hook.exc_value, hook.exc_traceback)

    sys.excepthook = log_uncaught
    threading.excepthook = sys.unraisablehook = uncaught


def log_uncaught(kind: Any, error: Any, trace: Any) -> None:
    """Log an error that nothing has caught, with its traceback."""
    _COMMAND.critical("uncaught %s", kind.__name__, exc_info=(kind, error, trace))


def about(**fields: Any) -> None:
    """Set fields that all records have from now on; None removes one."""
    for name, value in fields.items():
        if value is None:
            _FIELDS.pop(name, None)
        else:
            _FIELDS[name] = value


def structured() -> bool:
    """Whether the format is logfmt or JSON."""
    return os.environ.get(FORMAT) in (LogFormat.logfmt, LogFormat.json)


def stderr_console() -> Console:
    """The console for what a command prints on stderr."""
    return RecordConsole() if structured() else TextConsole(stderr=True)


def warn(console: Console, text: str) -> None:
    """Print or log something that needs attention."""
    if structured():
        _COMMAND.warning("%s", text)
    else:
        console.print(text, highlight=False, soft_wrap=True)


def record(text: str, **fields: Any) -> None:
    """Log normal operation, with fields."""
    _COMMAND.info("%s", text, extra=fields)


def fail(text: str) -> None:
    """Log why the command ends."""
    _COMMAND.error("%s", text)


def _parse(kind: Any, value: Any, variable: str) -> Any:
    try:
        return kind(value)
    except ValueError:
        listed = ", ".join(kind)
        raise InputError(f"{variable} is {value!r}: set it to one of {listed}") from None


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def _quoted(value: Any) -> str:
    text = str(value)
    plain = text and not _UNSAFE.search(text) and one_line(text) == text
    return text if plain else _encoded(_text(text))


def _encoded(value: Any) -> str:
    """As JSON on one line; what JSON can't hold (a file name that is not UTF-8, say), as text."""
    try:
        encoded = orjson.dumps(value, default=str, option=_JSON)
    except TypeError:
        if not isinstance(value, dict):
            return _encoded(_text(value))
        pairs = ((_encoded(_text(key)), _encoded(each)) for key, each in value.items())
        return "{" + ",".join(f"{key}:{each}" for key, each in pairs) + "}"
    return one_line(encoded.decode())


def _text(value: Any) -> str:
    return str(value).encode(errors="backslashreplace").decode()
