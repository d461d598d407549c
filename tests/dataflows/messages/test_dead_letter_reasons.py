"""Every reason of a dead letter is documented, and made in one place."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from anabranch.dataflows.messages.dead_letter_reasons import DeadLetterReason, reference_page
from anabranch.dataflows.messages.outputs import DeadLetter
from anabranch.dataflows.steps.label_dead_letters import _REASONS

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("reason", DeadLetterReason)
def test_every_reason_is_described(reason: DeadLetterReason) -> None:
    assert re.fullmatch(r"[a-zA-Z]+( [a-zA-Z]+)*", reason.value)
    assert reason.description.endswith(".")
    assert len(reason.description) > len(reason.value)


def test_the_reference_page_is_current() -> None:
    message = "regenerate: python -m anabranch.dataflows.batch.dead_letters > docs/dead-letters.md"
    assert (ROOT / "docs/dead-letters.md").read_text() == reference_page(), message


def test_dead_letters_are_made_with_reasons_of_the_enum_alone() -> None:
    """No call of `DeadLetter` or `dead_letter` in the package spells its reason out."""
    for path in (ROOT / "dataflows").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            if node.func.id == "dead_letter":
                assert not isinstance(node.args[2], ast.Constant), path
            if node.func.id == DeadLetter.__name__:
                (reason,) = (each.value for each in node.keywords if each.arg == "reason")
                assert isinstance(reason, ast.Attribute), path
                assert reason.attr == "value", path


def test_every_reason_is_used() -> None:
    texts = [path.read_text() for path in (ROOT / "dataflows").rglob("*.py")]
    for reason in DeadLetterReason:
        uses = sum(text.count(f"DeadLetterReason.{reason.name}") for text in texts)
        assert uses >= 1, reason


def test_every_reason_of_a_rejected_label_is_mapped() -> None:
    assert set(_REASONS.values()) <= set(DeadLetterReason)
