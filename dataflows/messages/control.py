"""Control messages, by which people and programs steer a rollout, and what is made of them."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from anabranch.models.rollout.command import Command, Kind

_Text = Annotated[str, msgspec.Meta(max_length=200)]


class Control(
    msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, frozen=True
):
    """One message on ``<pipeline>.control``; a message that does not fit is a dead letter.

    ``id`` comes back as ``answers`` of the message on ``<pipeline>.rollouts`` that tells what
    became of it, so no two messages should have the same. All else is as in
    `models.rollout.command.Command`.
    """

    kind: Kind
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    challenger: _Text = ""
    share: float | None = None
    model: _Text = ""
    policy: dict[str, Any] = {}
    by: _Text = ""

    def command(self) -> Command:
        """What the models are told."""
        return Command(
            kind=self.kind,
            id=self.id,
            challenger=self.challenger,
            share=self.share,
            model=self.model,
            policy=self.policy,
            by=self.by,
        )
