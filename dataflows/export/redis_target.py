"""The newest row of each key in Redis or Valkey: a hash that is replaced whole.

::

    fraud.predictions:card-17         the fields of the newest prediction of that key
    fraud.drift:loss                  those of the newest drift signal of that subject
    anabranch:positions:TOPIC         the next offset of each partition, and the topic's id
    anabranch:export:PIPELINE         who exports; it expires when that process is gone

A script writes the rows and positions of a batch: both or neither.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import orjson

from anabranch.dataflows.bus import TopicPartition
from anabranch.dataflows.bus.claims import here
from anabranch.dataflows.export.output_tables import OutputTable, TableRows
from anabranch.dataflows.export.target import (
    Batch,
    ExportError,
    Position,
    Positions,
    TargetUnreachableError,
    in_use,
    taken_over,
)
from anabranch.dataflows.export.target_urls import (
    Secrets,
    malformed,
    missing_library,
    with_scheme,
)

_LEASE_MS = 10_000
_TIMEOUT_S = 5.0
_TOPIC_ID = "topic_id"
_SETTINGS = ("username", "password", "db", "client_name")
_SCHEMES = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss"}

# KEYS: the lease, the topics' positions, the rows. ARGV: the lease's value, then as JSON the
# positions of each topic (before and after), and of each row its time and its names and values.
_WRITE = """
local lease = redis.call('GET', KEYS[1])
if lease and lease ~= ARGV[1] then return -1 end
local topics, rows = cjson.decode(ARGV[2]), cjson.decode(ARGV[3])
for i, topic in ipairs(topics) do
  for _, field in ipairs(topic) do
    local found = redis.call('HGET', KEYS[1 + i], field[1]) or ''
    if found ~= field[2] then return -2 end
  end
