"""The diff of two versions of a model: lineage, metrics, hyperparameters, features, weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from anabranch.models.registry.version import Version, spans_text

Pair = tuple[str | None, str | None]
"""A value of both versions, as text; None where one does not have it."""


@dataclass(frozen=True, slots=True)
class WeightChange:
    """The weight of a feature in both versions; 0.0 where one does not have the feature."""

    feature: str
    before: float
    after: float

    @property
    def change(self) -> float:
        """``after`` less ``before``."""
        return self.after - self.before


@dataclass(frozen=True, slots=True)
class VersionDiff:
    """What differs between two versions; equal values are left out.

    Attributes:
        lineage: by field.
        metrics: both values by name; None where a version does not have the metric.
        parameters: hyperparameters, by dotted path.
        columns: features that only one of them has: ``(first, second)``, one of them None.
        weights: of linear models, the largest change first; empty for others.
    """

    lineage: dict[str, Pair]
    metrics: dict[str, tuple[float | None, float | None]]
    parameters: dict[str, Pair]
    columns: dict[str, Pair]
    weights: list[WeightChange]


def diff_versions(first: Version, second: Version) -> VersionDiff:
    """Compare two versions, without unpickling them."""
    metrics = {
        name: (first.metrics.get(name), second.metrics.get(name))
        for name in {**first.metrics, **second.metrics}
    }
    return VersionDiff(
        lineage=_unequal(dict(_lineage(first)), dict(_lineage(second))),
        metrics={name: pair for name, pair in metrics.items() if pair[0] != pair[1]},
        parameters=_unequal(first.parameters, second.parameters),
        columns=_unequal({c: c for c in first.columns}, {c: c for c in second.columns}),
        weights=_weights(first, second),
    )


def _lineage(version: Version) -> Iterator[tuple[str, str | None]]:
    yield "created", version.made
    yield "from", version.source
    yield "parent", version.parent
    yield "pipeline", version.pipeline
    yield "task", version.task
    yield "model", version.model
    yield "features", version.fingerprint[:12]
    yield "labels learned", None if version.rows is None else f"{version.rows:,}"
    yield "trained on", spans_text(version.trained_on) or None
    yield from version.versions.items()
    yield "note", version.note or None


def _unequal(first: Mapping[str, str | None], second: Mapping[str, str | None]) -> dict[str, Pair]:
    pairs = {name: (first.get(name), second.get(name)) for name in {**first, **second}}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _weights(first: Version, second: Version) -> list[WeightChange]:
    if not first.weights or not second.weights:
        return []
    changes = [
        WeightChange(name, first.weights.get(name) or 0.0, second.weights.get(name) or 0.0)
        for name in {**first.weights, **second.weights}
    ]
    changes = [each for each in changes if each.change]
    return sorted(changes, key=lambda each: (-abs(each.change), each.feature))
