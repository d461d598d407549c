"""Shadow: challengers predict beside the champion and never serve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from anabranch.models.rollout.policy import Policy
from anabranch.state.renamed import renamed


@renamed()
@dataclass(frozen=True, slots=True, kw_only=True)
class Shadow(Policy):
    """Challengers serve no keys. Evidence is reported; control messages promote or remove them."""

    decides: ClassVar[bool] = False