end
local first, written = 1 + #topics, 0
for i, row in ipairs(rows) do
  local key = KEYS[first + i]
  local stored = redis.call('HGET', key, row[1])
  if not stored or tonumber(stored) <= tonumber(row[2]) then
    redis.call('DEL', key)
    local pairs_ = row[3]
    for from = 1, #pairs_, 1000 do
      redis.call('HSET', key, unpack(pairs_, from, math.min(from + 999, #pairs_)))
    end
    written = written + 1
  end
end
for i, topic in ipairs(topics) do
  for _, field in ipairs(topic) do
    redis.call('HSET', KEYS[1 + i], field[1], field[3])
  end
end
return written
"""
_RENEW = """
local lease = redis.call('GET', KEYS[1])
if lease and lease ~= ARGV[1] then return lease end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return false
"""
_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return false
"""


class RedisTarget:
    """A database of a Redis or Valkey server.

    Times are epoch ms; what is null is left out.

    Args:
        url: ``redis://``, ``rediss://`` (with TLS), ``valkey://`` or ``valkeys://``.
        settings: of the client (redis-py) that the URL does not have, such as ``password``.
    """

    batch_size = 1000
    interval_s = 0.2

    def __init__(self, name: str, url: str, settings: Mapping[str, str], secrets: Secrets) -> None:
        self.name = name
        try:
            import redis
            import redis.backoff
            import redis.retry
        except ImportError:
            raise missing_library("Redis or Valkey", "redis", "redis") from None
        self._redis = redis
        self._secrets = secrets
        self._lease_key = ""
        self._lease = f"{here()}, {uuid.uuid4().hex}"
        self._topics: list[str] = []
        self._next_renewal = 0.0
        scheme = _SCHEMES[url.partition("://")[0]]
        for setting in settings:
            if setting not in _SETTINGS and not setting.startswith("ssl_"):
                raise ExportError(
                    f"--to-config: {setting} is no setting of Redis: give {', '.join(_SETTINGS)} "
                    "or ssl_…, as redis-py names them"
                )
        # A script that is sent again after a time-out may run twice: `write` checks for that.
        no_retry = redis.retry.Retry(redis.backoff.NoBackoff(), 0)
        options: dict[str, Any] = {
            "retry": no_retry,
            "socket_timeout": _TIMEOUT_S,
            "socket_connect_timeout": _TIMEOUT_S,
            "decode_responses": True,
            **settings,
        }
        try:
            self._client: Any = redis.Redis.from_url(with_scheme(url, scheme), **options)
        except (ValueError, TypeError):
            raise malformed(name) from None
        self._write, self._renew, self._release = (
            self._client.register_script(each) for each in (_WRITE, _RENEW, _RELEASE)
        )
        with self._calls():
            self._client.ping()

    def prepare(self, pipeline: str, tables: Sequence[OutputTable]) -> Positions:
        """Take the lease; returns the positions that are stored."""
        for table in tables:
            if table.identity is None:
                raise ExportError(
                    f"{self.name} keeps the newest row of each key, and {table.output} have none: "
                    "export them to Parquet files or a database"
                )
        self._topics = [table.topic for table in tables]
        self._lease_key = f"anabranch:export:{pipeline}"
        deadline = time.monotonic() + 1.5 * _LEASE_MS / 1000
        while (owner := self._take_lease()) is not None:
            if time.monotonic() > deadline:  # it was renewed: its owner is alive
                raise in_use(self.name, owner.rpartition(", ")[0])
            time.sleep(0.1)
        stored = self.stored()
        for table in tables:
            if table.topic not in {at.topic for at in stored}:
                self._check_free(table)
        return stored

    def stored(self) -> Positions:
        """The positions that are stored now."""
        found: dict[TopicPartition, Position] = {}
        for topic in self._topics:
            with self._calls():
                fields: dict[str, str] = self._client.hgetall(_positions_key(topic))
            topic_id = fields.pop(_TOPIC_ID, "")
            for partition, offset in fields.items():
                found[TopicPartition(topic, int(partition))] = Position(topic_id, int(offset))
        return found

    def write(self, batch: Batch) -> None:
        """Store the newest row of each key and the positions, in one script."""
        topics: dict[str, list[tuple[str, str, str]]] = {}
        for at, after in batch.after.items():
            before = batch.before.get(at)
            fields = topics.setdefault(at.topic, [])
            old = "" if before is None else str(before.offset)
            fields.append((str(at.partition), old, str(after.offset)))
        for topic, fields in topics.items():
            ids = [p.topic_id for at, p in batch.before.items() if at.topic == topic]
            new = [p.topic_id for at, p in batch.after.items() if at.topic == topic]
            fields.append((_TOPIC_ID, ids[0] if ids else "", new[0]))
        keys, rows = [], []
        for each in batch.rows:
            for key, row in _newest(each).items():
                keys.append(key)
                rows.append(row)
        with self._calls():
            result = self._write(
                keys=[self._lease_key, *map(_positions_key, topics), *keys],
                args=[self._lease, orjson.dumps(list(topics.values())), orjson.dumps(rows)],
            )
        if int(result) < 0:
            raise taken_over(self.name)
        self.keep()

    def keep(self) -> None:
        """Renew the lease when it is time."""
        if time.monotonic() >= self._next_renewal and self._take_lease() is not None:
            raise taken_over(self.name)

    def close(self) -> None:
        """Give the lease back and close the connection. Idempotent."""
        if self._lease_key:
            with suppress(ExportError), self._calls():
                self._release(keys=[self._lease_key], args=[self._lease])
            self._lease_key = ""
        self._client.close()

    def _take_lease(self) -> str | None:
        """Take or renew the lease; returns who has it otherwise."""
        with self._calls():
            owner = self._renew(keys=[self._lease_key], args=[self._lease, _LEASE_MS])
        self._next_renewal = time.monotonic() + _LEASE_MS / 3000
        return None if owner is None else str(owner)

    def _check_free(self, table: OutputTable) -> None:
        """Check that nothing else has keys of these names."""
        with self._calls():
            found = next(self._client.scan_iter(f"{_escaped(table.topic)}:*", count=1000), None)
        if found is not None:
            raise ExportError(
                f"{self.name} has keys {table.topic}:… that no export has written: delete them, or "
                "name another database of the server"
            )

    @contextmanager
    def _calls(self) -> Iterator[None]:
        errors = self._redis.exceptions
        try:
            yield
        except (
            errors.ConnectionError,
            errors.TimeoutError,
            errors.BusyLoadingError,
            errors.ReadOnlyError,
            errors.MasterDownError,
            errors.TryAgainError,
            errors.OutOfMemoryError,
        ) as error:
            text = self._secrets.removed_from(str(error))
            raise TargetUnreachableError(f"{self.name} does not respond: {text}") from None
        except errors.RedisError as error:
            text = self._secrets.removed_from(str(error))
            hint = ": clusters are not supported" if "slot" in text.lower() else ""
            raise ExportError(f"{self.name} refuses what is written: {text}{hint}") from None


def _newest(rows: TableRows) -> dict[str, tuple[str, str, list[str]]]:
    """The newest row of each key: the name and value of its time, and its names and values."""
    table, newest = rows.table, dict[str, int]()
    assert table.identity is not None
    identities, ids = rows.columns[table.identity].values, rows.columns["id"].values
    times = [value or 0 for value in rows.columns[table.time].values]
    for row, identity in enumerate(identities):
        key = f"{table.topic}:{ids[row] if identity is None else identity}"
        if key not in newest or times[newest[key]] <= times[row]:
            newest[key] = row
    found = {}
    columns = [(name, column.values) for name, column in rows.columns.items()]
    for key, row in newest.items():
        pairs: list[str] = []
        for name, values in columns:
            value = values[row]
            if value is not None:
                pairs += (name, value if type(value) is str else _text(value))
        found[key] = (table.time, str(times[row]), pairs)
    return found


def _text(value: Any) -> str:
    if type(value) is bool:
        return "true" if value else "false"
    return repr(value) if type(value) is float else str(value)


def _positions_key(topic: str) -> str:
    return f"anabranch:positions:{topic}"


def _escaped(pattern: str) -> str:
    return pattern.replace("[", r"\[").replace("*", r"\*").replace("?", r"\?")
