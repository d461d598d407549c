"""Targets of each kind; servers are started once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from anabranch.dataflows.bus import Bus, open_bus
from tests.support.export_servers import PASSWORD, PostgresServer, RedisServer
from tests.support.exports import PIPELINE, Place


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server; tests are skipped where it is not installed."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A Redis or Valkey server; tests are skipped where neither is installed."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with the pipeline in fraud.py."""
    (tmp_path / "fraud.py").write_text(PIPELINE)
    return tmp_path


@pytest.fixture
def bus(directory: Path) -> Iterator[Bus]:
    """An embedded bus in that directory."""
    opened = open_bus(f"sqlite:{directory}/bus")
    yield opened
    opened.close()


def place_of(kind: str, directory: Path, request: pytest.FixtureRequest) -> Place:
    """An empty target."""
    if kind == "postgresql":
        server = request.getfixturevalue("postgres_server")
        with server.connect() as connection:
            connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        return Place(kind, directory, server)
    if kind == "redis":
        server = request.getfixturevalue("redis_server")
        server.connect().flushall()
        return Place(kind, directory, server)
    return Place(kind, directory)


@pytest.fixture(params=["parquet", "sqlite", "postgresql", "redis"])
def place(
    request: pytest.FixtureRequest, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> Place:
    """A target of each kind."""
    monkeypatch.setenv("ANABRANCH_EXPORT_PASSWORD", PASSWORD)
    return place_of(request.param, directory, request)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(
    request: pytest.FixtureRequest, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> Place:
    """A database of each kind."""
    monkeypatch.setenv("ANABRANCH_EXPORT_PASSWORD", PASSWORD)
    return place_of(request.param, directory, request)
