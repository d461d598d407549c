"""Changes a running policy by attribute names and JSON values, none of which can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Final, TypeVar, get_type_hints

import msgspec

from anabranch.models.rollout.policies import Guardrails, Policy
from anabranch.state.errors import InputError
from anabranch.state.renamed import renamed_parameters

Changed = TypeVar("Changed", bound=Policy | Guardrails)
_FIXED: Final = ("policy",)  # River's object of a bandit


def update_policy(policy: Changed, changes: Mapping[str, Any]) -> Changed:
    """A copy of a policy with other attributes; of its guardrails only those that are named.

    `check_policy` says whether the attributes make sense together.

    Raises:
        InputError: there is no such attribute, or the value is of another type.

    >>> from anabranch.models.rollout.policies import Canary
    >>> changes = {"steps": [0.1, 1], "guardrails": {"error_rate": 0.2}}
    >>> update_policy(Canary(), changes).guardrails.error_rate
    0.2
    """
    name, types = type(policy).__name__, get_type_hints(type(policy))
    attributes = [field.name for field in fields(policy) if field.name not in _FIXED]
    old_names = renamed_parameters(type(policy))
    updates: dict[str, Any] = {}
    for attribute, value in changes.items():
        if attribute in old_names:
            raise InputError(f"{attribute} of {name} is now called {old_names[attribute]}")
        if attribute not in attributes:
            raise InputError(
                f"{name} has no {attribute!r} to change: it has {', '.join(attributes)}"
            )
        current = getattr(policy, attribute)
        try:
            updates[attribute] = (
                update_policy(current, msgspec.convert(value, dict[str, Any]))
                if isinstance(current, Guardrails)
                else msgspec.convert(value, types[attribute])
            )
        except msgspec.ValidationError as error:
            raise InputError(f"{attribute}={value!r} of {name} is not possible: {error}") from None
    return replace(policy, **updates)
