"""Old keywords of renamed parameters."""

from __future__ import annotations

import inspect
import pickle
from dataclasses import dataclass, replace

import pytest

from anabranch.state.errors import DeclarationError
from anabranch.state.renamed import renamed, renamed_parameters


@renamed(most="limit")
@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    limit: int = 1


@renamed(hold="min_duration")
@dataclass(frozen=True, slots=True, kw_only=True)
class Derived(Base):
    min_duration: str = "0s"


@renamed(until="end")
def span(start: int, end: int = 3) -> tuple[int, int]:
    return start, end


def test_new_keywords_and_positions_pass():
    assert span(1, 2) == span(1, end=2) == (1, 2)
    assert Derived(limit=2, min_duration="1h").limit == 2


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: span(1, until=2), r"span\(until=\) is now called end="),
        (lambda: Base(most=2), r"Base\(most=\) is now called limit="),
        (lambda: Derived(hold="1h"), r"Derived\(hold=\) is now called min_duration="),
        (lambda: Derived(most=2), r"Derived\(most=\) is now called limit="),
        (lambda: replace(Derived(), hold="1h"), r"Derived\(hold=\) is now called min_duration="),
    ],
)
def test_old_keywords_name_the_new_one(call, sentence):
    with pytest.raises(DeclarationError, match=f"^{sentence}$"):
        call()


def test_another_unknown_keyword_is_refused_as_ever():
    with pytest.raises(TypeError, match="stop"):
        span(1, stop=2)


def test_signature_copies_and_pickles_stay():
    assert list(inspect.signature(Derived).parameters) == ["limit", "min_duration"]
    made = Derived(min_duration="1h")
    assert pickle.loads(pickle.dumps(made)) == made == replace(Derived(), min_duration="1h")


def test_renamed_parameters_are_listed():
    assert renamed_parameters(Derived) == {"most": "limit", "hold": "min_duration"}
    assert renamed_parameters(span) == {"until": "end"}
    assert renamed_parameters(int) == {}
