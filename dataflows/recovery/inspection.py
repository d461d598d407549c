"""What a state directory holds, read beside a run that may be using it; nothing is changed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from anabranch.dataflows.messages.event_time import FIRST_MS
from anabranch.dataflows.recovery.manifest import Manifest, read_manifest
from anabranch.dataflows.recovery.resume_point import ResumePoint, read_resume_point
from anabranch.dataflows.recovery.state_partition import DATABASE, INPUT, MODELS, WINDOWS, read_id
from anabranch.dataflows.recovery.tokens import Token
from anabranch.dataflows.recovery.verification import Damage, verify_state
from anabranch.models.learners.segments import stored_segments
from anabranch.models.metrics.metrics import reported
from anabranch.models.metrics.sliced_metrics import Report, stored_report
from anabranch.models.prequential.label_windows import LABEL_WINDOWS
from anabranch.models.prequential.step_record import StepRecord
from anabranch.state.errors import StateError, UnreadableError
from anabranch.state.store.delta import Delta
from anabranch.state.store.lock import holder
from anabranch.state.store.read_only import ReadOnlyStore
from anabranch.state.windows.event_log import COUNT

_NAMES = re.compile(rf"{INPUT}-\d+|{WINDOWS}(-\d+)?|{MODELS}")
_ATTEMPTS = 5
_ORDER = [INPUT, WINDOWS, MODELS]


@dataclass(slots=True)
class StatePartitionReport:
    """How far one state partition is, and what it holds at the generation a run would resume from.

    Attributes:
        name: as ``windows-3`` or ``models``.
        generation: the last that was written.
        resumes_at: the generation that the recovery store knows; None: none yet.
        bytes: of all that is stored, older generations included.
        keys, events: by entity; of ``models``, the events are labels.
        ids: how many ids of events were seen lately.
        pending_predictions: those that wait for their label.
        models: metrics by model and name.
        champion: the model that serves.
        slices: as `models.metrics.sliced_metrics.Report`.
        segments: as `Segments.report`.
    """

    name: str
    generation: int
    resumes_at: int | None
    bytes: int
    keys: dict[str, int] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)
    ids: int = 0
    pending_predictions: int = 0
    models: dict[str, dict[str, float]] = field(default_factory=dict)
    champion: str = ""
    slices: Report = field(default_factory=dict)
    segments: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(slots=True)
class StateReport:
    """A whole state directory.

    Attributes:
        path: the directory.
        manifest: what it belongs to.
        generation: how many epochs were committed.
        process: the id of the run that holds it; None without one.
        offsets: the next to read, by topic and partition.
        event_time_ms: the watermark; None without events.
        state_partitions: what it consists of.
        problems: one sentence for each thing that is wrong, damage apart.
        damage: each damaged file; empty unless all of it was verified.
    """

    path: str
    manifest: Manifest
    generation: int
    process: int | None
    offsets: dict[str, dict[int, int]]
    event_time_ms: int | None
    state_partitions: list[StatePartitionReport]
    problems: list[str]
    damage: list[Damage] = field(default_factory=list)


def inspect(path: Path, verify: bool = False) -> StateReport:
    """Report on the state directory ``path``; ``verify`` reads all of it and checks it.

    Raises:
        DamagedError: it is too damaged for a report.
        StateError: there is none, or it can't be read.
    """
    damage = verify_state(path) if verify else []
    try:
        report = _inspect_settled(path)
    except UnreadableError:
        raise
    except StateError:
        if damage:
            raise DamagedError(path, damage) from None
        raise
    report.damage = damage
    return report


class DamagedError(StateError):
    """A state directory is damaged.

    Attributes:
        damage: each damaged file.
    """

    def __init__(self, path: Path, damage: list[Damage]) -> None:
        names = ", ".join(each.file for each in damage[:3])
        more = f" and {len(damage) - 3} more files" if len(damage) > 3 else ""
        super().__init__(
            f"{path} is damaged: {names}{more}; restore all of it from one backup, or start from "
            "scratch with another --state"
        )
        self.damage = damage


def _inspect_settled(path: Path) -> StateReport:
    report = _inspect(path)
    for _ in range(_ATTEMPTS - 1):
        if not report.problems or report.process is None:
            break
        # The run may have committed between reading the recovery store and a state partition.
        report = _inspect(path)
    return report


def _inspect(path: Path) -> StateReport:
    manifest = read_manifest(path)
    if manifest is None:
        raise not_a_state_directory(path)
    process = holder(path)  # first: if that run commits meanwhile, problems are looked for again
    point = read_resume_point(path / "recovery")
    tokens = point.tokens(manifest.layout)
    problems: list[str] = []
    reports = []
    for directory in state_partitions(path, manifest):
        token = tokens.pop(directory.name, None)
        try:
            reports.append(_report(directory, token))
        except UnreadableError:
            raise
        except StateError as error:
            problems.append(str(error))
    # In a cluster on several hosts the others are elsewhere.
    if manifest.hosts == 1:
        problems += [f"{path} lacks its state partition {name}" for name in sorted(tokens)]
    offsets, watermark = _progress(point)
    return StateReport(
        str(path),
        manifest,
        point.epoch - 1,
        process,
        offsets,
        watermark,
        reports,
        problems,
    )


def not_a_state_directory(path: Path) -> StateError:
    """The error of a command that needs one."""
    return StateError(f"{path} is no state directory: name one that `anabranch run` has created")


def state_partitions(path: Path, manifest: Manifest) -> list[Path]:
    """The directories of the state partitions that there are in the present layout."""
    layout = path / f"layout-{manifest.layout}"
    entries = [*path.glob("*"), *layout.glob("*")]
    return sorted((each for each in entries if _NAMES.fullmatch(each.name)), key=_position)


def _position(directory: Path) -> tuple[int, int]:
    kind, _, number = directory.name.partition("-")
    return _ORDER.index(kind), int(number or 0)


def _progress(point: ResumePoint) -> tuple[dict[str, dict[int, int]], int | None]:
    offsets: dict[str, dict[int, int]] = {}
    watermarks = []
    for number, partition in point.partitions():
        for topic, offset in partition.offsets.items():
            offsets.setdefault(topic, {})[number] = offset
        if partition.watermark > FIRST_MS:  # it has had an event
            watermarks.append(partition.watermark)
    return offsets, max(watermarks, default=None)


def _report(directory: Path, token: Token | None) -> StatePartitionReport:
    if token is None and not (directory / DATABASE).exists():  # it is being created
        return StatePartitionReport(directory.name, 0, None, 0)
    view = ReadOnlyStore(directory / DATABASE)
    summary = view.summary()
    if token is not None and read_id(directory) != token.id:
        raise StateError(
            f"{directory} belongs to another state than the recovery store does: restore both "
            "from one backup"
        )
    generation = summary.adopted if token is None else token.generation
    if generation > summary.generation:
        raise StateError(
            f"{directory} is at generation {summary.generation}, and the recovery store expects "
            f"{generation}: restore both from one backup"
        )
    report = StatePartitionReport(
        directory.name,
        summary.generation,
        None if token is None else generation,
        sum(summary.bytes.values()),
    )
    image = view.image(generation) if generation else Delta()
    if directory.name.startswith(WINDOWS):
        _count_windows(image, report)
    elif directory.name == MODELS:
        _describe_models(image, report)
    else:
        report.ids = sum(len(rows) for rows in image.rows.values())
    return report


def _count_windows(image: Delta, report: StatePartitionReport) -> None:
    """Keys of an entity, and the records of its largest group of windows."""
    for name, items in image.items.items():
        entity = name.split("/")[0]
        keys = sum(value is not None for value in items.values)
        report.keys[entity] = max(report.keys.get(entity, 0), keys)
    for name, rows in image.rows.items():
        if name.endswith("/slots"):
            entity = name.split("/")[0]
            records = int(np.maximum(rows.columns["row"][:, COUNT], 0).sum())
            report.events[entity] = max(report.events.get(entity, 0), records)


def _describe_models(image: Delta, report: StatePartitionReport) -> None:
    _count_windows(image.part(LABEL_WINDOWS), report)
    rows = image.rows.get("pending/state")
    # Rows that are kept for late updates say 2.
    report.pending_predictions = 0 if rows is None else int((rows.columns["waits"] == 1).sum())
    if "step" in image.blobs:
        record = StepRecord.load(image.blobs["step"])
        report.champion = record.champion
        report.models = {
            model: {name: reported(metric) for name, metric in metrics.items()}
            for model, metrics in record.metrics.items()
        }
    if "segments" in image.blobs:
        report.segments = stored_segments(image.blobs["segments"])
    if "slices" in image.blobs:
        report.slices = stored_report(image.blobs["slices"])
