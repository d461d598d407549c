"""Schema registries for tests: a small one in this process, and a real one, Apicurio.

`RegistryServer` speaks as much of Confluent's API as clients use to read and to register schemas.
`ApicurioRegistry` is fetched with Maven and run with Java, as the broker of
`tests.support.kafka_broker` is, and keeps its schemas in memory.
"""

from __future__ import annotations

import base64
import fcntl
import json
import shutil
import subprocess
import tarfile
import tempfile
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.kafka_broker import CACHE, POM, BrokerError, free_ports
from tests.support.waiting import wait_until

APICURIO = "io.apicurio:apicurio-registry-app:2.6.13.Final:tar.gz:all"


class RegistryServer:
    """A registry on a free port of 127.0.0.1.

    Attributes:
        user_info: ``USER:PASSWORD`` that it asks for; None: nothing.
        status: answers every request with this HTTP status; None: properly.
        requests: the paths that were asked for.
    """

    def __init__(self, port: int = 0, user_info: str | None = None) -> None:
        self.user_info = user_info
        self.status: int | None = None
        self.requests: list[str] = []
        self.schemas: dict[int, dict[str, Any]] = {}
        self.subjects: dict[str, list[int]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, subject: str, schema: Any, kind: str = "AVRO", **more: Any) -> int:
        """Register a schema, of Avro as a dict; its id."""
        text = schema if isinstance(schema, str) else json.dumps(schema)
        for schema_id, known in self.schemas.items():  # noqa: B007
            if (known["schema"], known["schemaType"]) == (text, kind):
                break
        else:
            schema_id = len(self.schemas) + 1
            self.schemas[schema_id] = {"schema": text, "schemaType": kind, **more}
        versions = self.subjects.setdefault(subject, [])
        if schema_id not in versions:
            versions.append(schema_id)
        return schema_id

    def frame(self, schema_id: int, data: bytes) -> bytes:
        """Data with the prefix of its schema."""
        return b"\0" + schema_id.to_bytes(4) + data

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _handler(registry: RegistryServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(self._found)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._reply(lambda parts: self._registered(parts, body))

        def _reply(self, answer: Any) -> None:
            path = self.path.partition("?")[0]
            registry.requests.append(path)
            wanted = registry.user_info
            given = self.headers.get("Authorization", "")
            if registry.status is not None:
                self._send(registry.status, {"error_code": 50001, "message": "at fault"})
            elif (
                wanted is not None
                and given != "Basic " + base64.b64encode(wanted.encode()).decode()
            ):
                self._send(401, {"error_code": 401, "message": "Unauthorized"})
            else:
                found = answer(path.strip("/").split("/"))
                missing = {"error_code": 40403, "message": "Schema not found"}
                self._send(404 if found is None else 200, missing if found is None else found)

        def _found(self, parts: list[str]) -> Any:
            if parts[:2] == ["schemas", "ids"]:
                return registry.schemas.get(int(parts[2]))
            if parts[0] == "subjects" and len(parts) == 4:
                versions = registry.subjects.get(parts[1], [])
                number = len(versions) if parts[3] == "latest" else int(parts[3])
                if not 0 < number <= len(versions):
                    return None
                schema_id = versions[number - 1]
                about = {"subject": parts[1], "version": number, "id": schema_id}
                return {**registry.schemas[schema_id], **about}
            return None

        def _registered(self, parts: list[str], body: Any) -> Any:
            kind = body.get("schemaType", "AVRO")
            schema_id = registry.add(parts[1], body["schema"], kind)
            return {"id": schema_id, **registry.schemas[schema_id]}

        def _send(self, status: int, content: Any) -> None:
            payload = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def apicurio_jar() -> Path:
    """The registry's jar; the first call fetches it with Maven.

    Raises:
        BrokerError: Maven failed.
    """
    version = APICURIO.split(":")[2]
    home = CACHE / f"apicurio-{version}"
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "apicurio.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not home.is_dir():
            partial = CACHE / "apicurio-partial"
            shutil.rmtree(partial, ignore_errors=True)
            command = [
                "mvn", "-q", "-B", "-f", str(POM), "dependency:copy", f"-Dartifact={APICURIO}",
                f"-DoutputDirectory={partial}",
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise BrokerError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
            (archive,) = partial.glob("*.tar.gz")
            with tarfile.open(archive) as packed:
                packed.extractall(partial, filter="data")
            archive.unlink()
            partial.rename(home)  # only a complete fetch gets the name
    (jar,) = home.glob("*-runner.jar")
    return jar


class ApicurioRegistry:
    """A real registry on a free port of 127.0.0.1; a context manager that stops it."""

    def __init__(self) -> None:
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}/apis/ccompat/v7"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        command = [
            "java", "-Xmx400m", "-XX:TieredStopAtLevel=1", f"-Dquarkus.http.port={self.port}",
            "-Dquarkus.http.host=127.0.0.1", "-jar", str(apicurio_jar()),
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT)

    def __enter__(self) -> Self:
        try:
            wait_until(self._responds, what=self._said)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _responds(self) -> bool:
        assert self._process.poll() is None, self._said()
        try:
            with urllib.request.urlopen(f"{self.url}/subjects", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def _said(self) -> str:
        self._log.seek(0)
        return f"the registry: {self._log.read().decode(errors='replace')[-2000:]}"
