"""The input of a prequential step: a batch of events, and a batch of labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from anabranch.models.learners.learner import Targets
from anabranch.models.metrics.sliced_metrics import NO_FIELDS, Fields
from anabranch.models.prequential.external_drift import NO_EXTERNAL_DRIFT, ExternalDrift

LabelContext = Callable[[int], bytes]
"""From the index of a label: the bytes to store with it while it is buffered."""


class EventBatch(msgspec.Struct):
    """Events to predict.

    Attributes:
        features: `(events, features) float64`, finite, C-contiguous.
        times: `(events,) int64`, event time in ms.
        ids: one per event, without those deduplicated before; not read when labels are inline.
        tags: `(events,) int32`, returned with the label; None: zeros.
        fields: the columns that `slices` and `segments` refer to.
        keys: one per event, by which rollouts split traffic.
        external_drift: what other monitors found in this batch.
    """

    features: NDArray[np.float64]
    times: NDArray[np.int64]
    ids: Sequence[str] = ()
    tags: NDArray[np.int32] | None = None
    fields: Fields = NO_FIELDS
    keys: Sequence[str] = ()
    external_drift: ExternalDrift = NO_EXTERNAL_DRIFT


class LabelBatch(msgspec.Struct):
    """Labels of events of this batch or of earlier ones.

    Attributes:
        ids: the event that each label belongs to.
        values: `(labels,) float64` (binary: 0.0 or 1.0), NaN where unusable; multi-class: a list,
            None where unusable.
        times: `(labels,) int64` ms.
        context: gives the bytes to store with a label that arrives before its event; they are
            returned should the label expire (`ExpiredLabel`). None: nothing is stored.
    """

    ids: list[str]
    values: Targets
    times: NDArray[np.int64]
    context: LabelContext | None = None
