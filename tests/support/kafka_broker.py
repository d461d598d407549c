"""A real single-node Kafka broker for tests and benchmarks: fetched with Maven, run with Java.

Retention and limits are Kafka's defaults, as a user's broker has them, unless a test asks for
others: messages older than 7 days go at the first run of the cleaner, 30 s after the start.

The jars are fetched once into ``.kafka/`` at the root of the repository. The broker listens on free
ports of 127.0.0.1, keeps its data in a directory of its own, and is stopped by its process id.

    with KafkaBroker() as broker:
        bus = open_bus(broker.url)
"""

from __future__ import annotations

import base64
import ctypes
import fcntl
import hashlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal

from confluent_kafka import KafkaException
from confluent_kafka import TopicPartition as KafkaPosition
from confluent_kafka.admin import AdminClient

POM = Path(__file__).parent / "kafka" / "pom.xml"
CACHE = Path(__file__).parents[2] / ".kafka"

PROPERTIES = """\
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
inter.broker.listener.name=PLAINTEXT
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers=127.0.0.1:{controller_port}
log.dirs={data}
num.network.threads=1
num.io.threads=2
log.cleaner.threads=1
background.threads=2
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
group.initial.rebalance.delay.ms=0
log.cleaner.dedupe.buffer.size=2097152
controlled.shutdown.enable=false
broker.session.timeout.ms=1500
broker.heartbeat.interval.ms=300
"""
Retention = Literal["default", "forever"]

KEEP_HISTORY = {"topic.retention.ms": "-1"}
"""Settings of a bus whose new topics keep messages of the past for ever."""


class BrokerError(Exception):
    """Maven or the broker failed; the message has their output."""


def missing_tools() -> str | None:
    """Why no broker can run here (Java or Maven is not installed), or None."""
    missing = [tool for tool in ("java", "mvn") if shutil.which(tool) is None]
    return f"no Kafka broker: {' and '.join(missing)} not found on PATH" if missing else None


def kafka_jars() -> Path:
    """The directory of the broker's jars; the first call fetches them with Maven.

    Raises:
        BrokerError: Maven failed.
    """
    # Named after the pom, so that a changed version is fetched again.
    libs = CACHE / f"libs-{hashlib.sha256(POM.read_bytes()).hexdigest()[:12]}"
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if libs.is_dir():
            return libs
        partial = CACHE / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        goal = ["dependency:copy-dependencies", "-DincludeScope=runtime"]
        command = ["mvn", "-q", "-B", "-f", str(POM), *goal, f"-DoutputDirectory={partial}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BrokerError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        partial.rename(libs)  # only a complete fetch gets the name
    return libs


def free_ports(count: int) -> list[int]:
    """Free ports of 127.0.0.1."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


class KafkaBroker:
    """One broker with fixed ports and data that can be stopped, killed and restarted.

    ``fast_start`` uses Java's fast compiler only, which suits tests but not benchmarks.
    ``retention`` is ``forever`` where messages of the past shall stay; ``settings`` are those of
    the broker, on top of `PROPERTIES`.
    """

    def __init__(
        self,
        fast_start: bool = False,
        heap_mb: int = 384,
        retention: Retention = "default",
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._settings = dict(settings or {})
        if retention == "forever":
            self._settings["log.retention.ms"] = "-1"
        self.port, self._controller_port = free_ports(2)
        self.url = f"kafka://127.0.0.1:{self.port}"
        self._java = ["java", "-Xms128m", f"-Xmx{heap_mb}m", "-XX:+UseSerialGC", "-Xshare:auto"]
        if fast_start:
            self._java.append("-XX:TieredStopAtLevel=1")
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, timeout_s: float = 180.0, wait: bool = True) -> None:
        """Start the broker and return once a client can reach it, or at once without ``wait``.

        Call it from the main thread: the broker ends with the thread that started it.

        Raises:
            BrokerError: Java or the broker failed, or the time ran out; the message has its log.
        """
        if self._directory is None:
            self._directory = self._format()
        command = [*self._command(), "kafka.Kafka", str(self._directory / "server.properties")]
        with (self._directory / "broker.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, preexec_fn=_die_with_parent
            )
        if wait:
            self._wait_until_reachable(time.monotonic() + timeout_s)

    @property
    def running(self) -> bool:
        """Whether the broker was started and not stopped since."""
        return self._process is not None

    def stop(self) -> None:
        """Shut the broker down; its data stays."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the broker as a crash would; its data stays."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Restart with the same ports and data."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Suspend the broker, like a machine that hangs: connections stay, without responses."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue the broker after `pause`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def admin(self) -> AdminClient:
        """An admin client that logs nothing."""
        return AdminClient({"bootstrap.servers": f"127.0.0.1:{self.port}", "log_level": 0})

    def delete_records(self, topic: str, before: dict[int, int]) -> None:
        """Delete the messages before these offsets, by partition, as retention does."""
        places = [KafkaPosition(topic, partition, to) for partition, to in before.items()]
        admin = self.admin()  # alive until it has answered
        for future in admin.delete_records(places).values():
            future.result(10)

    def delete_topic(self, topic: str) -> None:
        """Delete a topic."""
        admin = self.admin()
        admin.delete_topics([topic])[topic].result(10)

    def close(self) -> None:
        """Stop the broker and delete its data."""
        self.stop()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def __enter__(self) -> KafkaBroker:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _command(self) -> list[str]:
        return [*self._java, "-cp", f"{kafka_jars()}/*"]

    def _format(self) -> Path:
        command = self._command()
        directory = Path(tempfile.mkdtemp(prefix="anabranch-kafka-"))
        properties = directory / "server.properties"
        properties.write_text(
            PROPERTIES.format(
                port=self.port, controller_port=self._controller_port, data=directory / "data"
            )
            + "".join(f"{name}={value}\n" for name, value in self._settings.items())
        )
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if cluster.startswith("-"):  # the tool would read it as an option
            cluster = "A" + cluster[1:]
        tool = ["kafka.tools.StorageTool", "format", "--standalone", "-t", cluster]
        done = subprocess.run(
            [*command, *tool, "-c", str(properties)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            shutil.rmtree(directory, ignore_errors=True)
            raise BrokerError(
                f"formatting the broker's storage failed:\n{done.stdout}{done.stderr}"
            )
        return directory

    def _wait_until_reachable(self, deadline: float) -> None:
        assert self._process is not None
        # No log lines of this client: "connection refused" is what it waits out.
        client = AdminClient(
            {
                "bootstrap.servers": f"127.0.0.1:{self.port}",
                "log_level": 0,
                "reconnect.backoff.max.ms": 200,
            }
        )
        while True:
            if self._process.poll() is not None:
                raise BrokerError(f"the broker has ended:\n{self._log_tail()}")
            try:
                client.list_topics(timeout=0.5)
                return
            except KafkaException:
                if time.monotonic() > deadline:
                    tail = self._log_tail()
                    self.kill()
                    raise BrokerError(f"the broker did not become reachable:\n{tail}") from None

    def _log_tail(self) -> str:
        assert self._directory is not None
        text = (self._directory / "broker.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-40:])

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGCONT)  # a paused one would not hear SIGTERM
        process.send_signal(how)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    # A test run that is itself killed must not leave a broker behind. ("Parent" is the thread.)
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
