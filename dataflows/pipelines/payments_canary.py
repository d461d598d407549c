"""The payments pipeline with a champion that learns too slowly: a canary rollout to watch.

It reads and writes the topics of `payments`, and is run as a module::

    anabranch run anabranch.dataflows.pipelines.payments_canary

``bolder``, which is the model of `payments`, climbs from 1 % of the cards to 50 %, and is promoted.
Next comes ``bayes``, which is worse, and is rejected before it has served more than a few events.
"""

from __future__ import annotations

from dataclasses import replace

from river import linear_model, naive_bayes, optim, preprocessing

from anabranch.dataflows.pipelines.payments import pipeline as payments
from anabranch.models.rollout.policies import Canary

pipeline = replace(
    payments,
    model=preprocessing.StandardScaler()
    | linear_model.LogisticRegression(optimizer=optim.SGD(0.0005)),
    challengers={
        "bolder": payments.model,
        "bayes": preprocessing.StandardScaler() | naive_bayes.GaussianNB(),  # type: ignore[no-untyped-call]
    },
    rollout=Canary(steps=(0.01, 0.05, 0.25, 0.5, 1.0), min_labels=20),
)
