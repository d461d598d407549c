"""Durations as people write them: ``"250ms"``, ``"30s"``, ``"10m"``, ``"1h"``, ``"7d"``."""

from __future__ import annotations

import re

from anabranch.state.errors import DeclarationError

_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_PATTERN = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")


def parse_duration_ms(text: str) -> int:
    """Milliseconds of a written duration; parts may be joined, largest unit first or not.

    >>> parse_duration_ms("10m"), parse_duration_ms("1h30m"), parse_duration_ms("0.5s")
    (600000, 5400000, 500)

    Raises:
        DeclarationError: the text is no duration.
    """
    parts = _PATTERN.findall(text) if isinstance(text, str) else []
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise DeclarationError(
            f"{text!r} is not a duration: write a number and a unit, such as '250ms', '30s', "
            "'10m', '1h', '7d' or '1h30m'"
        )
    return round(sum(float(number) * _UNIT_MS[unit] for number, unit in parts))


def format_duration_ms(duration_ms: int) -> str:
    """The shortest exact spelling of a duration in milliseconds.

    >>> format_duration_ms(5_400_000), format_duration_ms(86_400_000), format_duration_ms(0)
    ('1h30m', '1d', '0s')
    """
    if duration_ms == 0:
        return "0s"
    text, rest = "", duration_ms
    for unit in ("d", "h", "m", "s", "ms"):
        number, rest = divmod(rest, _UNIT_MS[unit])
        if number:
            text += f"{number}{unit}"
    return text
