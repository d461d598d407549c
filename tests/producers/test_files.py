"""Files as messages: the content of the file is what is published, and errors are one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.producers.batch import Batch
from anabranch.producers.files import csv_files, tables
from anabranch.producers.files.fields import FileFields
from anabranch.producers.files.formats import count_rows, file_messages
from anabranch.state.errors import InputError

ROWS = [
    {"id": f"00{n}", "ts": 1_736_121_600_000 + 1000 * n, "card": f"c{n % 3}", "amount": n / 4}
    for n in range(25)
]


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    frame = pl.DataFrame(rows)
    if path.suffix == ".csv":
        frame.write_csv(path)
    elif path.suffix == ".parquet":
        frame.write_parquet(path, row_group_size=7)
    else:
        path.write_bytes(msgspec.json.Encoder().encode_lines(rows))
    return path


def messages_of(path: Path, **options: Any) -> Iterator[Batch]:
    """The messages of a file; options are those of `FileFields`, and of `file_messages`."""
    names = {"time_field": "time", "key_field": "key", "text_fields": "text"}
    names |= {name: name for name in ("id", "kinds", "time_unit")}
    declared = {names[name]: value for name, value in options.items() if name in names}
    rest = {name: value for name, value in options.items() if name not in names}
    return file_messages(path, FileFields(**declared), **rest)


def read(path: Path, **options: Any) -> Batch:
    """All messages of a file as one batch."""
    batches = list(messages_of(path, **options))
    return Batch(
        [value for batch in batches for value in batch.values],
        [key for batch in batches for key in batch.keys],
        np.concatenate([batch.times for batch in batches]),
        np.concatenate([batch.labels for batch in batches]),
    )


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.csv", "a.parquet"])
@pytest.mark.parametrize("batch_size", [1, 4, 1000])
def test_rows_come_back_with_time_and_key(tmp_path: Path, name: str, batch_size: int) -> None:
    path = write(tmp_path / name)
    found = read(path, key_field="card", batch_size=batch_size)
    assert [msgspec.json.decode(value) for value in found.values] == ROWS
    assert found.times.tolist() == [row["ts"] for row in ROWS]
    assert found.keys == [str(row["card"]).encode() for row in ROWS]
    assert not found.labels.any()
    assert count_rows(path) == len(ROWS)
    assert read(path, topic_kind="labels").labels.all()
    assert read(path).keys == [None] * len(ROWS)


def test_lines_of_jsonl_are_published_as_they_are_and_malformed_ones_in_their_place(
    tmp_path: Path,
) -> None:
    lines = [
        b"not json",
        b'{"ts": 5, "key" : "a"}',
        b'{"ts": "soon", "key": 7}',
        b'{"ts": 9',
        b"\xff\xfe",
        b"[1, 2]",
        b'{"key": "b", "ts": "1970-01-01T00:00:01+00:00"}',
        b'{"ts": 1e300, "key": null}',
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines) + b"\n\n  \n")
    found = read(path, key_field="key")
    assert found.values == lines
    assert found.times.tolist() == [5, 5, 5, 5, 5, 5, 1000, 1000]
    assert found.keys == [None, b"a", b"7", None, None, None, b"b", None]


@pytest.mark.parametrize(
    ("time", "unit", "want"),
    [
        ("2025-01-06T00:00:01Z", "ms", 1_736_121_601_000),
        ("2025-01-06T01:00:01.250+01:00", "ms", 1_736_121_601_250),
        ("2025-01-06 00:00:01", "ms", 1_736_121_601_000),
        ("2025-01-06", "ms", 1_736_121_600_000),
        (1_736_121_601, "s", 1_736_121_601_000),
        (1_736_121_601.5, "s", 1_736_121_601_500),
        (1_736_121_601_000_000, "us", 1_736_121_601_000),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_times_in_all_supported_forms(
    tmp_path: Path, name: str, time: Any, unit: str, want: int
) -> None:
    path = write(tmp_path / name, [{"id": "1", "when": time}])
    found = read(path, time_field="when", time_unit=unit)
    assert found.times.tolist() == [want]
    assert msgspec.json.decode(found.values[0]) == {"id": "1", "when": time}


def test_parquet_types_become_json(tmp_path: Path) -> None:
    rows = [
        {
            "ts": datetime(2025, 1, 6, 0, 0, 1, tzinfo=UTC),
            "id": 7,
            "day": date(2025, 1, 6),
            "price": Decimal("1.25"),
            "ratio": float("nan"),
            "ok": True,
            "note": None,
        }
    ]
    found = read(write(tmp_path / "a.parquet", rows), key_field="id")
    assert found.times.tolist() == [1_736_121_601_000]
    assert found.keys == [b"7"]
    message = msgspec.json.decode(found.values[0])
    assert datetime.fromisoformat(message.pop("ts")) == rows[0]["ts"]
    assert message == {
        "id": "7", "day": "2025-01-06", "price": 1.25, "ratio": None, "ok": True, "note": None,
    }  # fmt: skip


def test_csv_text_that_looks_like_numbers_and_rows_without_an_id(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('ts,card,zip,say\n1,0042,01234,"a\n""b"", c"\n2,7,99999,\n')
    found = read(path, key_field="card", text_fields=["zip"], batch_size=1)
    assert [msgspec.json.decode(value) for value in found.values] == [
        {"id": "0", "ts": 1, "card": "0042", "zip": "01234", "say": 'a\n"b", c'},
        {"id": "1", "ts": 2, "card": "7", "zip": "99999", "say": None},
    ]
    assert found.keys == [b"0042", b"7"]


@given(
    st.lists(st.text('ab\n",\r é', min_size=1, max_size=8), min_size=1, max_size=20),
    st.integers(8, 60),
)
def test_any_block_size_gives_the_same_rows(texts: list[str], block: int) -> None:
    texts = [f"x{text}" for text in texts]
    rows = [{"id": str(n), "ts": n, "say": text} for n, text in enumerate(texts)]
    with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_files, "CSV_BLOCK_BYTES", block)
        found = read(write(Path(directory) / "a.csv", rows))
    assert [msgspec.json.decode(value) for value in found.values] == rows


def test_a_later_row_of_another_type_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_files, "CSV_BLOCK_BYTES", 20)
    path = tmp_path / "a.csv"
    path.write_text("ts,zip\n" + "1,12345\n" * 20 + "2,A-12\n")
    with pytest.raises(InputError, match=r"before line \d+: .*text fields"):
        read(path)
    assert len(read(path, text_fields=["zip"])) == 21


def cut_short(path: Path) -> Path:
    path.write_bytes(write(path).read_bytes()[:-100])
    return path


def with_text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("make", "options", "says"),
    [
        (lambda d: d / "no.csv", {}, "there is no file .*no.csv"),
        (lambda d: d, {}, "is a directory"),
        (lambda d: with_text(d / "a.xlsx", "x"), {}, r"must end in \.csv, .*\.parquet"),
        (lambda d: with_text(d / "a.jsonl", ""), {}, "is empty"),
        (lambda d: with_text(d / "a.jsonl", "\n \n"), {}, "only blank lines"),
        (lambda d: with_text(d / "a.csv", ""), {}, "is empty"),
        (lambda d: with_text(d / "a.csv", "id,ts\n"), {}, "no rows"),
        (lambda d: with_text(d / "a.csv", "id,ts"), {}, "no rows"),
        (
            lambda d: with_text(d / "a.csv", "id,ts\n1,2\n1,2,3,4\n"),
            {},
            "line 3 of .*a.csv has 4 values",
        ),
        (
            lambda d: with_text(d / "a.csv", "id,ts\n1,soon\n"),
            {},
            "holds 'soon', which is not a time",
        ),
        (lambda d: with_text(d / "a.parquet", ""), {}, "is empty"),
        (
            lambda d: with_text(d / "a.parquet", "hello, no parquet"),
            {},
            "not a complete Parquet file",
        ),
        (lambda d: cut_short(d / "a.parquet"), {}, "not a complete Parquet file"),
        (lambda d: write(d / "a.parquet", []), {}, "no column 'ts'|no rows|not a complete"),
        (lambda d: write(d / "a.csv"), {"time_field": "when"}, "no column 'when' .*id, ts, card"),
        (lambda d: write(d / "a.parquet"), {"key_field": "crad"}, "no column 'crad'.*the key"),
        (lambda d: write(d / "a.jsonl"), {"time_field": "when"}, "no field 'when' .*the time"),
        (lambda d: write(d / "a.jsonl"), {"key_field": "crad"}, "no field 'crad' .*the key"),
        (lambda d: write(d / "a.jsonl"), {"time_unit": "h"}, "time unit 'h'"),
        (
            lambda d: write(d / "a.parquet", [{"id": b"\xff", "ts": 1}]),
            {},
            "'id' .*cannot be read as text",
        ),
    ],
)
def test_a_mistake_is_one_sentence(
    tmp_path: Path, make: Any, options: dict[str, Any], says: str
) -> None:
    path = make(tmp_path)
    with pytest.raises(InputError, match=says) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)


def test_large_files_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "PARQUET_ROWS", 10)
    messages = file_messages(write(tmp_path / "a.parquet"))
    assert len(next(messages)) == 10
    assert [len(batch) for batch in messages] == [10, 5]
