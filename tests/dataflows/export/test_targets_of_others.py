"""Tables, directories and keys that no export of this pipeline has made are left alone."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from anabranch.dataflows.bus import Bus
from anabranch.dataflows.export.target import ExportError, TargetUnreachableError
from anabranch.state.errors import AnabranchError
from tests.support.export_servers import PASSWORD, PostgresServer, RedisServer
from tests.support.exports import PIPELINE, PREDICTIONS, Place, export, prediction, publish


@pytest.fixture(autouse=True)
def some_predictions(bus: Bus) -> None:
    publish(bus, PREDICTIONS, [prediction(n) for n in range(5)])


def test_a_table_of_another_program(bus: Bus, database: Place) -> None:
    with database.sql() as connection:
        connection.execute("CREATE TABLE fraud_predictions (id text PRIMARY KEY, score real)")
    with pytest.raises(ExportError, match=r"table fraud_predictions of .* was not made by an exp"):
        export(bus, database)
    with database.sql() as connection:
        assert connection.execute("SELECT count(*) FROM fraud_predictions").fetchone() == (0,)


def test_a_column_that_has_another_type(bus: Bus, database: Place) -> None:
    export(bus, database)
    text = PIPELINE.replace("fraud: bool", "fraud: float").replace(
        "LogisticRegression", "LinearRegression"
    )
    (database.directory / "fraud.py").write_text(text)
    with pytest.raises(ExportError, match=r"column prediction of table fraud_predictions .* has"):
        export(bus, database)


def test_a_table_that_was_dropped_begins_anew(
    bus: Bus, database: Place, caplog: pytest.LogCaptureFixture
) -> None:
    export(bus, database)
    with database.sql() as connection:
        connection.execute("DROP TABLE fraud_predictions")
    assert export(bus, database) == {"predictions": 5}
    assert "exporting topic fraud.predictions from its beginning" in caplog.text


def test_topics_whose_tables_have_one_name(bus: Bus, database: Place) -> None:
    export(bus, database)
    with database.sql() as connection:
        connection.execute("UPDATE anabranch_tables SET topic = 'fraud-predictions'")
    with pytest.raises(ExportError, match="is the export of topic fraud-predictions"):
        export(bus, database)


def test_a_view_for_reports_stays(bus: Bus, database: Place) -> None:
    export(bus, database)
    with database.sql() as connection:
        connection.execute("CREATE VIEW high AS SELECT id FROM fraud_predictions WHERE score > 0.3")
    publish(bus, PREDICTIONS, [prediction(9)])
    assert export(bus, database) == {"predictions": 1}


def test_a_schema_that_the_url_names(
    bus: Bus, directory: Path, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANABRANCH_EXPORT_PASSWORD", PASSWORD)
    place = Place("postgresql", directory, postgres_server)
    place.url += "?options=-csearch_path%3D%22RiskTeam%22"
    with pytest.raises(ExportError, match="no schema has been selected"):
        export(bus, place)
    with place.sql() as connection:
        connection.execute('CREATE SCHEMA "RiskTeam"')
    export(bus, place, batch_size=2)
    assert export(bus, place) == {"predictions": 0}
    with place.sql() as connection:
        found = connection.execute('SELECT count(*) FROM "RiskTeam".fraud_predictions')
        assert found.fetchone() == (5,)
        connection.execute('DROP SCHEMA "RiskTeam" CASCADE')


def test_a_directory_of_other_files(bus: Bus, directory: Path) -> None:
    (directory / "exported").mkdir()
    (directory / "exported" / "mine.parquet").write_bytes(b"")
    with pytest.raises(ExportError, match="has files and is no export"):
        export(bus, Place("parquet", directory))


def test_a_directory_of_another_pipeline(bus: Bus, directory: Path) -> None:
    place = Place("parquet", directory)
    export(bus, place)
    manifest = directory / "exported" / "anabranch-export.json"
    whole = manifest.read_bytes()
    manifest.write_bytes(whole.replace(b'"fraud"', b'"other"'))
    with pytest.raises(AnabranchError, match="is damaged"):  # its checksum
        export(bus, place)
    manifest.write_bytes(whole[:20])
    with pytest.raises(AnabranchError, match="is damaged"):
        export(bus, place)


def test_a_file_that_is_no_database(bus: Bus, directory: Path) -> None:
    (directory / "exported.db").write_text("id,score\n" * 1000)
    with pytest.raises(ExportError, match="file is not a database"):
        export(bus, Place("sqlite", directory))


def test_a_database_that_another_program_has_locked(
    bus: Bus, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anabranch.dataflows.export.sqlite_target._BUSY_TIMEOUT_S", 0.01)
    place = Place("sqlite", directory)
    export(bus, place)
    with sqlite3.connect(directory / "exported.db") as connection:
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(TargetUnreachableError, match="is locked by another program"):
            export(bus, place)


def test_keys_of_another_program(
    bus: Bus, directory: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANABRANCH_EXPORT_PASSWORD", PASSWORD)
    client = redis_server.connect()
    client.flushall()
    client.set("fraud.predictions:mine", "1")
    with pytest.raises(ExportError, match=r"has keys fraud.predictions:… that no export"):
        export(bus, Place("redis", directory, redis_server))
    client.flushall()
