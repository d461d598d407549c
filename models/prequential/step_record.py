"""All that a prequential step knows beside its models and what waits: small, and written whole.

Most metrics and monitors pickle to less than 3 KB. `RollingROCAUC` and `RollingPRAUC` keep a window
of answers and pickle to up to 220 KB in 0.6 ms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from anabranch.models.drift.detectors import DriftMonitor
from anabranch.models.learners.learner import Task
from anabranch.models.learners.pickling import dumps, loads
from anabranch.models.metrics.metrics import Metric
from anabranch.models.metrics.ranking import RankQuality
from anabranch.models.prequential.monitors import SliceWatch
from anabranch.models.rollout.deployment import Deployment
from anabranch.state.errors import StateError

_ADVICE = "declare what the state was written with, or begin a new state directory"


def part_of(model: str) -> str:
    """The name under which a step keeps a model; no slash in it but this one."""
    return f"models/{quote(model, safe='')}"


@dataclass(slots=True)
class StepRecord:
    """What was declared, and what has been measured.

    Attributes:
        models: name to declaration, in order.
        columns: names of the features.
        task: of the models.
        inline: whether targets come with the events.
        champion: its name.
        metrics: per model, by name.
        watches: the monitors at work.
        deployment: who serves, where there are rollouts.
        ranking: how good the rankings were, where events are candidates.
        quarantine: whether what waits is marked as suspect or not.
    """

    models: dict[str, str]
    columns: tuple[str, ...]
    task: Task
    inline: bool
    champion: str
    metrics: dict[str, dict[str, Metric]]
    watches: list[DriftMonitor | SliceWatch]
    deployment: Deployment | None = None
    ranking: RankQuality | None = None
    quarantine: bool = False

    def dump(self) -> bytes:
        """A pickle; give it to `load` only."""
        return dumps(self)

    @staticmethod
    def load(blob: bytes) -> StepRecord:
        """What `dump` wrote. It is unpickled: give only what this program wrote.

        Raises:
            StateError: it is none, or of another version.
        """
        try:
            found = loads(blob)
        except Exception as error:
            raise StateError(
                f"metrics and monitors can't be read from the state: {error}; "
                "go on with the version that wrote it, or begin a new state directory"
            ) from error
        if not isinstance(found, StepRecord):
            raise StateError(f"the state holds no models but {type(found).__name__}: {_ADVICE}")
        return found

    def check(self, declared: StepRecord) -> None:
        """Refuse to go on under another declaration.

        Raises:
            StateError: naming what differs.
        """
        if self.deployment is None and declared.deployment is None:
            self._check_names(declared)
        elif declared.deployment is None and self.champion not in declared.models:
            raise StateError(
                f"the state is led by model {self.champion!r}, which a rollout has promoted, "
                f"declared is {_list(declared.models)}: declare rollout=Shadow() to go on with it, "
                "or begin a new state directory"
            )
        elif self.deployment is not None and not declared.models.keys() & self.deployment.known:
            self._check_names(declared)
        kept = {self.champion}
        if self.deployment is None or declared.deployment is None:
            kept.update(self.models)
        elif self.deployment.standby is not None:
            kept.add(self.deployment.standby)
        for name, written in self.models.items():
            if name in kept and written != declared.models.get(name, written):
                raise StateError(
                    f"model {name!r} is {written} in the state, but declared as "
                    f"{declared.models[name]}: {_ADVICE}"
                )
        if self.columns != declared.columns:
            raise StateError(
                "the models of the state have other features, or in another order: "
                f"{_difference(self.columns, declared.columns)}; {_ADVICE}"
            )
        if (self.task, self.inline) != (declared.task, declared.inline):
            raise StateError(
                f"the state is of a {self.task.value} task{_how(self.inline)}, declared is a "
                f"{declared.task.value} task{_how(declared.inline)}: {_ADVICE}"
            )

    def changed(self, declared: Mapping[str, str]) -> set[str]:
        """The models of the record that are declared otherwise now."""
        return {name for name, said in self.models.items() if said != declared.get(name, said)}

    def _check_names(self, declared: StepRecord) -> None:
        if self.models.keys() != declared.models.keys():
            raise StateError(
                f"the state holds the models {_list(self.models)}, declared are "
                f"{_list(declared.models)}: {_ADVICE}"
            )


def _list(names: dict[str, str]) -> str:
    return ", ".join(map(repr, names))


def _how(inline: bool) -> str:
    return " with labels inside the events" if inline else " with labels that come later"


def _difference(written: tuple[str, ...], declared: tuple[str, ...]) -> str:
    gone, new = set(written) - set(declared), set(declared) - set(written)
    parts = [f"only there {', '.join(sorted(gone)[:5])}"] if gone else []
    parts += [f"only declared {', '.join(sorted(new)[:5])}"] if new else []
    return ", ".join(parts) or "the same names in another order"
