"""Which modules may import which, and the few that may unpickle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ANABRANCH = ROOT / "anabranch"
FOLDERS = ("dataflows", "models", "producers", "state")

# They read what this program wrote into its state directory; nothing of them sees a topic.
UNPICKLE = {
    "dataflows/recovery/resume_point.py",  # what the engine keeps
    "models/learners/pickling.py",  # also a file that the user has named
}
PICKLERS = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
EVALUATE = {"eval", "exec", "compile", "__import__"}
# It makes a function of the names of declared fields.
GENERATES = "dataflows/batch/columns.py"


# Top floor first: a folder imports those below it, and none above.
FLOORS = [
    "anabranch",
    "dataflows/cli",
    "dataflows/cli/demo",
    "dataflows/cli/display",
    "dataflows/export",
    "dataflows/replay",
    "dataflows/runtime",
    "dataflows/steps",
    "dataflows/first_declaration",
    "dataflows/check",
    "dataflows/dead_letters",
    "dataflows/source",
    "dataflows/sink",
    "dataflows/registry",
    "dataflows/skew",
    "dataflows/telemetry",
    "dataflows/recovery",
    "dataflows/sharding",
    "dataflows/files",
    "dataflows/rollout",
    "dataflows/schemas",
    "dataflows/codec",
    "dataflows/batch",
    "dataflows/pipelines",
    "producers/simulators",
    "producers/files",
    "producers",
    "dataflows",
    "dataflows/declaration",
    "dataflows/messages",
    "dataflows/bus/kafka",
    "dataflows/bus/embedded",
    "dataflows/bus",
    "models/prequential",
    "models/rollout",
    "models/registry",
    "models/drift",
    "models/metrics",
    "models/learners",
    "models/evidence",
    "models",
    "state/labels",
    "state/windows",
    "state/keys",
    "state/store",
    "state",
]
# A facade opens what its sub-packages hold: it imports them on demand, inside a function.
FACADES = {"anabranch.dataflows.bus"}


def sources(*packages: str) -> Iterator[tuple[str, ast.Module]]:
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def imported(tree: ast.Module) -> set[str]:
    """Dotted names of the modules that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # what is imported may be a module itself
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def packages_of(names: set[str]) -> set[str]:
    """The top-level packages among dotted names."""
    return {name.split(".")[0] for name in names}


def module_name(path: str) -> str:
    dotted = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return dotted if dotted.startswith("anabranch") else f"anabranch.{dotted}"


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """The modules of the package that each of its modules imports; files by name."""
    trees = dict(sources(*FOLDERS))
    trees |= {f"anabranch/{p.name}": ast.parse(p.read_text()) for p in ANABRANCH.glob("*.py")}
    modules = {module_name(path): path for path in trees}
    graph = {}
    for path, tree in trees.items():
        names = {name for name in imported(tree) if name in modules}
        # of `from a.b import c`, c where that is a module, else a.b
        names -= {n for n in names if any(m.startswith(f"{n}.") for m in names)}
        graph[path] = {modules[name] for name in names} - {path}
    return graph


@pytest.mark.parametrize("package", ["state", "models"])
def test_state_and_models_know_neither_the_engine_nor_the_dataflows(package: str) -> None:
    above = ("anabranch.dataflows", "anabranch.producers")
    for name, tree in sources(package):
        names = imported(tree)
        assert "bytewax" not in packages_of(names), name
        assert not [each for each in names if each.startswith(above)], name


def test_the_folders_are_imported_as_one_package() -> None:
    """An import of `models` would find a user's own module of that name."""
    for name, tree in sources(*FOLDERS, "anabranch", "benchmarks", "tests"):
        assert not packages_of(imported(tree)) & set(FOLDERS), name


def test_a_folder_imports_only_folders_below_it(imports: dict[str, set[str]]) -> None:
    upward = [
        f"{path} imports {other}"
        for path, others in imports.items()
        if module_name(path) not in FACADES
        for other in others
        if FLOORS.index(folder(path)) > FLOORS.index(folder(other))
    ]
    assert not upward


def test_no_files_import_each_other(imports: dict[str, set[str]]) -> None:
    graph = {
        path: set() if module_name(path) in FACADES else others for path, others in imports.items()
    }
    while leaves := [path for path, others in graph.items() if not others & graph.keys()]:
        for path in leaves:
            del graph[path]
    assert not graph, f"these import each other in a circle, or import those: {sorted(graph)}"


def folder(path: str) -> str:
    return str(Path(path).parent)


def test_pickles_are_read_where_state_is_and_nowhere_else() -> None:
    found = {
        name
        for name, tree in sources(*FOLDERS)
        if packages_of(imported(tree))
        & {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    }
    assert found == UNPICKLE


def test_nothing_is_evaluated_but_the_names_of_declared_fields() -> None:
    for name, tree in sources(*FOLDERS):
        if name == GENERATES:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in EVALUATE, f"{name}, line {node.lineno}"
