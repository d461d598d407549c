"""A user's own modules may have the names of Anabranch's folders, however a pipeline is started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.packaging.conftest import Environment

FILES = {
    "models/__init__.py": "",
    "models/limits.py": "LIMIT = 3.0\n",
    "state/__init__.py": "from state.codes import CODES\n",
    "state/codes.py": "CODES = ('open', 'closed')\n",
    "producers.py": "NAMES = ['till']\n",
    "dataflows.py": "class Pipeline:\n    'Not the class of the library.'\n",
    "fraud.py": """
from river import linear_model

import dataflows
import producers
from anabranch import Event, Pipeline, field, inline, one_hot
from models.limits import LIMIT
from state import CODES


class Payment(Event):
    id: str
    ts: int
    amount: float
    status: str
    fraud: bool


assert dataflows.Pipeline is not Pipeline
pipeline = Pipeline(
    name="fraud",
    event=Payment,
    label=inline("fraud"),
    features=[field("amount"), one_hot("status", CODES)],
    model=linear_model.LogisticRegression(l2=1 / LIMIT),
)
""",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory with a pipeline file beside modules that it imports, and messages."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    payments = (
        {"id": f"p{i}", "ts": 1_700_000_000_000 + i, "amount": i, "status": "open", "fraud": i > 4}
        for i in range(10)
    )
    (tmp_path / "payments.jsonl").write_text("".join(json.dumps(each) + "\n" for each in payments))
    return tmp_path


@pytest.mark.parametrize(
    ("program", "options", "variables"),
    [
        (("anabranch",), (), {}),
        (("anabranch",), (), {"PYTHONPATH": "."}),
        (("python", "-m", "anabranch"), (), {}),
        (("python", "-m", "anabranch"), ("--processes", "2"), {"PYTHONPATH": "."}),
    ],
    ids=["command", "command, PYTHONPATH", "module", "module, PYTHONPATH, two processes"],
)
def test_a_pipeline_runs_beside_modules_of_the_same_names(
    project: Path,
    environment: Environment,
    program: tuple[str, ...],
    options: tuple[str, ...],
    variables: dict[str, str],
) -> None:
    publish = (*program, "publish", "fraud.py", "payments.jsonl", "--partitions", "2")
    environment.run(project, *publish, **variables)
    environment.run(project, *program, "run", "fraud.py", "--until-end", *options, **variables)
    consume = (*program, "consume", "fraud.predictions", "--no-follow")
    out = environment.run(project, *consume, **variables)
    ids = {json.loads(line)["id"] for line in out.splitlines()}
    assert ids == {f"p{i}" for i in range(10)}


@pytest.mark.parametrize("variables", [{}, {"PYTHONPATH": "."}], ids=["", "PYTHONPATH"])
def test_a_pipeline_file_is_a_program_that_declares_and_ends(
    project: Path, environment: Environment, variables: dict[str, str]
) -> None:
    assert environment.run(project, "python", "fraud.py", **variables) == ""
    code = "import fraud; print(fraud.pipeline.columns)"
    out = environment.run(project, "python", "-c", code, **variables)
    assert out == "['amount', 'status=open', 'status=closed']\n"


def test_a_pipeline_file_that_imports_the_old_package_is_one_sentence(
    tmp_path: Path, environment: Environment
) -> None:
    (tmp_path / "fraud.py").write_text("from dataflows import Pipeline\n")
    code = "from anabranch.dataflows.pipelines.loader import load_pipeline\n" + (
        "try:\n    load_pipeline('fraud.py')\nexcept Exception as error:\n    print(error)\n"
    )
    assert environment.run(tmp_path, "python", "-c", code) == (
        "fraud.py, line 1: dataflows is now imported as anabranch: from anabranch import Pipeline, "
        "…\n"
    )
