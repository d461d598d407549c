"""Finding the pipeline that a command names; the sentences for mistakes are in test_commands."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from anabranch.dataflows.pipelines import SHIPPED
from anabranch.dataflows.pipelines.loader import load_pipeline
from anabranch.state.errors import DeclarationError

DECLARATION = """
from __future__ import annotations
from river import linear_model
from anabranch import Event, Pipeline, field, inline

class Thing(Event):
    id: str
    ts: int
    size: float
    good: bool

{name} = Pipeline(
    name="{topic}", event=Thing, label=inline("good"), features=[field("size")],
    model=linear_model.LogisticRegression())
"""


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_pipelines_by_name(name: str) -> None:
    assert load_pipeline(name).name == name


def test_data_sets() -> None:
    assert load_pipeline("dataset:phishing").topics.events == "phishing.events"


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "flow.py"
    path.write_text(
        DECLARATION.format(name="pipeline", topic="one")
        + DECLARATION.format(name="other", topic="two").replace("from __future__", "# ")
    )
    assert load_pipeline(str(path)).name == "one"
    assert load_pipeline(f"{path}:other").name == "two"


def test_a_file_may_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_flow.py").write_text("SIZE = 'size'\n")
    source = DECLARATION.format(name="pipeline", topic="one")
    source = source.replace("from river", "from neighbour_of_flow import SIZE\nfrom river")
    (tmp_path / "flow.py").write_text(source.replace('field("size")', "field(SIZE)"))
    before = list(sys.path)
    assert load_pipeline(str(tmp_path / "flow.py")).columns == ["size"]
    assert sys.path == before


def test_a_file_named_like_a_module_does_not_replace_it(tmp_path: Path) -> None:
    import json

    (tmp_path / "json.py").write_text(DECLARATION.format(name="pipeline", topic="one"))
    assert load_pipeline(str(tmp_path / "json.py")).name == "one"
    assert sys.modules["json"] is json


def test_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "shop_of_this_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "fraud.py").write_text(DECLARATION.format(name="flow", topic="one"))
    monkeypatch.chdir(tmp_path)
    assert load_pipeline("shop_of_this_test.fraud:flow").name == "one"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("from anabranch import distinct", r"distinct\(…\) is now called count_distinct\(…\)"),
        ("anabranch.field('size', missing=0)", r"field\(missing=\) is now called fill_null="),
    ],
)
def test_an_old_name_is_one_sentence_with_the_new_one(
    tmp_path: Path, line: str, sentence: str
) -> None:
    (tmp_path / "flow.py").write_text(f"import anabranch\n{line}\n")
    with pytest.raises(DeclarationError, match=rf"flow\.py, line 2: {sentence}"):
        load_pipeline(str(tmp_path / "flow.py"))


def test_an_error_in_a_helper_names_the_helper(tmp_path: Path) -> None:
    (tmp_path / "broken_helper.py").write_text("\n1 / 0\n")
    (tmp_path / "flow.py").write_text("import broken_helper\n")
    with pytest.raises(DeclarationError, match=r"broken_helper\.py, line 2: .*ZeroDivisionError"):
        load_pipeline(str(tmp_path / "flow.py"))
