"""The wheel and the source distribution hold one package, and run the quick start."""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.packaging.conftest import FOLDERS, ROOT, Environment


@pytest.fixture(params=["wheel", "sdist"])
def installed(
    request: pytest.FixtureRequest, install: Callable[[Path], Environment]
) -> Environment:
    """An environment with one of the two distributions."""
    return install(request.getfixturevalue(request.param))


def module_files() -> set[str]:
    """What the wheel has to hold: every module of the four folders, below one package."""
    names = {
        f"anabranch/{path.relative_to(ROOT)}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
    }
    return names | {"anabranch/__init__.py", "anabranch/__main__.py", "anabranch/py.typed"}


def test_the_wheel_holds_every_module_below_one_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert len(names) == len(set(names))
    held = {name for name in names if ".dist-info/" not in name}
    assert held == module_files()
    (top_level,) = (name for name in names if name.endswith("top_level.txt"))
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(top_level).decode().split() == ["anabranch"]


def test_the_source_distribution_holds_what_a_build_needs(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert not any(member.issym() or member.islnk() for member in members)
    names = {member.name.partition("/")[2] for member in members}
    modules = {
        name.removeprefix("anabranch/") if name.split("/")[1] in FOLDERS else name
        for name in module_files()
    }
    assert modules | {"setup.py", "pyproject.toml", "README.md", "LICENSE"} <= names
    assert not any(name.startswith(("benchmarks/", "tests/")) for name in names)


def test_an_empty_environment_gets_one_top_level_package(installed: Environment) -> None:
    entries = {path.name for path in installed.packages.iterdir()} - {"dependencies.pth"}
    assert {name for name in entries if not name.endswith(".dist-info")} == {"anabranch"}
    code = "import anabranch, sys; print(anabranch.__file__, *sys.modules)"
    file, *loaded = installed.run(Path("/"), str(installed.python), "-c", code).split()
    assert Path(file) == installed.packages / "anabranch" / "__init__.py"
    assert not {"numpy", "river", "msgspec", *FOLDERS} & set(loaded)  # loaded on first use
    names = "import anabranch; [getattr(anabranch, name) for name in anabranch.__all__]"
    installed.run(Path("/"), str(installed.python), "-c", names)


def test_the_quick_start(installed: Environment, tmp_path: Path) -> None:
    installed.run(tmp_path, "anabranch", "publish", "--dataset", "Phishing")
    installed.run(tmp_path, "anabranch", "run", "dataset:Phishing", "--until-end")
    out = installed.run(
        tmp_path, "anabranch", "consume", "phishing.predictions", "--no-follow", "--limit", "5"
    )
    assert [json.loads(line)["id"] for line in out.splitlines()] == ["0", "1", "2", "3", "4"]
    code = (
        "import anabranch\n"
        "read = anabranch.read_outputs('phishing', bus='sqlite:data/bus')\n"
        "print(sum(prediction.score is not None for prediction in read))"
    )
    assert installed.run(tmp_path, str(installed.python), "-c", code) == "1250\n"
