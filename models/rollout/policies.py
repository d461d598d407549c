"""The rollout policies: how a challenger gets to serve, each in a file of its own.

A new policy is a subclass of `Policy` in a file beside these. It is registered in `POLICIES`, in
the table of `models.pickled_classes`, and among the public names of `anabranch`.
"""

from __future__ import annotations

from typing import Any, Final

from anabranch.models.rollout.ab_test import ABTest
from anabranch.models.rollout.bandit import Bandit
from anabranch.models.rollout.canary import Canary
from anabranch.models.rollout.interleaving import Interleave
from anabranch.models.rollout.policy import (
    AUC,
    Guardrails,
    Policy,
    PolicyContext,
    update_policy,
)
from anabranch.models.rollout.shadow import Shadow
from anabranch.state.errors import DeclarationError

POLICIES: Final = (Shadow, Canary, ABTest, Interleave, Bandit)
"""Those that a pipeline can declare."""

__all__ = [
    "AUC",
    "POLICIES",
    "ABTest",
    "Bandit",
    "Canary",
    "Guardrails",
    "Interleave",
    "Policy",
    "PolicyContext",
    "Shadow",
    "check_policy",
    "update_policy",
]


def check_policy(policy: Any, context: PolicyContext) -> None:
    """Refuse a policy that can't be followed.

    Raises:
        DeclarationError: in one sentence.
    """
    if not isinstance(policy, POLICIES):
        names = [f"{each.__name__}(…)" for each in POLICIES]
        raise DeclarationError(
            f"rollout={policy!r} of {context.where} is no policy: use "
            f"{', '.join(names[:-1])} or {names[-1]}"
        )
    policy.validate(context)
