"""Passwords of a bus are not shown, and files that hold data are their owner's."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from anabranch.dataflows.bus import BusError, open_bus
from anabranch.dataflows.bus.kafka.bus import KafkaBus
from anabranch.dataflows.cli.options import read_settings
from anabranch.state.errors import InputError
from tests.support.commands import Call, caller, run_command
from tests.support.kafka_broker import KafkaBroker

SECRET = "hunter2-s3cret"
URLS = [
    f"kafka://user:{SECRET}@localhost:9092",
    f"kafka://{SECRET}@localhost:9092",
    f"kafka://user:{SECRET}@localhost",
    f"kafka://user:{SECRET}@a:9092,user:{SECRET}@b:9092",
    f"kafka://user:{SECRET}/x@localhost:9092",
    f"kafka://user:{SECRET} y@localhost:9092",
    f"kafka:user:{SECRET}@localhost:9092",
    f"Kafka://user:{SECRET}@localhost:9092",
    f"user:{SECRET}@localhost:9092",
]


@pytest.fixture
def call(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    return caller(tmp_path, capfd)


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("form", ["plain", "json"])
def test_a_password_in_a_url_is_refused_and_not_shown(url: str, form: str, call: Call) -> None:
    for done in (
        call("topics", "--bus", url, ANABRANCH_LOG_FORMAT=form),
        call("run", "payments", ANABRANCH_BUS=url, ANABRANCH_LOG_FORMAT=form),
        call("topics", "--bus", "kafka://localhost:1", "--bus-set", f"sasl.password {SECRET}"),
    ):
        assert done.code == 1
        assert SECRET not in done.out + done.err
    with pytest.raises(BusError) as refused:
        open_bus(url)
    assert SECRET not in str(refused.value)
    if url.startswith("kafka://"):
        assert "--bus-config" in str(refused.value)


def test_the_client_quotes_no_secret_setting() -> None:
    settings = {"ssl.key.password": "Sesame", "security.protocol": "Sesame"}
    with pytest.raises(BusError, match=r"security\.protocol") as refused:
        KafkaBus("localhost:9092", settings)
    assert "Sesame" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_settings_of_a_file_reach_the_client(tmp_path: Path, call: Call) -> None:
    path = tmp_path / "client.properties"
    path.write_text(
        "\ufeff# of the cluster\r\n\r\n  reach.timeout.ms = 1200 \nsasl.password=a=b # c\n", "utf-8"
    )
    assert read_settings(path) == {"reach.timeout.ms": "1200", "sasl.password": "a=b # c"}
    path.write_text("reach.timeout.ms=1200\n")
    unreachable = ["topics", "--bus", "kafka://127.0.0.1:1"]
    for done in (
        call(*unreachable, "--bus-config", "client.properties"),
        call(*unreachable, ANABRANCH_BUS_CONFIG="client.properties"),
    ):
        assert done.code == 1
        assert "can't reach Kafka at 127.0.0.1:1 within 1.2 s" in " ".join(done.err.split())
    done = call(*unreachable, "--bus-config", path, "--bus-set", "reach.timeout.ms=1100")
    assert "within 1.1 s" in " ".join(done.err.split())


def test_a_wrong_file_is_one_sentence_without_its_content(tmp_path: Path) -> None:
    path = tmp_path / "client.properties"
    with pytest.raises(InputError, match=r"client.properties can't be read: No such file"):
        read_settings(path)
    for content, sentence in {
        f"a=1\nsasl.password {SECRET}".encode(): "line 2: write KEY=VALUE",
        f"a=1\n={SECRET}".encode(): "line 2: write KEY=VALUE",
        f"a={SECRET}\n\na={SECRET}2".encode(): "line 3: a is there already",
        b"a=\xff": "is not UTF-8 text",
    }.items():
        path.write_bytes(content)
        with pytest.raises(InputError, match=sentence) as refused:
            read_settings(path)
        assert SECRET not in str(refused.value)


@pytest.mark.kafka
def test_commands_take_a_file_on_kafka(tmp_path: Path, kafka_broker: KafkaBroker) -> None:
    (tmp_path / "client.properties").write_text("# none\nclient.id=from-a-file\n")
    options = ["--bus", kafka_broker.url, "--bus-config", "client.properties"]
    assert run_command(tmp_path, "simulate", "trips", "--events", "20", *options).code == 0
    done = run_command(tmp_path, "consume", "trips.events", "--no-follow", *options)
    assert done.code == 0
    assert len(done.out.splitlines()) == 20


def modes(directory: Path) -> dict[str, int]:
    return {
        str(path.relative_to(directory)): stat.S_IMODE(path.stat().st_mode)
        for path in [directory, *directory.rglob("*")]
    }


def use_everything(directory: Path, **environment: str) -> None:
    for arguments in (
        ["simulate", "payments", "--events", "300"],
        ["run", "payments", "--until-end"],
        ["models", "snapshot", "payments"],
        ["models", "export", "payments", "LogisticRegression", "--to", "out.pickle"],
        ["replay", "payments", "--from", "payments.events", "--to", "rows.parquet", "--state",
         "data/state/second", "--dead-letters", "dead.jsonl"],
    ):  # fmt: skip
        done = run_command(directory, *arguments, **environment)
        assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("umask", "mask"), [(None, 0o077), pytest.param("027", 0o027, marks=pytest.mark.slow)]
)
def test_state_bus_and_registry_are_the_owners_alone_unless_told(
    umask: str | None, mask: int, tmp_path: Path
) -> None:
    before = os.umask(0o022)
    try:
        use_everything(tmp_path, **({} if umask is None else {"ANABRANCH_UMASK": umask}))
    finally:
        os.umask(before)
    found = modes(tmp_path / "data")
    assert any(name.endswith(".topic") for name in found)
    assert any("registry" in name and name.endswith(".pickle") for name in found)
    assert any(name.endswith(".sst") or "CURRENT" in name for name in found)
    assert any(name.endswith(".sqlite3") for name in found)
    assert {name: oct(mode) for name, mode in found.items() if mode & mask} == {}
    if mask == 0o027:
        assert found["bus/payments.events.topic"] == 0o640
        assert found["bus"] == 0o750
    for name in ("rows.parquet", "dead.jsonl", "out.pickle", "out.pickle.json"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o644


def test_the_python_api_makes_private_topics_too(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        bus = open_bus(f"sqlite:{tmp_path}/bus")
        bus.create_topics({"t": 1})
        publisher = bus.publisher()
        publisher.append("t", [b"x"])
        found = modes(tmp_path / "bus")
        publisher.close()
    finally:
        os.umask(before)
    assert found.pop(".") == 0o700
    assert set(found.values()) == {0o600}
    assert {"t.topic", "t.topic-wal", "t.topic-shm"} <= found.keys()


def test_a_wrong_umask_is_one_sentence(call: Call) -> None:
    for wrong in ("rwx", "9", "1777", "-7"):
        done = call("topics", ANABRANCH_UMASK=wrong)
        assert done.code == 1
        assert "write an octal number such as 077 or 027" in " ".join(done.err.split())
