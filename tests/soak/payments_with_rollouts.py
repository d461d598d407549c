"""Payments with declared and drift-started challengers, promoted and rolled back."""

from dataclasses import replace

from river import linear_model, naive_bayes, optim, preprocessing

from anabranch import Canary, Challenger, monitor
from anabranch.dataflows.pipelines.payments import pipeline as shipped

pipeline = replace(
    shipped,
    challengers={
        "faster": preprocessing.StandardScaler()
        | linear_model.LogisticRegression(optimizer=optim.SGD(0.02)),
        "bayes": preprocessing.StandardScaler() | naive_bayes.GaussianNB(),
    },
    monitors=[monitor("loss", "PageHinkley", loss="brier", cooldown="2h", threshold=4.0)],
    on_drift=Challenger(model=shipped.model, warmup_rows=300, sample_rate=0.5),
    rollout=Canary(steps=(0.1, 0.3, 0.6, 1.0), min_labels=100, report_every=1000),
    with_features=True,
)
