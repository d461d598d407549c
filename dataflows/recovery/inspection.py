"""What a state directory holds, read beside the run that may be using it; nothing is changed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from anabranch.dataflows.recovery.manifest import Identity, read_identity
from anabranch.dataflows.recovery.resume_point import ResumePoint, read_resume_point
from anabranch.dataflows.recovery.state_partition import DATABASE, Token, read_id
from anabranch.dataflows.source.bus_source import PartitionState
from anabranch.models.learners.segments import stored_segments
from anabranch.models.metrics.sliced_metrics import Report, stored_report
from anabranch.models.prequential.label_windows import LABEL_WINDOWS
from anabranch.models.prequential.step_record import StepRecord
from anabranch.state.errors import StateError
from anabranch.state.store.delta import Delta
from anabranch.state.store.lock import holder
from anabranch.state.store.read_only import ReadOnlyStore
from anabranch.state.windows.event_log import COUNT

_PLACE = re.compile(r"intake-\d+|windows(-\d+)?|models")
_LOOKS = 5
_ORDER = ["intake", "windows", "models"]


@dataclass(slots=True)
class PlaceReport:
    """One place: how far it is, and what it holds at the generation that a run would go on from.

    ``generation`` is the last written, ``resumes_at`` the one that the recovery store knows (None:
    none yet). ``keys`` and ``events`` are by entity; of the models, they are of labels. ``ids`` and
    ``waiting`` are counts. ``bytes`` are of all that is stored, older generations included.
    ``slices`` is `models.metrics.sliced_metrics.Report`, ``segments`` what `Segments.report` gives.
    """

    name: str
    generation: int
    resumes_at: int | None
    bytes: int
    keys: dict[str, int] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)
    ids: int = 0
    waiting: int = 0
    models: dict[str, dict[str, float]] = field(default_factory=dict)
    champion: str = ""
    slices: Report = field(default_factory=dict)
    segments: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(slots=True)
class StateReport:
    """A whole directory. ``process`` is that of the run which holds it; None without one.

    ``offsets`` are by topic and partition; ``event_time_ms`` is the watermark, None without events.
    ``problems`` are sentences of what is wrong.
    """

    path: str
    identity: Identity
    generation: int
    process: int | None
    offsets: dict[str, dict[int, int]]
    event_time_ms: int | None
    places: list[PlaceReport]
    problems: list[str]


def inspect(path: Path, verify: bool = False) -> StateReport:
    """Look at the state directory ``path``; ``verify`` reads and checks all of it.

    Raises:
        StateError: there is none, or it can't be read.
    """
    report = _look(path, verify)
    for _ in range(_LOOKS - 1):
        if not report.problems or report.process is None:
            break
        # The run may have moved on between the recovery store and a place.
        report = _look(path, verify)
    return report


def _look(path: Path, verify: bool) -> StateReport:
    identity = read_identity(path)
    if identity is None:
        raise StateError(f"{path} is no state directory: name one that `anabranch run` has made")
    process = holder(path)  # asked first: beside a run that ends meanwhile one looks again
    point = read_resume_point(path / "recovery")
    tokens = tokens_by_place(point, identity)
    problems: list[str] = []
    places = []
    directories = place_directories(path, identity)
    for directory in directories:
        token = tokens.pop(directory.name, None)
        try:
            places.append(_report(directory, token))
            if verify and (directory / DATABASE).exists():
                problems += ReadOnlyStore(directory / DATABASE).verify()
        except StateError as error:
            problems.append(str(error))
    # In a cluster on several hosts other places are elsewhere.
    if identity.hosts == 1:
        problems += [f"{path} lacks its place {name}" for name in sorted(tokens)]
    offsets, watermark = _progress(point)
    return StateReport(
        str(path),
        identity,
        point.epoch - 1,
        process,
        offsets,
        watermark,
        places,
        problems,
    )


def place_directories(path: Path, identity: Identity) -> list[Path]:
    """The places that there are in the present layout."""
    layout = path / f"layout-{identity.layout}"
    found = [each for each in (*path.glob("*"), *layout.glob("*")) if _PLACE.fullmatch(each.name)]
    return sorted(found, key=lambda each: (_ORDER.index(each.name.split("-")[0]), _number(each)))


def _number(directory: Path) -> int:
    return int(directory.name.partition("-")[2] or 0)


def tokens_by_place(point: ResumePoint, identity: Identity) -> dict[str, Token]:
    """By place: what the next run would go on from."""
    found: dict[str, Token] = {}
    for (step, _), state in point.states.items():
        current = step.endswith(f"_{identity.layout}")
        for token in _tokens_in(state):
            # A step of an earlier layout knew other places; the models moved on from theirs.
            if current or isinstance(state, PartitionState):
                found[token.place] = token
    return found


def _tokens_in(state: Any) -> list[Token]:
    if isinstance(state, PartitionState):
        return [] if state.token is None else [state.token]
    several = state if isinstance(state, tuple) else (state,)
    return [token for token in several if isinstance(token, Token)]


def _progress(point: ResumePoint) -> tuple[dict[str, dict[int, int]], int | None]:
    offsets: dict[str, dict[int, int]] = {}
    watermarks = []
    for number, part in point.partitions():
        for topic, offset in part.offsets.items():
            offsets.setdefault(topic, {})[number] = offset
        if part.latest:
            watermarks.append(part.watermark)
    return offsets, max(watermarks, default=None)


def _report(directory: Path, token: Token | None) -> PlaceReport:
    if token is None and not (directory / DATABASE).exists():  # it is being made
        return PlaceReport(directory.name, 0, None, 0)
    view = ReadOnlyStore(directory / DATABASE)
    summary = view.summary()
    if token is not None and read_id(directory) != token.id:
        raise StateError(f"{directory} belongs to another state than the recovery store does")
    at = summary.adopted if token is None else token.generation
    if at > summary.generation:
        raise StateError(
            f"{directory} is at generation {summary.generation}, and the recovery store expects "
            f"{at}: restore both from one backup"
        )
    report = PlaceReport(
        directory.name,
        summary.generation,
        None if token is None else at,
        sum(summary.bytes.values()),
    )
    image = view.image(at) if at else Delta()
    if directory.name.startswith("windows"):
        _count_windows(image, report)
    elif directory.name == "models":
        _describe_models(image, report)
    else:
        report.ids = sum(len(rows) for rows in image.rows.values())
    return report


def _count_windows(image: Delta, report: PlaceReport) -> None:
    """Keys of an entity, and the records of its fullest aggregate."""
    for name, items in image.items.items():
        entity = name.split("/")[0]
        keys = sum(value is not None for value in items.values)
        report.keys[entity] = max(report.keys.get(entity, 0), keys)
    for name, rows in image.rows.items():
        if name.endswith("/slots"):
            entity = name.split("/")[0]
            records = int(np.maximum(rows.columns["row"][:, COUNT], 0).sum())
            report.events[entity] = max(report.events.get(entity, 0), records)


def _describe_models(image: Delta, report: PlaceReport) -> None:
    _count_windows(image.part(LABEL_WINDOWS), report)
    rows = image.rows.get("pending/state")
    # Rows that are kept for correction say 2.
    report.waiting = 0 if rows is None else int((rows.columns["waits"] == 1).sum())
    if "step" in image.blobs:
        record = StepRecord.load(image.blobs["step"])
        report.champion = record.champion
        report.models = {
            model: {name: metric.value for name, metric in metrics.items()}
            for model, metrics in record.metrics.items()
        }
    if "segments" in image.blobs:
        report.segments = stored_segments(image.blobs["segments"])
    if "slices" in image.blobs:
        report.slices = stored_report(image.blobs["slices"])
