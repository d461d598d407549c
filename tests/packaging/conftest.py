"""The distribution as a user gets it: built once a run, installed into empty environments."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("dataflows", "models", "producers", "state")
OFFLINE = ("--no-deps", "--no-index")
SOURCES = (*FOLDERS, "setup.py", "MANIFEST.in", "pyproject.toml", "README.md", "LICENSE")


@dataclass(frozen=True, slots=True)
class Environment:
    """An environment of its own in which Anabranch is installed beside its dependencies."""

    directory: Path

    @property
    def python(self) -> Path:
        return self.directory / "bin" / "python"

    @property
    def packages(self) -> Path:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        return self.directory / "lib" / version / "site-packages"

    def run(self, directory: Path, *command: str, **environment: str) -> str:
        """The output of a command in ``directory``, with the environment's programs first."""
        inherited = {
            k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "ANABRANCH"))
        }
        path = f"{self.directory / 'bin'}{os.pathsep}{inherited['PATH']}"
        done = subprocess.run(
            command,
            cwd=directory,
            env={**inherited, "PATH": path, "COLUMNS": "100", **environment},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}\n{done.stderr}"
        return done.stdout


def pip(*arguments: object) -> None:
    """Run this environment's pip; nothing is downloaded."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


def build(source: Path, hook: str, target: Path) -> Path:
    """What one of setuptools' hooks makes of ``source``, in ``target``."""
    code = f"from setuptools import build_meta; print(build_meta.{hook}({str(target)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return target / done.stdout.splitlines()[-1]


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, so that a build leaves nothing in the work tree."""
    target = tmp_path_factory.mktemp("sources")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in (*SOURCES, "anabranch", "tests", "benchmarks"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(ROOT / name, target / name)
    return target


@pytest.fixture(scope="session")
def sdist(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution."""
    return build(sources, "build_sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="session")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the work tree's sources."""
    return build(sources, "build_wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def install(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Environment]:
    """A function that installs a distribution alone into a new environment.

    The dependencies are those of the running environment: a path file names its packages. Path
    files in there are not followed, so an editable install of this project is not visible.
    """
    installed: dict[Path, Environment] = {}

    def make(distribution: Path) -> Environment:
        if distribution not in installed:
            directory = tmp_path_factory.mktemp("environment")
            subprocess.run(
                [sys.executable, "-m", "venv", "--without-pip", directory], check=True, timeout=60
            )
            environment = Environment(directory)
            wheel = distribution
            if wheel.suffix != ".whl":  # here, where setuptools is
                built = tmp_path_factory.mktemp("built")
                pip("wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", built, distribution)
                (wheel,) = built.iterdir()
            pip("--python", environment.python, "install", *OFFLINE, "--no-compile", wheel)
            names = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
            (environment.packages / "dependencies.pth").write_text("\n".join(sorted(names)) + "\n")
            installed[distribution] = environment
        return installed[distribution]

    return make


@pytest.fixture(scope="session")
def environment(wheel: Path, install: Callable[[Path], Environment]) -> Environment:
    """An environment with the wheel."""
    return install(wheel)
