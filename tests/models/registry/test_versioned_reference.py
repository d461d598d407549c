"""A version holds the state of its distribution monitors, and a run started from it uses that."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.pipelines.loader import load_pipeline
from anabranch.dataflows.recovery.state_directory import StateDirectory
from anabranch.dataflows.registry.model_snapshot import take_snapshot
from anabranch.dataflows.registry.warm_start import find_warm_start, warm_start
from anabranch.models.registry.registry import Registry
from anabranch.state.errors import StateError
from tests.dataflows.source.test_source_resume import run

T0 = 1_700_000_000_000
DECLARED = """
from anabranch import Distributions, Sliding, field
from tests.models.drift.test_shifts import sensors
pipeline = sensors(
    distributions=Distributions(window=100, reference=REFERENCE),
    features=[field("value"), field("load", fill_null=0.0)],
)
"""


def bus_of(pipeline: Pipeline, first: int, rows: int, mean: float) -> MemoryBus:
    """A reading a second, whose values are about `mean`."""
    chance, bus = random.Random(first), MemoryBus()
    bus.create_topics(dict.fromkeys(pipeline.inputs, 1))
    publisher = bus.publisher()
    for number in range(first, first + rows):
        reading = {
            "id": f"r{number}", "ts": T0 + number * 1000, "sensor": f"s{chance.randrange(9)}",
            "value": chance.gauss(mean, 1.0), "mode": chance.choice("ab"), "load": 1.0,
        }  # fmt: skip
        value = json.dumps(reading).encode()
        publisher.append("sensors.events", [value], partitions=0, times=[T0 + number * 1000])
        said = {"id": f"r{number}", "ts": T0 + number * 1000 + 5, "right": chance.random() < 0.3}
        label = json.dumps(said).encode()
        publisher.append("sensors.labels", [label], partitions=0, times=[T0 + number * 1000 + 5])
    return bus


def declared(tmp_path: Path, reference: str) -> Pipeline:
    (tmp_path / "flow.py").write_text(DECLARED.replace("REFERENCE", reference))
    return load_pipeline(str(tmp_path / "flow.py"))


def versioned(tmp_path: Path, pipeline: Pipeline) -> Registry:
    """The state after 3,000 readings, as version 1."""
    assert not run(pipeline, bus_of(pipeline, 0, 3000, 0.0), tmp_path / "old", batch=100)
    taken, registry = take_snapshot(tmp_path / "old"), Registry.of(tmp_path / "old")
    registry.add(taken.model, taken.version, distributions=taken.distributions)
    return registry


def drift_of(
    tmp_path: Path, pipeline: Pipeline, mean: float, reads: int | None = None
) -> list[str]:
    """Drift signals of a new state started from version 1, in 1,500 further readings."""
    bus, state = bus_of(pipeline, 10_000, 1500, mean), tmp_path / f"new-{mean}-{reads}"
    wanted = find_warm_start(pipeline, state, tmp_path / "old", "LogisticRegression@1")
    assert wanted is not None
    with StateDirectory.open(state, pipeline, bus) as opened:
        warm_start(opened, wanted, lambda _: None)
    while run(pipeline, bus, state, batch=100, reads=reads):
        pass
    found = map(json.loads, bus.values("sensors.drift"))
    return [each["subject"] for each in found if each["severity"] == "drift"]


@pytest.mark.parametrize("reference", ['"10m"', 'Sliding("10m")'])
def test_a_run_started_from_a_version_uses_its_reference(reference, tmp_path: Path):
    pipeline = declared(tmp_path, reference)
    registry = versioned(tmp_path, pipeline)
    about = registry.get("LogisticRegression")
    assert about.distributions.startswith("100 rows beside the ")
    assert drift_of(tmp_path, pipeline, 0.0) == []
    shifted = drift_of(tmp_path, pipeline, 3.0)
    assert "value" in shifted
    # A new state of its own would have taken that for usual: 1,500 rows are hardly a reference.
    assert drift_of(tmp_path, pipeline, 3.0, reads=11) == shifted


def test_another_declaration_starts_a_new_reference(tmp_path: Path):
    versioned(tmp_path, declared(tmp_path, '"10m"'))
    assert drift_of(tmp_path, declared(tmp_path, '"11m"'), 3.0) == []


def test_a_copy_includes_it_and_damage_is_detected(tmp_path: Path):
    registry = versioned(tmp_path, declared(tmp_path, '"10m"'))
    version, other = registry.get("LogisticRegression"), Registry(tmp_path / "other")
    copy = other.copy(registry, version)
    assert other.distributions(copy) == registry.distributions(version) is not None
    path = tmp_path / "other" / "LogisticRegression" / "1" / "distributions"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StateError, match="distributions is damaged"):
        other.distributions(copy)
