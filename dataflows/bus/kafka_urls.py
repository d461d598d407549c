"""The hosts of a ``kafka://`` URL, and messages that quote no secret."""

from __future__ import annotations

import re
from collections.abc import Mapping

from anabranch.state.errors import BusError

_HOST = r"([^\s,:/@]+|\[[0-9a-fA-F:.]+\]):\d+"
_HOSTS = re.compile(f"{_HOST}(,{_HOST})*")
_SECRET = re.compile(r"password|secret|token|credential|jaas|oauthbearer\.config|\.pem$", re.I)


def check_hosts(hosts: str) -> None:
    """Check what follows ``kafka://``.

    Raises:
        BusError: it is not a list of hosts and ports. A user and password are not quoted.
    """
    if "@" in hosts:
        raise BusError(
            f"{redacted('kafka://' + hosts)}: the URL names hosts only; put the user and the "
            "password into a file, as sasl.username=… and sasl.password=…, and name that with "
            "--bus-config FILE"
        )
    if _HOSTS.fullmatch(hosts) is None:
        raise BusError(f"kafka://{hosts}: write kafka://HOST:PORT[,HOST:PORT…]")


def redacted(url: str) -> str:
    """The URL without what could be a user and a password.

    >>> redacted("kafka://user:secret@host:9092,user:secret@other:9092")
    'kafka://***@other:9092'
    """
    scheme, sign, _ = url.partition("://")
    scheme = scheme if sign and "@" not in scheme else ""
    return f"{scheme}{sign if scheme else ''}***@{url.rpartition('@')[2]}" if "@" in url else url


def without_secrets(text: str, settings: Mapping[str, str]) -> str:
    """The text, with the values of settings that are secret replaced."""
    values = {value for name, value in settings.items() if value and _SECRET.search(name)}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, "***")
    return text
