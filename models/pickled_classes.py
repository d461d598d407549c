"""The classes of this program that are pickled, each with a number that stands for it in pickles.

A class that is part of a model's or a rollout's state needs an entry here; when it moves, its entry
changes, and what was written before can still be read (`models.learners.pickling`).
"""

# A number belongs to its class for good; that of a removed class is not used again.
PICKLED_CLASSES: dict[int, str] = {
    10: "models.learners.learner.Task",
    11: "models.learners.linear.CompiledLinear",
    12: "models.learners.null.NullLearner",
    13: "models.learners.resampling.ResampledLearner",
    14: "models.learners.resampling.Sampler",
    15: "models.learners.river.RiverLearner",
    16: "models.learners.segmented.SegmentedLearner",
    17: "models.learners.subsampling.SubsampledLearner",
    30: "models.drift.detectors.DriftMonitor",
    31: "models.drift.detectors.Monitor",
    40: "models.evidence.auc.AucEvidence",
    41: "models.evidence.paired.PairedEvidence",
    42: "models.evidence.two_sample.TwoSampleEvidence",
    50: "models.rollout.comparison.Comparison",
    51: "models.rollout.deployment.Deployment",
    52: "models.rollout.guardrails.ErrorRate",
    53: "models.rollout.guardrails.GuardrailMonitors",
    54: "models.rollout.guardrails.Latency",
    55: "models.rollout.guardrails.LossRatio",
    56: "models.rollout.guardrails.PredictionShift",
    57: "models.rollout.ab_test.ABTest",
    58: "models.rollout.bandit.Bandit",
    59: "models.rollout.canary.Canary",
    60: "models.rollout.interleaving.Interleave",
    61: "models.rollout.policy.Guardrails",
    62: "models.rollout.shadow.Shadow",
    63: "models.rollout.trial.Trial",
    64: "models.rollout.observations.LabelPairs",
    65: "models.rollout.interleaving.ListPairs",
}
