"""Finds the pipeline that a command names: a shipped one, a data set's, a file's or a module's."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from dataflows.pipeline import Pipeline
from dataflows.pipelines import SHIPPED
from dataflows.pipelines.datasets import dataset_pipeline
from state.errors import AnabranchError, DeclarationError

HOW = (
    "name a shipped pipeline ({shipped}), dataset:NAME, a file such as fraud.py or fraud.py:flow, "
    "or a module such as shop.fraud:flow"
)


def load_pipeline(name: str) -> Pipeline:
    """The pipeline that ``name`` stands for.

    Raises:
        DeclarationError: there is none, or its code can't be loaded; the message says where.
    """
    if name in SHIPPED:
        return _attribute(importlib.import_module(SHIPPED[name].module), "pipeline", name)
    if name.startswith("dataset:"):
        return dataset_pipeline(name.removeprefix("dataset:"))
    place, _, attribute = name.partition(":")
    if place.endswith(".py"):
        return _attribute(_load_file(Path(place)), attribute or "pipeline", name)
    if "." in place or attribute:
        return _attribute(_load_module(place), attribute or "pipeline", name)
    raise DeclarationError(
        f"there is no pipeline {name!r}: {HOW.format(shipped=', '.join(SHIPPED))}"
    )


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise DeclarationError(f"pipeline file {str(path)!r} does not exist")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except AnabranchError:
        raise
    except Exception as error:
        raise DeclarationError(_where(error, str(path))) from error
    return module


def _load_module(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except AnabranchError:
        raise
    except Exception as error:
        raise DeclarationError(_where(error, name)) from error
    finally:
        sys.path.pop(0)


def _where(error: Exception, place: str) -> str:
    """One sentence: what went wrong and on which line of the user's code."""
    line: int | None
    if isinstance(error, SyntaxError):
        line = error.lineno
    else:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.endswith(place)]
        line = frames[-1].lineno if frames else None
    where = f"{place}, line {line}" if line else place
    return f"pipeline {where} can't be loaded: {type(error).__name__}: {error}"


def _attribute(module: ModuleType, attribute: str, name: str) -> Pipeline:
    found = getattr(module, attribute, None)
    if isinstance(found, Pipeline):
        return found
    others = [key for key, value in vars(module).items() if isinstance(value, Pipeline)]
    hint = f": it has {', '.join(others)}" if others else ": assign a Pipeline to it"
    raise DeclarationError(f"{name!r} has no pipeline called {attribute!r}{hint}")
