"""Learners whose failures end nothing: so that a model that raises does not stop the stream."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anabranch.models.learners.learner import Learner
from anabranch.models.learners.resampling import Sampled
from anabranch.models.learners.river import RiverLearner
from anabranch.models.learners.segmented import Segmented
from anabranch.models.learners.subsampling import Thinned


def forgive(learner: Learner) -> None:
    """From now on a row at which the model raises has no answer, or is not learned."""
    if isinstance(learner, Sampled | Thinned):
        forgive(learner.learner)
    elif isinstance(learner, Segmented):
        for each in (learner.shared, *learner.models.values()):
            forgive(each)
    elif isinstance(learner, RiverLearner):
        learner.forgiving = True


def failed_steps(learner: Learner) -> NDArray[np.int64]:
    """`(failures,) int64`: the steps of the last `run` at which it raised, ascending.

    Of a model per segment they are not known: its missing answers are.
    """
    return np.array(getattr(learner, "failures", ()), np.int64)
