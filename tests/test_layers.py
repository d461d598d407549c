"""Who may import what: the layers, and the few modules that may unpickle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# They read what this program wrote into its state directory; nothing of them sees a topic.
UNPICKLE = {
    "dataflows/recovery/resume_point.py",  # what the engine keeps
    "models/learners/pickling.py",  # also a file that the user has named
}
EVALUATE = {"eval", "exec", "compile", "__import__"}
# It makes a function of the names of declared fields.
GENERATES = "dataflows/batch/columns.py"


def sources(*packages: str) -> Iterator[tuple[str, ast.Module]]:
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def imported(tree: ast.Module) -> set[str]:
    """Names of the top-level packages that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", ["state", "models"])
def test_state_and_models_know_neither_the_engine_nor_the_dataflows(package: str) -> None:
    for name, tree in sources(package):
        assert not imported(tree) & {"bytewax", "dataflows", "producers"}, name


def test_pickles_are_read_where_state_is_and_nowhere_else() -> None:
    found = {
        name
        for name, tree in sources("dataflows", "models", "state", "producers")
        if imported(tree) & {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    }
    assert found == UNPICKLE


def test_nothing_is_evaluated_but_the_names_of_declared_fields() -> None:
    for name, tree in sources("dataflows", "models", "state", "producers"):
        if name == GENERATES:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in EVALUATE, f"{name}, line {node.lineno}"
