"""Loads the pipeline that a command names: a shipped one, a data set's, a file's or a module's."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import sysconfig
import traceback
from pathlib import Path
from types import ModuleType

from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.pipelines import SHIPPED
from anabranch.dataflows.pipelines.datasets import dataset_pipeline
from anabranch.state.errors import AnabranchError, DeclarationError

_PACKAGE = Path(__file__).parents[2]
_STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib"))

HOW = (
    "name a shipped pipeline ({shipped}), dataset:NAME, a file such as fraud.py or fraud.py:flow, "
    "or a module such as shop.fraud:flow"
)


def load_pipeline(name: str) -> Pipeline:
    """The pipeline that ``name`` refers to.

    Raises:
        DeclarationError: there is none, or its code can't be loaded; the message names the line.
    """
    if name in SHIPPED:
        return _attribute(importlib.import_module(SHIPPED[name].module), "pipeline", name)
    if name.startswith("dataset:"):
        return dataset_pipeline(name.removeprefix("dataset:"))
    location, _, attribute = name.partition(":")
    if location.endswith(".py"):
        return _attribute(_load_file(Path(location)), attribute or "pipeline", name)
    if "." in location or attribute:
        return _attribute(_load_module(location), attribute or "pipeline", name)
    if Path(f"{name}.py").is_file():
        raise DeclarationError(f"there is no pipeline {name!r}: did you mean the file {name}.py?")
    raise DeclarationError(
        f"there is no pipeline {name!r}: {HOW.format(shipped=', '.join(SHIPPED))}"
    )


def find_pipeline(name: str) -> Pipeline | None:
    """The pipeline that is called ``name``, or that ``name`` refers to; None if there is none.

    One that is called so is shipped, or in the file NAME.py of the working directory.

    Raises:
        DeclarationError: its code can't be loaded, or it does not exist where ``name`` says.
    """
    location = name.partition(":")[0]
    if name in SHIPPED or location.endswith(".py") or ":" in name:
        return load_pipeline(name)
    path = Path(f"{name}.py")
    if not path.is_file():
        return None
    return load_pipeline(str(path))


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise DeclarationError(f"pipeline file {str(path)!r} does not exist")
    name = path.stem if path.stem.isidentifier() else "pipeline_file"
    while name in sys.modules or name in sys.stdlib_module_names:
        name += "_"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # types are looked up there
    sys.path.insert(0, str(path.parent.absolute()))  # as `python FILE` does
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise DeclarationError(_locate(error, str(path))) from error
    finally:
        sys.path.pop(0)
    return module


def _load_module(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise DeclarationError(_locate(error, name)) from error
    finally:
        sys.path.pop(0)


def _locate(error: Exception, source: str) -> str:
    """One sentence: what is wrong, and on which line of which of the user's files."""
    if isinstance(error, SyntaxError):
        where = f"{_shown(error.filename) or source}, line {error.lineno}"
        return f"{where}: the pipeline can't be loaded: {error.msg}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame)]
    where = f"{_shown(frames[-1].filename)}, line {frames[-1].lineno}" if frames else source
    if isinstance(error, AnabranchError):
        return f"{where}: {error}"
    if isinstance(error, ModuleNotFoundError) and error.name == "dataflows":
        return f"{where}: dataflows is now imported as anabranch: from anabranch import Pipeline, …"
    return f"{where}: the pipeline can't be loaded: {type(error).__name__}: {error}"


def _is_users(frame: traceback.FrameSummary) -> bool:
    """Whether a line is the user's own: not Python's, a package's or this program's."""
    path = Path(frame.filename)
    if not path.is_file() or path.is_relative_to(_PACKAGE):
        return False
    return "site-packages" not in path.parts and not path.is_relative_to(_STANDARD_LIBRARY)


def _shown(filename: str | None) -> str:
    """A path as the user would write it: relative to the working directory, if it is below."""
    if filename is None:
        return ""
    path, here = Path(filename).absolute(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _attribute(module: ModuleType, attribute: str, name: str) -> Pipeline:
    pipeline = getattr(module, attribute, None)
    if isinstance(pipeline, Pipeline):
        return pipeline
    others = [key for key, value in vars(module).items() if isinstance(value, Pipeline)]
    hint = f": it has {', '.join(others)}" if others else ": assign a Pipeline to it"
    raise DeclarationError(f"{name!r} has no pipeline named {attribute!r}{hint}")
