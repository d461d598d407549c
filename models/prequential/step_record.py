"""Everything a prequential step stores apart from models and pending rows: small, written whole.

Most metrics and monitors take less than 3 KB. `RollingROCAUC` and `RollingPRAUC` keep a window of
predictions and take up to 220 KB and 0.6 ms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from anabranch.models.drift.detectors import DriftMonitor
from anabranch.models.learners.learner import Task
from anabranch.models.learners.pickling import dumps, unpickled
from anabranch.models.metrics.metrics import Metric, metric
from anabranch.models.metrics.ranking import RankQuality
from anabranch.models.prequential.monitors import SliceMonitor
from anabranch.models.rollout.deployment import Deployment
from anabranch.state.errors import StateError

_ADVICE = "declare what the state was written with, or use a new state directory"
_FORMAT = 2
"""Of the pickled dict; 1 was a pickle of classes by their module."""


def part_of(model: str) -> str:
    """The name under which the state of a model is stored; its only slash is this one."""
    return f"models/{quote(model, safe='')}"


@dataclass(slots=True)
class StepRecord:
    """What was declared, and what has been measured.

    Attributes:
        models: name to declaration, in order.
        columns: names of the features.
        task: of the models.
        inline: whether labels come with the events.
        champion: its name.
        metrics: per model, by name.
        monitors: with the state of their detectors.
        deployment: which models serve, where there are rollouts.
        ranking: rank quality, where events are lists of candidates.
        quarantine: whether pending rows have a quarantine mark.
    """

    models: dict[str, str]
    columns: tuple[str, ...]
    task: Task
    inline: bool
    champion: str
    metrics: dict[str, dict[str, Metric]]
    monitors: list[DriftMonitor | SliceMonitor]
    deployment: Deployment | None = None
    ranking: RankQuality | None = None
    quarantine: bool = False

    def dump(self) -> bytes:
        """A pickle for `load`: a dict of plain data, monitors and the deployment."""
        metrics = {
            model: {name: each.dump() for name, each in by_name.items()}
            for model, by_name in self.metrics.items()
        }
        monitors = [
            (each.monitor, each.watches) if isinstance(each, SliceMonitor) else each
            for each in self.monitors
        ]
        ranking = None if self.ranking is None else self.ranking.dump()
        content = {
            "format": _FORMAT,
            "models": self.models,
            "columns": self.columns,
            "task": self.task.value,
            "inline": self.inline,
            "champion": self.champion,
            "metrics": metrics,
            "monitors": monitors,
            "deployment": self.deployment,
            "ranking": ranking,
            "quarantine": self.quarantine,
        }
        return dumps("what the models have measured", content)

    @staticmethod
    def load(blob: bytes) -> StepRecord:
        """The record that `dump` wrote. It is unpickled: pass only what this program wrote.

        Raises:
            StateError: it is damaged, or was written by another version.
        """
        try:
            return _from_content(unpickled(blob))
        except Exception as error:
            raise StateError(
                f"the metrics and monitors in the state can't be read ({error}): continue with the "
                "version that wrote them, or rebuild the state in a new directory with replay"
            ) from error

    def check(self, declared: StepRecord) -> None:
        """Refuse to continue with an incompatible declaration.

        Raises:
            StateError: naming what differs.
        """
        self._check_models(declared)
        self._check_declarations(declared)
        if self.columns != declared.columns:
            raise StateError(
                "the models in the state have other features, or in another order: "
                f"{_difference(self.columns, declared.columns)}; {_ADVICE}"
            )
        if (self.task, self.inline) != (declared.task, declared.inline):
            raise StateError(
                f"the state is of a {self.task.value} task{_timing(self.inline)}, but a "
                f"{declared.task.value} task{_timing(declared.inline)} is declared: {_ADVICE}"
            )

    def changed(self, declared: Mapping[str, str]) -> set[str]:
        """The models of the record whose declaration is another one now."""
        return {name for name, text in self.models.items() if text != declared.get(name, text)}

    def _check_models(self, declared: StepRecord) -> None:
        """Whether the models that have to be the same are."""
        if self.deployment is None and declared.deployment is None:
            self._check_names(declared)
        elif declared.deployment is None and self.champion not in declared.models:
            raise StateError(
                f"the champion in the state is model {self.champion!r}, which a rollout has "
                f"promoted, but {_list(declared.models)} is declared: declare rollout=Shadow() to "
                "continue with it, or use a new state directory"
            )
        elif self.deployment is not None and not declared.models.keys() & self.deployment.models:
            self._check_names(declared)

    def _check_declarations(self, declared: StepRecord) -> None:
        """Whether models that continue are declared as they were."""
        continuing = {self.champion}
        if self.deployment is None or declared.deployment is None:
            continuing.update(self.models)
        elif self.deployment.previous_champion is not None:
            continuing.add(self.deployment.previous_champion)
        for name, written in self.models.items():
            if name in continuing and written != declared.models.get(name, written):
                raise StateError(
                    f"model {name!r} is {written} in the state, but declared as "
                    f"{declared.models[name]}: {_ADVICE}"
                )

    def _check_names(self, declared: StepRecord) -> None:
        if self.models.keys() != declared.models.keys():
            raise StateError(
                f"the state has the models {_list(self.models)}, but {_list(declared.models)} "
                f"are declared: {_ADVICE}"
            )


def _from_content(content: Any) -> StepRecord:
    """The record of what `StepRecord.dump` pickled."""
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise StateError("it was written by another version")
    task = Task(content["task"])
    ranking = content["ranking"]
    return StepRecord(
        models=content["models"],
        columns=content["columns"],
        task=task,
        inline=content["inline"],
        champion=content["champion"],
        metrics={
            model: {name: _restored_metric(name, task, state) for name, state in by_name.items()}
            for model, by_name in content["metrics"].items()
        },
        monitors=[
            SliceMonitor(*each) if isinstance(each, tuple) else each for each in content["monitors"]
        ],
        deployment=content["deployment"],
        ranking=None if ranking is None else RankQuality.restored(ranking),
        quarantine=content["quarantine"],
    )


def _restored_metric(name: str, task: Task, state: Any) -> Metric:
    restored = metric(name, task)
    restored.load(state)
    return restored


def _list(names: dict[str, str]) -> str:
    return ", ".join(map(repr, names))


def _timing(inline: bool) -> str:
    return " with labels inside the events" if inline else " with labels that arrive later"


def _difference(written: tuple[str, ...], declared: tuple[str, ...]) -> str:
    gone, new = set(written) - set(declared), set(declared) - set(written)
    parts = [f"only stored {', '.join(sorted(gone)[:5])}"] if gone else []
    parts += [f"only declared {', '.join(sorted(new)[:5])}"] if new else []
    return ", ".join(parts) or "the same names in another order"
