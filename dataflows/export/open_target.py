"""Opens the target that a URL names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from anabranch.dataflows.export.target import ExportError, Target
from anabranch.dataflows.export.target_urls import (
    Secrets,
    malformed,
    shown,
    well_formed,
    with_password,
)

_SQL = ("postgresql", "postgres")
_REDIS = ("redis", "rediss", "valkey", "valkeys")


def open_target(url: str, settings: Mapping[str, str] | None = None) -> Target:
    """Open ``parquet:DIR``, ``sqlite:FILE``, ``postgresql://…``, ``redis://…`` or ``valkey://…``.

    ``settings`` are those of the server's client: parameters of libpq, or of redis-py.

    Raises:
        ExportError: the URL names no target, or the target can't be used or reached.
    """
    scheme, _, rest = url.partition(":")
    settings = settings or {}
    if scheme in ("parquet", "sqlite"):
        if settings:
            raise ExportError(f"{scheme}: takes no settings: leave out --to-config")
        if not rest:
            raise ExportError(f"write {scheme}:{'DIR' if scheme == 'parquet' else 'FILE.db'}")
        if scheme == "sqlite":
            from anabranch.dataflows.export.sqlite_target import SqliteTarget

            return SqliteTarget(Path(rest))
        from anabranch.dataflows.export.parquet_target import ParquetTarget

        return ParquetTarget(Path(rest))
    if rest.startswith("//") and scheme in (*_SQL, *_REDIS):
        if not well_formed(url):
            raise malformed(shown(url))
        given = with_password(url, settings)
        secrets = Secrets(url, given)
        if scheme in _SQL:
            from anabranch.dataflows.export.postgresql_target import PostgresqlTarget

            return PostgresqlTarget(shown(url), url, given, secrets)
        from anabranch.dataflows.export.redis_target import RedisTarget

        return RedisTarget(shown(url), url, given, secrets)
    raise ExportError(
        f"--to {shown(url)!r} is no target: write parquet:DIR, sqlite:FILE.db, postgresql://…, "
        "redis://… or valkey://…"
    )
