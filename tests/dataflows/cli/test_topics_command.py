"""``anabranch topics``: JSON, deleting and retention; and ``--version`` and shell completion."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, ConfigResource

from anabranch.dataflows.bus import BusError, open_bus
from tests.support.commands import Call, caller
from tests.support.kafka_broker import KafkaBroker


@pytest.fixture
def call(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    return caller(tmp_path, capfd)


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:{tmp_path}/bus"
    return str(request.getfixturevalue("kafka_broker").url)


@pytest.fixture
def names(url: str) -> list[str]:
    """Two topics, the first with three messages."""
    made = [f"{uuid.uuid4().hex}.{kind}" for kind in ("events", "labels")]
    bus = open_bus(url)
    bus.create_topics(dict.fromkeys(made, 2))
    publisher = bus.publisher()
    publisher.append(made[0], [b"1", b"2", b"3"])
    publisher.close()
    return made


def listed(call: Call, url: str, *arguments: str) -> dict[str, dict[str, object]]:
    told = json.loads(call("topics", *arguments, "--json", "--bus", url).out)
    assert told["bus"] == url
    return {each.pop("topic"): each for each in told["topics"]}


def test_json_has_every_topic(names: list[str], url: str, call: Call) -> None:
    told = listed(call, url)
    assert told[names[0]] == {"partitions": 2, "messages": 3, "created": False}
    assert told[names[1]]["messages"] == 0


def test_json_of_a_pipeline_has_its_missing_topics(tmp_path: Path, call: Call) -> None:
    url = f"sqlite:{tmp_path}/other"
    assert listed(call, url, "trips")["trips.events"] == {
        "partitions": None,
        "messages": None,
        "created": False,
    }
    told = listed(call, url, "trips", "--create")
    assert told["trips.events"] == {"partitions": 1, "messages": 0, "created": True}


def test_delete_asks_first(
    names: list[str], url: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = os.pipe()
    os.write(write, b"n\n")
    os.close(write)
    with os.fdopen(read) as answers:
        monkeypatch.setattr(sys, "stdin", answers)
        done = call("topics", "delete", *names, "--bus", url)
        assert done.code == 1
        assert "Delete these 2 topics with 3 messages? [y/N]" in done.out
        assert call("topics", "delete", names[0], "--bus", url).code == 1  # nothing to read
    assert listed(call, url).keys() >= set(names)


def test_delete_with_yes_deletes_what_is_named(names: list[str], url: str, call: Call) -> None:
    done = call("topics", "delete", names[0], names[0], "--yes", "--bus", url)
    assert done.code == 0, done.err
    assert done.out == f"deleted {names[0]}\n"
    left = listed(call, url)
    assert names[0] not in left
    assert names[1] in left
    bus = open_bus(url)
    bus.create_topics({names[0]: 1})
    assert bus.end_offsets(names[0]) == [0]


def test_deleting_a_topic_that_is_not_there_deletes_nothing(
    names: list[str], url: str, call: Call
) -> None:
    done = call("topics", "delete", names[0], "nosuch", "--yes", "--bus", url)
    assert done.code == 1
    assert "topic nosuch does not exist" in " ".join(done.err.split())
    assert names[0] in listed(call, url)


def test_a_deleted_topic_of_the_embedded_bus_leaves_no_file(tmp_path: Path, call: Call) -> None:
    bus = open_bus(f"sqlite:{tmp_path}/bus")
    bus.create_topics({"t": 1})
    publisher = bus.publisher()
    publisher.append("t", [b"x"])
    assert call("topics", "delete", "t", "--yes", "--bus", f"sqlite:{tmp_path}/bus").code == 0
    assert list((tmp_path / "bus").iterdir()) == []
    with pytest.raises(BusError, match="topic t no longer exists"):
        publisher.flush()
    publisher.close()


@pytest.mark.kafka
def test_retention_is_set_on_the_topics_that_are_created(
    tmp_path: Path, kafka_broker: KafkaBroker, call: Call
) -> None:
    admin = AdminClient({"bootstrap.servers": kafka_broker.url.removeprefix("kafka://")})

    def kept_ms(topic: str) -> str:
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
        return str(admin.describe_configs([resource])[resource].result()["retention.ms"].value)

    source = (
        "from river import linear_model\nfrom anabranch import Event, Pipeline, field, inline\n"
        "class Thing(Event):\n    id: str\n    ts: int\n    size: float\n    good: bool\n"
        "pipeline = Pipeline(name='NAME', event=Thing, label=inline('good'),\n"
        "    features=[field('size')], model=linear_model.LogisticRegression())\n"
    )
    for retention, expected in {"7d": str(7 * 86_400_000), "forever": "-1"}.items():
        name = f"kept{uuid.uuid4().hex}"
        (tmp_path / "flow.py").write_text(source.replace("NAME", name))
        create = ["topics", "flow.py", "--create", "--bus", kafka_broker.url]
        done = call(*create, "--retention", retention)
        assert done.code == 0, done.err
        assert kept_ms(f"{name}.events") == kept_ms(f"{name}.predictions") == expected
    done = call(*create, "--retention", "1h")
    assert "topics that were there already keep their retention" in done.out
    assert kept_ms(f"{name}.events") == "-1"


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--retention", "7d"], 2, "--retention needs a PIPELINE"),
        (["--verify", "trips"], 2, "--verify is of the whole bus"),
        (["--verify", "--bus", "kafka://127.0.0.1:1"], 1, "--verify is of the embedded bus"),
        (["delete"], 2, "delete needs the names"),
        (["delete", "x", "--json"], 2, "delete goes with neither"),
        (["trips", "x"], 2, "only `topics delete` and `topics release` take topics: x"),
    ],
)
def test_what_does_not_go_together(
    arguments: list[str], code: int, sentence: str, call: Call
) -> None:
    done = call("topics", *arguments)
    assert done.code == code
    assert sentence in " ".join(done.err.replace("│", " ").split())


def test_version(call: Call) -> None:
    done = call("--version")
    assert done.code == 0
    assert re.fullmatch(
        r"anabranch \S+ \(bytewax [\d.]+, river [\d.]+, python [\d.]+\)\n", done.out
    )
    assert "Usage" in call("--help", ANABRANCH_VERSION="1").out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_and_completes_commands(shell: str) -> None:
    command = [sys.executable, "-m", "anabranch"]
    told = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    script = subprocess.run(
        [*command, "--show-completion", shell],
        env={**os.environ, **told},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "_ANABRANCH_COMPLETE" in script
    variables = {
        "_ANABRANCH_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": "anabranch to",
        "COMP_CWORD": "1",
        "_TYPER_COMPLETE_ARGS": "anabranch to",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    completed = subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, check=True
    ).stdout
    assert "topics" in completed


def test_retention_of_the_embedded_bus(tmp_path: Path, call: Call) -> None:
    url = f"sqlite:{tmp_path}/bus"

    def kept(topic: str) -> int | None:
        return open_bus(url).limits(topic).retention_ms

    assert call("topics", "trips", "--create", "--bus", url).code == 0
    assert kept("trips.events") is None
    assert call("topics", "trips", "--retention", "7d", "--bus", url).code == 0
    assert {kept(topic) for topic in open_bus(url).topics()} == {7 * 86_400_000}
    done = call("topics", "trips", "--create", "--retention", "1h", "--bus", url)
    assert "keep their retention" in done.out
    assert kept("trips.events") == 7 * 86_400_000
    assert call("topics", "trips", "--retention", "forever", "--bus", url).code == 0
    assert kept("trips.events") is None
    assert call("topics", "payments", "--create", "--retention", "1h", "--bus", url).code == 0
    assert kept("payments.events") == 3_600_000
    assert kept("trips.events") is None


def test_the_retention_of_topics_that_are_there_is_changed(names: list[str], url: str) -> None:
    bus = open_bus(url)
    for kept_ms in (60_000_000, None):
        bus.set_retention(names[0], kept_ms)
        assert bus.limits(names[0]).retention_ms == kept_ms
    with pytest.raises(BusError, match="does not exist"):
        bus.set_retention("missing", None)


def test_verify_lists_what_is_damaged(tmp_path: Path, call: Call) -> None:
    url = f"sqlite:{tmp_path}/bus"
    bus = open_bus(url)
    bus.create_topics({"a": 2, "b": 1})
    publisher = bus.publisher()
    publisher.append("a", [b"x" * 3000, b"y" * 3000], partitions=[0, 1])
    publisher.close()
    done = call("topics", "--verify", "--bus", url)
    assert (done.code, done.out) == (0, "all topics verified: no damage found\n")
    path = tmp_path / "bus" / "a.topic"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"x" * 3000, b"x" * 1000 + b"z" + b"x" * 1999))
    done = call("topics", "--verify", "--bus", url)
    assert done.code == 1
    assert f"{url} is damaged: a.topic; restore" in done.err
    assert "at offset 0" in " ".join(done.out.split())
    done = call("topics", "--verify", "--json", "--bus", url)
    (damage,) = json.loads(done.out)["damage"]
    assert damage["file"] == "a.topic"
