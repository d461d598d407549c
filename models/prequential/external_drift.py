"""What monitors outside of the prequential step have found in a batch that it is yet to work on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from anabranch.models.drift.detectors import Alarm
from anabranch.models.prequential.outcome import Learned


@dataclass(slots=True)
class Outside:
    """See the module.

    Attributes:
        calls: with the index of an event, drift that was found there: where drift starts a fresh
            model, one may begin behind it.
        suspect: `(events,) bool`: those of which nothing is to be learned; None: there are none.
        labels: looks at labels before anything is decided by them; calls, with places of labels.
    """

    calls: list[tuple[int, Alarm]] = field(default_factory=list)
    suspect: NDArray[np.bool_] | None = None
    labels: Callable[[Learned], list[tuple[int, Alarm]]] | None = None


NOTHING: Final = Outside()
