"""Drift found in a batch by monitors outside the prequential step, before the step processes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from anabranch.models.drift.detectors import Alarm
from anabranch.models.prequential.outcome import LearnedLabels


@dataclass(slots=True)
class ExternalDrift:
    """Drift signals and quarantined events of one batch.

    Attributes:
        signals: `(index of an event, alarm)`: with `on_drift`, a fresh model may start right after
            that event.
        quarantined: `(events,) bool`: events that are predicted and scored but not trained on;
            None: there are none.
        check_labels: checks labels before any decision is taken on them; returns signals whose
            index is that of a learned label.
    """

    signals: list[tuple[int, Alarm]] = field(default_factory=list)
    quarantined: NDArray[np.bool_] | None = None
    check_labels: Callable[[LearnedLabels], list[tuple[int, Alarm]]] | None = None


NO_EXTERNAL_DRIFT: Final = ExternalDrift()
