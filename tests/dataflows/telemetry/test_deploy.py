"""Dashboards, alerts and the table of metrics name only what a run really exports."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from anabranch.dataflows.telemetry.reference import exported, metrics, table

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
NAMES = {name: set(metric._labelnames) for metric in metrics() for name in exported(metric)}
EXPRESSIONS = re.compile(r"(anabranch_[a-z_]+)(?:\{([^}]*)\})?")
OTHERS = {"le", "instance", "job"}  # of Prometheus itself


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DEPLOY / "grafana/dashboards/anabranch.json").read_text())
    return found


def panels() -> dict[str, list[str]]:
    """Title of each panel, with its queries."""
    return {
        panel["title"]: [target["expr"] for target in panel["targets"]]
        for panel in dashboard()["panels"]
        if panel["type"] != "row"
    }


def rules() -> dict[str, str]:
    """Name of each alert, with its text in the file."""
    text = (DEPLOY / "prometheus/alerts.yml").read_text()
    parts = re.split(r"- alert: ", text)[1:]
    return {part.split("\n", 1)[0].strip(): part for part in parts}


def expression(rule: str) -> str:
    found = re.search(r"expr: (?:>-)?(.*?)\n        (?:for|labels):", rule, re.S)
    assert found is not None, rule
    return found[1]


ALL = {**panels(), **{name: [expression(rule)] for name, rule in rules().items()}}


@pytest.mark.parametrize("where", ALL)
def test_every_query_is_of_metrics_and_labels_that_are_exported(where: str) -> None:
    for query in ALL[where]:
        used = EXPRESSIONS.findall(query)
        assert used or query.startswith("up{"), query
        for name, matchers in used:
            assert name in NAMES, f"{where}: there is no metric {name}"
            named = set(re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)", matchers))
            assert named <= NAMES[name] | OTHERS, f"{where}: {name} has no label {named}"
        grouped = {
            label.strip() for by in re.findall(r"by \(([^)]*)\)", query) for label in by.split(",")
        }
        known = set.union(OTHERS, *(NAMES[name] for name, _ in used))
        assert grouped <= known, f"{where}: {grouped - known}"


def test_metrics_without_a_panel_or_an_alert_are_known() -> None:
    seen = {
        name
        for queries in ALL.values()
        for query in queries
        for name, _ in EXPRESSIONS.findall(query)
    }
    metrics_seen = {re.sub("_(bucket|sum|count)$", "", name) for name in seen}
    every = {re.sub("_(bucket|sum|count)$", "", name) for name in NAMES}
    assert every - metrics_seen == {
        "anabranch_model_segments", "anabranch_shared_segment_labels", "anabranch_slice_labels",
        "anabranch_heartbeat_uptime_seconds",  # /healthz is for that
        "anabranch_unjoined_label",  # of a run that has ended
        "anabranch_filtered_messages_total", "anabranch_unknown_fields_total",  # no problem
    }  # fmt: skip


@pytest.mark.parametrize("name", rules())
def test_every_alert_says_how_bad_it_is_and_what_to_do(name: str) -> None:
    rule = rules()[name]
    assert re.search(r"labels: \{severity: (page|ticket)\}", rule)
    summary = re.search(r'summary: "(.+)"', rule)
    assert summary is not None
    labels = set(re.findall(r"\$labels\.([a-z_]+)", summary[1]))
    known = {label for each, _ in EXPRESSIONS.findall(rule) for label in NAMES[each]}
    assert labels <= known | OTHERS
    assert len(rule.split("runbook:")[1]) > 60


def test_the_readme_of_deploy_lists_every_alert() -> None:
    text = (DEPLOY / "README.md").read_text()
    assert not [name for name in rules() if f"`{name}`" not in text]


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_must_not() -> None:
    """What the cases are worth, promtool says (`test_promtool_agrees`)."""
    text = (DEPLOY / "prometheus/alerts_test.yml").read_text()
    fires = set(re.findall(r'alertname="(\w+)", alertstate="firing"}\n +eval_time', text))
    fires |= set(re.findall(r"alertname: (\w+)\n +exp_alerts:", text))
    quiet = set(re.findall(r"alertname: (\w+)\n(?! +exp_alerts)", text))
    assert fires == quiet == set(rules())


def test_names_and_labels_are_as_prometheus_wants_them() -> None:
    for metric in metrics():
        name = str(metric._name)
        assert re.fullmatch(r"anabranch_[a-z_]+", name)
        assert not name.endswith(("_total", "_count", "_sum", "_bucket", "_ms", "_minutes"))
        assert metric._labelnames[0] == "pipeline"
        assert "id" not in metric._labelnames


def test_the_table_of_metrics_is_that_of_the_registry() -> None:
    message = "regenerate it: python -m anabranch.dataflows.telemetry.reference > docs/metrics.md"
    assert (ROOT / "docs/metrics.md").read_text() == table(), message


@pytest.mark.needs("promtool")
@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "rules", "alerts.yml"],
        ["check", "config", "prometheus.yml"],
        ["test", "rules", "alerts_test.yml"],
    ],
)
def test_promtool_agrees(arguments: list[str]) -> None:
    done = subprocess.run(
        ["promtool", *arguments], cwd=DEPLOY / "prometheus", capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
