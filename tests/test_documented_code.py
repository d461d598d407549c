"""Every Python snippet of the documentation compiles, and every pipeline in one can be built."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from anabranch import Pipeline

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs", "deploy", "benchmarks", "CHANGELOG.md")
_BLOCK = re.compile(r"^( *)```(?:python|py)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def snippets() -> list[tuple[str, str]]:
    """Page and line of each snippet, and its text, in order."""
    found = []
    for name in PAGES:
        path = ROOT / name
        for page in sorted(path.rglob("*.md")) if path.is_dir() else [path]:
            text = page.read_text()
            for block in _BLOCK.finditer(text):
                line = text.count("\n", 0, block.start()) + 1
                code = re.sub(f"^{block[1]}", "", block[2], flags=re.MULTILINE)
                found.append((f"{page.relative_to(ROOT)}:{line}", code))
    return found


SNIPPETS = dict(snippets())
OTHERS = ("quixstreams",)
"""Packages of which a page shows programs, and which are not installed here."""
DECLARING = [
    place for place, code in SNIPPETS.items() if re.search(r"^[^#]*\bPipeline\(", code, re.M)
]


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) > 5
    assert len(DECLARING) > 3


@pytest.mark.parametrize("place", SNIPPETS)
def test_every_snippet_compiles(place: str) -> None:
    compile(SNIPPETS[place], place, "exec", dont_inherit=True)


@pytest.mark.parametrize("place", DECLARING)
def test_every_pipeline_can_be_built(place: str) -> None:
    """``...`` stands for what the page's first pipeline declares.

    A snippet may use what the snippets before it on its page import or define.
    """
    page = place.split(":")[0]
    names: dict[str, Any] = {"__name__": "snippet"}
    builder = _Builder()
    for each, code in SNIPPETS.items():
        if not each.startswith(page) or (each != place and each not in DECLARING):
            if each.startswith(page) and not any(other in code for other in OTHERS):
                exec(compile(_imports(code), each, "exec", dont_inherit=True), names)
            continue
        exec(compile(_imports(code), each, "exec", dont_inherit=True), names)
        names["Pipeline"] = builder
        exec(compile(_without_imports(code), each, "exec", dont_inherit=True), names)
        if each == place:
            break
    assert builder.built


class _Builder:
    """Stands for `Pipeline` and fills in what ``...`` leaves out."""

    def __init__(self) -> None:
        self.built = 0
        self._first: dict[str, Any] = {}

    def __call__(self, *left_out: Any, **declared: Any) -> Pipeline:
        if left_out:
            assert left_out == (...,)
            declared = self._first | declared
        pipeline = Pipeline(**declared)
        self._first = self._first or declared
        self.built += 1
        return pipeline


def _imports(code: str) -> ast.Module:
    return _filtered(code, imports=True)


def _without_imports(code: str) -> ast.Module:
    return _filtered(code, imports=False)


def _filtered(code: str, imports: bool) -> ast.Module:
    tree = ast.parse(code)
    tree.body = [
        each for each in tree.body if isinstance(each, ast.Import | ast.ImportFrom) == imports
    ]
    return tree
