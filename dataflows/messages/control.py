"""Control messages: commands by which people and programs control a rollout."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from anabranch.models.rollout.command import Command, Kind

_Text = Annotated[str, msgspec.Meta(max_length=200)]


class Control(
    msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, frozen=True
):
    """One message on ``<pipeline>.control``; a message that does not fit is a dead letter.

    ``id`` is repeated as ``request_id`` in the message on ``<pipeline>.rollouts`` that reports the
    result, so each control message needs an id of its own. The other fields are as in
    `models.rollout.command.Command`.
    """

    kind: Kind
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    challenger: _Text = ""
    share: float | None = None
    model: _Text = ""
    policy: dict[str, Any] = {}
    requested_by: _Text = ""

    def command(self) -> Command:
        """The command to execute."""
        return Command(
            kind=self.kind,
            id=self.id,
            challenger=self.challenger,
            share=self.share,
            model=self.model,
            policy=self.policy,
            requested_by=self.requested_by,
        )


def control_error(error: str) -> str:
    """What is wrong with a message that did not decode as `Control`, from the decoder's error."""
    if error == "Object contains unknown field `by`":
        return "the field by is now called requested_by"
    return error
