"""Changes a policy by names and values that came as JSON: none of them can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Final, TypeVar, get_type_hints

import msgspec

from anabranch.models.rollout.policies import Guardrails, Policy
from anabranch.state.errors import InputError

Changed = TypeVar("Changed", bound=Policy | Guardrails)
_FIXED: Final = ("policy",)  # River's object of a bandit


def change(policy: Changed, changes: Mapping[str, Any]) -> Changed:
    """A copy of a policy with other attributes; of its guardrails only those that are named.

    Whether they make sense together, `check_policy` says.

    Raises:
        InputError: there is no such attribute, or the value is of another type.

    >>> from anabranch.models.rollout.policies import Canary
    >>> change(Canary(), {"steps": [0.1, 1], "guardrails": {"errors": 0.2}}).guardrails.errors
    0.2
    """
    name, types = type(policy).__name__, get_type_hints(type(policy))
    known = [field.name for field in fields(policy) if field.name not in _FIXED]
    found: dict[str, Any] = {}
    for attribute, value in changes.items():
        if attribute not in known:
            raise InputError(f"{name} has no {attribute!r} to change: it has {', '.join(known)}")
        before = getattr(policy, attribute)
        try:
            found[attribute] = (
                change(before, msgspec.convert(value, dict[str, Any]))
                if isinstance(before, Guardrails)
                else msgspec.convert(value, types[attribute])
            )
        except msgspec.ValidationError as error:
            raise InputError(f"{attribute}={value!r} of {name} can't be: {error}") from None
    return replace(policy, **found)
