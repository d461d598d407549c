"""The payments, with challengers that climb and fall in twenty thousand events."""

from dataclasses import replace

from river import linear_model, naive_bayes, optim, preprocessing

from dataflows import Canary
from dataflows.pipelines.payments import pipeline as shipped

pipeline = replace(
    shipped,
    challengers={
        "faster": preprocessing.StandardScaler()
        | linear_model.LogisticRegression(optimizer=optim.SGD(0.02)),
        "bayes": preprocessing.StandardScaler() | naive_bayes.GaussianNB(),
    },
    rollout=Canary(steps=(0.1, 0.3, 0.6, 1.0), hold_labels=100, report=1000),
    with_features=True,
)
