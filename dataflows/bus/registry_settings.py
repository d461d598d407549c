"""The settings of schema registries that came with those of the bus, for this process.

They are given as bus settings, under ``schema.registry.`` and the name that Confluent's clients
use: ``schema.registry.basic.auth.user.info``, ``schema.registry.ssl.ca.location``. Every process of
a run opens the bus, so every one of them has them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

_PREFIX = "schema.registry."
_USER_INFO = "basic.auth.user.info"
USER_INFO_VARIABLE = "ANABRANCH_REGISTRY_USER_INFO"
"""The environment variable with USER:PASSWORD of the registry."""

_settings: dict[str, str] = {}


def take_registry_settings(settings: Mapping[str, str] | None) -> dict[str, str]:
    """Keep what is for schema registries; return the rest, which is for the bus.

    >>> take_registry_settings({"security.protocol": "SSL", "schema.registry.timeout": "5"})
    {'security.protocol': 'SSL'}
    >>> registry_settings()["timeout"]
    '5'
    """
    rest = {}
    for name, value in (settings or {}).items():
        if name.startswith(_PREFIX):
            _settings[name.removeprefix(_PREFIX)] = value
        else:
            rest[name] = value
    return rest


def registry_settings() -> dict[str, str]:
    """The settings of registries, by the names of Confluent's clients."""
    settings = dict(_settings)
    user_info = os.environ.get(USER_INFO_VARIABLE)
    if user_info:
        settings.setdefault(_USER_INFO, user_info)
    return settings
