"""The URLs of targets: what they name, and messages about them that quote no secret."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, unquote, urlsplit

from anabranch.dataflows.bus.kafka_urls import without_secrets
from anabranch.dataflows.export.target import ExportError

PASSWORD_VARIABLE = "ANABRANCH_EXPORT_PASSWORD"
"""The environment variable with the password of a server."""

_HOST = r"(\[[^\]]*\]|[^:\[\]]*)(:\d*)?"


class Secrets:
    """The secrets of a URL and of settings, which messages must not have."""

    def __init__(self, url: str, settings: Mapping[str, str]) -> None:
        self._values = dict(settings)
        password = _password(url)
        if password:
            self._values["password as written"] = password
            self._values["password"] = unquote(password)
        query = url.partition("?")[2]
        for number, (name, value) in enumerate(parse_qsl(query)):
            self._values[f"{name} {number}"] = value
        if "password" in settings:
            self._values["given password"] = settings["password"]

    def removed_from(self, text: str) -> str:
        """The text without them."""
        return without_secrets(text, self._values)


def shown(url: str) -> str:
    """The URL for people: without a password, nor parameters, which may have one.

    >>> shown("postgresql://fraud:secret@db:5432/ml?sslmode=require")
    'postgresql://fraud@db:5432/ml'
    """
    scheme, sign, rest = url.partition("://")
    if not sign:
        return url
    base, _, query = rest.partition("?")
    if "@" in query and "@" not in base:  # a question mark may be part of a password
        return f"{scheme}://…"
    user, at, place = base.rpartition("@")
    return f"{scheme}://{user.partition(':')[0]}{at}{place}"


def well_formed(url: str) -> bool:
    """Whether user, password and ports can be told apart.

    >>> well_formed("redis://:secret@cache:6379/0"), well_formed("redis://:sec/ret@cache:6379/0")
    (True, False)
    """
    rest = url.partition("://")[2]
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    hosts = authority.rpartition("@")[2]
    if "@" in rest[len(authority) :].partition("?")[0]:
        return False  # a password with a slash
    return all(re.fullmatch(_HOST, host) for host in hosts.split(","))


def with_scheme(url: str, scheme: str) -> str:
    """The same URL with another scheme.

    >>> with_scheme("valkeys://cache:6379/0", "rediss")
    'rediss://cache:6379/0'
    """
    return f"{scheme}://{url.partition('://')[2]}"


def with_password(url: str, settings: Mapping[str, str]) -> dict[str, str]:
    """Settings of a server, with the password of the environment if nothing else has one."""
    found = dict(settings)
    password = os.environ.get(PASSWORD_VARIABLE)
    if password and not _password(url):
        found.setdefault("password", password)
    return found


def malformed(name: str) -> ExportError:
    """The error for a URL that can't be taken apart; what it says of it may be of a password."""
    return ExportError(
        f"the URL of {name} is malformed: write SCHEME://USER@HOST:PORT/DATABASE, with special "
        f"characters of the user in percent-encoding, and the password into {PASSWORD_VARIABLE}"
    )


def missing_library(server: str, library: str, extra: str) -> ExportError:
    """The error for a client library that is not installed."""
    return ExportError(
        f"exporting to {server} needs the package {library}: pip install 'anabranch[{extra}]'"
    )


def _password(url: str) -> str:
    try:
        netloc = urlsplit(url).netloc
    except ValueError:
        return ""
    return netloc.rpartition("@")[0].partition(":")[2]
