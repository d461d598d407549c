"""The pipelines that come with Anabranch, each fed by the simulator of the same name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shipped:
    """The module that declares a shipped pipeline, and what it predicts."""

    module: str
    description: str


SHIPPED: dict[str, Shipped] = {
    "payments": Shipped(
        "anabranch.dataflows.pipelines.payments",
        "is this card payment fraud? Labels arrive minutes to hours later",
    ),
    "clicks": Shipped(
        "anabranch.dataflows.pipelines.clicks",
        "which of these items will be clicked? Known after seconds, or ten minutes without a click",
    ),
    "trips": Shipped(
        "anabranch.dataflows.pipelines.trips",
        "how many minutes will this taxi trip take? Known at drop-off",
    ),
}
"""Name → the pipeline that ``anabranch run NAME`` runs."""
