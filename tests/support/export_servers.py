"""Real servers that exports write to: PostgreSQL, and Redis or Valkey, on ports of 127.0.0.1."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
import pytest
import redis

from tests.support.kafka_broker import free_ports
from tests.support.waiting import wait_until

_USER = "nobody"  # PostgreSQL refuses to be run by root
PASSWORD = "s3cret/pass word"


def postgres_programs() -> Path:
    """The directory of PostgreSQL's programs; skips the test without them."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).parent
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not installed:
        pytest.skip("NOT RUN: postgres is not installed (Debian: apt-get install postgresql)")
    return installed[-1].parent


def redis_program() -> str:
    """The server's program; skips the test without one."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None:
        pytest.skip("NOT RUN: redis-server is not installed (Debian: apt-get install redis-server)")
    return found


class _Server:
    """A process that is started and stopped; a context manager that stops it in the end."""

    port: int
    directory: Path
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        raise NotImplementedError

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """Stop the server; its data stay. Idempotent."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(60)
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


class PostgresServer(_Server):
    """A server whose user ``fraud`` has `PASSWORD`."""

    def __init__(self) -> None:
        self._programs = postgres_programs()
        self._as = {"user": _USER, "group": "nogroup"} if os.geteuid() == 0 else {}
        self.directory = Path(tempfile.mkdtemp(prefix="anabranch-postgres-"))
        if self._as:
            shutil.chown(self.directory, _USER, "nogroup")
        self.port = free_ports(1)[0]
        password = self.directory / "password"
        password.write_text(PASSWORD)
        if self._as:
            shutil.chown(password, _USER)
        self._data = self.directory / "data"
        self._run(
            "initdb", "-D", str(self._data), "-U", "fraud", "-E", "UTF8", "--locale=C",
            "-A", "scram-sha-256", f"--pwfile={password}", "--no-sync",
        )  # fmt: skip

    @property
    def url(self) -> str:
        """The URL without a password."""
        return f"postgresql://fraud@127.0.0.1:{self.port}/postgres"

    def connect(self) -> psycopg.Connection:
        """A connection that commits each statement."""
        return psycopg.connect(self.url, password=PASSWORD, autocommit=True)

    def start(self) -> None:
        command = [
            str(self._programs / "postgres"), "-D", str(self._data), "-p", str(self.port),
            "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self.directory}",
            "-c", "shared_buffers=16MB",
        ]  # fmt: skip
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.directory, **self._as
            )

        def answers() -> bool:
            try:
                self.connect().close()
            except psycopg.OperationalError:
                return False
            return True

        wait_until(answers, what=lambda: (self.directory / "log").read_text())

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._programs / program), *arguments],
            check=True, capture_output=True, cwd=self.directory, **self._as,
        )  # fmt: skip


class RedisServer(_Server):
    """A server with `PASSWORD` that keeps what it has confirmed."""

    def __init__(self) -> None:
        self._program = redis_program()
        self.directory = Path(tempfile.mkdtemp(prefix="anabranch-redis-"))
        self.port = free_ports(1)[0]

    @property
    def url(self) -> str:
        """The URL without a password."""
        return f"redis://127.0.0.1:{self.port}/0"

    def connect(self) -> redis.Redis:
        """A client."""
        return redis.Redis(port=self.port, password=PASSWORD, decode_responses=True)

    def start(self) -> None:
        settings = {
            "port": self.port, "bind": "127.0.0.1", "dir": self.directory, "save": "",
            "appendonly": "yes", "appendfsync": "always", "requirepass": f'"{PASSWORD}"',
        }  # fmt: skip
        file = self.directory / "redis.conf"
        file.write_text("".join(f"{k} {v or chr(34) * 2}\n" for k, v in settings.items()))
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen([self._program, str(file)], stdout=log, stderr=log)

        def answers() -> bool:
            try:
                return bool(self.connect().ping())
            except redis.RedisError:
                return False

        wait_until(answers, what=lambda: (self.directory / "log").read_text())
