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
Python's warnings.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
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
    """Writes to the current ``sys.stderr``, which a live table replaces to print above itself."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


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
    _FIELDS.clear()
    # For the workers that this process starts.
    os.environ[FORMAT], os.environ[LEVEL] = chosen.value, lowest.value


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
