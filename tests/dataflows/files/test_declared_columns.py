"""Columns of files are read as their fields are declared, in `publish` and in `replay` alike."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest

from anabranch.dataflows.declaration.shape import Cast, path
from anabranch.dataflows.files.declared_fields import file_fields
from anabranch.dataflows.files.file_rows import FileTable
from anabranch.dataflows.messages.inputs import Event
from anabranch.producers.files import csv_files
from anabranch.producers.files.formats import file_messages
from anabranch.producers.files.json_fields import JsonFields
from anabranch.state.errors import InputError

T = 1_736_121_600_000


class Payment(Event):
    id: str
    ts: int
    amount: float | None
    items: int | None = None
    paid: bool | None = None
    note: str | None = None


def published(path: Path, message: type[Event] = Payment) -> list[Any]:
    """The rows of a file as `publish` sends them."""
    fields = file_fields(message, id="id", time="ts")
    batches = file_messages(path, fields)
    return [msgspec.json.decode(value) for batch in batches for value in batch.values]


def replayed(path: Path, message: type[Event] = Payment) -> list[Any]:
    """The rows of a file as `replay` and `skew` read them."""
    table = FileTable.open(path, message, "ts", "ms", "id")
    return [msgspec.json.decode(value) for rows in table.rows() for value in rows.values]


def both(path: Path, message: type[Event] = Payment) -> list[Any]:
    rows = published(path, message)
    assert replayed(path, message) == rows
    return rows


def csv(directory: Path, text: str | bytes) -> Path:
    path = directory / "a.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def parquet(directory: Path, **columns: Any) -> Path:
    path = directory / "a.parquet"
    rows = len(next(iter(columns.values())))
    pl.DataFrame({"ts": [T + n for n in range(rows)], **columns}).write_parquet(path)
    return path


@pytest.mark.parametrize(
    ("value", "want"),
    [
        ("4", {"amount": 4.0, "items": 4, "note": "4"}),
        ("4.0", {"amount": 4.0, "items": 4, "note": "4.0"}),
        ("+4", {"amount": 4.0, "items": 4, "note": "+4"}),
        (" 4 ", {"amount": 4.0, "items": 4, "note": " 4 "}),
        ("", {"amount": None, "items": None, "note": None}),
        *(
            (null, {"amount": None, "items": None, "note": null})
            for null in ("NA", "NULL", "null", "NaN", "nan", "None", "N/A", "\\N", "<NA>")
        ),
        ("x", {"amount": "x", "items": "x", "note": "x"}),
        ("4.5", {"amount": 4.5, "items": 4.5, "note": "4.5"}),
        ("12345678901234567890123", {"items": 12345678901234567890123}),
        ("inf", {"amount": None}),
    ],
)
def test_values_of_a_csv(tmp_path: Path, value: str, want: dict[str, Any]) -> None:
    """Others of the column stay what they are."""
    path = csv(
        tmp_path,
        f"id,ts,amount,items,note\na,{T},1.5,7,n\nb,{T + 1},{value},{value},{value}\n"
        f"c,{T + 2},,8,m\n",
    )
    rows = both(path)
    assert [row["id"] for row in rows] == ["a", "b", "c"]
    assert rows[1].items() >= want.items()
    assert (rows[0]["amount"], rows[0]["items"]) == (1.5, 7)
    assert (rows[2]["amount"], rows[2]["items"]) == (None, 8)


@pytest.mark.parametrize("words", [("true", "false"), ("True", "False"), ("1", "0"), ("T", "F")])
def test_booleans_of_a_csv(tmp_path: Path, words: tuple[str, str]) -> None:
    yes, no = words
    rows = both(csv(tmp_path, f"id,ts,amount,paid\na,{T},1,{yes}\nb,{T},1,{no}\nc,{T},1,NA\n"))
    found = [row["paid"] for row in rows]
    assert found == ([True, False, None] if yes != "T" else ["T", "F", None])


@pytest.mark.parametrize(
    ("ids", "want"),
    [
        (["1.0", "2.0"], ["1", "2"]),
        (["1.0", "", "3.0"], ["1", None, "3"]),
        (["1.0", "1.1"], ["1.0", "1.1"]),
        (["007", "8"], ["007", "8"]),
        (["NA", "b"], [None, "b"]),
        (["a", "NULL", "nan"], ["a", None, None]),
    ],
)
def test_ids_of_a_csv(tmp_path: Path, ids: list[str], want: list[str | None]) -> None:
    lines = "".join(f"{each},{T},1\n" for each in ids)
    assert [row["id"] for row in both(csv(tmp_path, f"id,ts,amount\n{lines}"))] == want


def test_an_id_unlike_all_before_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_files, "CSV_BLOCK_BYTES", 60)
    lines = "".join(f"{n}.0,{T},1\n" for n in range(20)) + f"1.5,{T},1\n"
    with pytest.raises(InputError, match=r"column 'id' of .* holds '1\.5', and whole numbers"):
        published(csv(tmp_path, f"id,ts,amount\n{lines}"))


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_separators_marks_and_line_ends(
    tmp_path: Path, separator: str, start: bytes, end: bytes
) -> None:
    lines = ["id, ts,amount,note", f"a,{T},1.5,x", "", f'b,{T},2,"y,{separator}z"', ""]
    text = [line.replace(",", separator).encode() for line in lines]
    rows = both(csv(tmp_path, start + end.join(text)))
    assert [(row["id"], row["amount"]) for row in rows] == [("a", 1.5), ("b", 2.0)]
    assert rows[1]["note"] == f"y{separator}{separator}z".replace(",", separator)


def test_decimal_commas(tmp_path: Path) -> None:
    rows = both(csv(tmp_path, f"id;ts;amount;note\na;{T};1,5;1,5\nb;{T};2;x\n"))
    assert [(row["amount"], row["note"]) for row in rows] == [(1.5, "1,5"), (2.0, "x")]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"id,ts,amount\na,{T},1\nb,{T}\n", "line 3 of .* has 2 values, fewer than the 3"),
        (f"id,ts,amount\na,{T},1\nb,{T},2,3\n", "line 3 of .* has 4 values, more than the 3"),
        (f'id,ts,amount\n"a\nb",{T},1\nc\n', "line 4 of .* has 1 values, fewer"),
        (f"id,ts,amount\na,{T},1\nb,17", "line 3 of .* has 2 values, fewer"),
        (b"id,ts,amount\na,1,1\n\xe9,1,1\n", "line 3 of .* is not in UTF-8"),
        (f"id,ts,amount,id\na,{T},1,b\n", "two columns 'id'"),
        (f"id,ts,amount\ra,{T},1\r", "carriage return"),
        (f"id,ts,amount\na,{T},1\n".encode("utf-16"), "UTF-16"),
        (f"id,ts,amount\na,{T},1\n".encode("utf-16-le"), "UTF-16"),
        (b"\x1f\x8b\x08\x00\x00", "compressed with gzip"),
        (b"PK\x03\x04\x14\x00", "Excel"),
    ],
)
def test_a_damaged_csv_is_one_sentence(tmp_path: Path, text: str | bytes, says: str) -> None:
    path = csv(tmp_path, text)
    for read in (published, replayed):
        with pytest.raises(InputError, match=says) as caught:
            read(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("column", "want"),
    [
        (pl.Series([1.0, None, 3.0]), ["1", None, "3"]),
        (pl.Series([1.0, float("nan"), 3.0]), ["1", None, "3"]),
        (pl.Series([7, 8, None], dtype=pl.UInt64), ["7", "8", None]),
        (pl.Series([Decimal("7"), Decimal("8"), None]), ["7", "8", None]),
        (pl.Series([Decimal("7.00"), Decimal("8.00"), None]), ["7", "8", None]),
        (pl.Series(["a", "b", "a"], dtype=pl.Categorical), ["a", "b", "a"]),
        (pl.Series(["a", "b", "a"], dtype=pl.Enum(["a", "b"])), ["a", "b", "a"]),
        (pl.Series([b"a", b"b", b"c"]), ["a", "b", "c"]),
        (pl.Series([uuid.UUID(int=n << 120 | 1 << 63).bytes for n in (1, 2, 3)]),
         [str(uuid.UUID(int=n << 120 | 1 << 63)) for n in (1, 2, 3)]),
        (pl.Series([date(2025, 1, 6)] * 3), ["2025-01-06"] * 3),
        (pl.Series([datetime(2025, 1, 6, tzinfo=UTC)] * 3),
         ["2025-01-06T00:00:00.000000+00:00"] * 3),
    ],
)  # fmt: skip
def test_ids_of_a_table(tmp_path: Path, column: pl.Series, want: list[str | None]) -> None:
    rows = both(parquet(tmp_path, id=column, amount=[1.0, 2.0, 3.0], note=column))
    assert [row["id"] for row in rows] == want
    if not isinstance(column.dtype, pl.Decimal):
        assert [row["note"] for row in rows] == want


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (pl.Series([1.0, 1.5]), r"column 'id' of .* holds the float 1\.5"),
        (pl.Series([1.0, 2.0**60]), "below 2"),
        (pl.Series([b"\xff", b"ab"]), "neither UTF-8 nor UUIDs"),
        (pl.Series([["a"], ["b"]]), "cannot be read as text: it holds values of type List"),
    ],
)
def test_ids_that_are_not_exact_are_refused(tmp_path: Path, column: pl.Series, says: str) -> None:
    path = parquet(tmp_path, id=column, amount=[1.0, 2.0])
    for read in (published, replayed):
        with pytest.raises(InputError, match=says):
            read(path)


def test_integers_that_were_written_as_floats(tmp_path: Path) -> None:
    path = parquet(tmp_path, id=["a", "b", "c"], amount=[1, 2, 3], items=[4.0, None, 5.0])
    assert [row["items"] for row in both(path)] == [4, None, 5]
    path = parquet(tmp_path, id=["a", "b", "c"], amount=[1, 2, 3], items=[4.0, 4.5, float("nan")])
    assert [repr(row["items"]) for row in both(path)] == ["4", "4.5", "None"]


class Nested(Event, forbid_unknown_fields=False):
    id: str
    ts: int
    total: dict[str, Any]
    tags: list[str]


def test_nested_columns(tmp_path: Path) -> None:
    path = parquet(tmp_path, id=["a"], total=[{"amount": 1.5, "in": {"eur": True}}], tags=[["x"]])
    (row,) = both(path, Nested)
    assert (row["total"], row["tags"]) == ({"amount": 1.5, "in": {"eur": True}}, ["x"])


class Renamed(Event, rename="camel"):
    event_id: str
    event_time: int
    card_no: str
    amount: float = msgspec.field(name="AMOUNT")


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_names_are_as_the_type_encodes_them(tmp_path: Path, suffix: str) -> None:
    rows = [{"eventId": "7", "eventTime": T, "cardNo": "c", "AMOUNT": 1.5}]
    path = tmp_path / f"a.{suffix}"
    frame = pl.DataFrame(rows)
    {"csv": frame.write_csv, "parquet": frame.write_parquet, "jsonl": frame.write_ndjson}[suffix](
        path
    )
    fields = file_fields(Renamed, id="event_id", time="event_time", key="card_no")
    (batch,) = file_messages(path, fields)
    assert (batch.times.tolist(), batch.keys) == ([T], [b"c"])
    assert msgspec.json.decode(batch.values[0]) == rows[0]
    table = FileTable.open(path, Renamed, "event_time", "ms", "event_id")
    (found,) = table.rows()
    assert found.times.tolist() == [T]
    assert msgspec.json.decode(found.values[0]) == rows[0]


class Order(Event):
    id: str = path("order.number", "order.line")
    ts: int = path("created.at")
    card: int = path("card['no.']")
    amount: Cast[float] = path("total.amount")
    price: float = path("items[0].price", default=0.0)


ORDER = {
    "order": {"number": 1001, "line": "2"},
    "created": {"at": T},
    "card": {"no.": 7},
    "total": {"amount": "12.50"},
    "items": [{"price": 2.5}],
}


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_values_at_paths(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pl.DataFrame([ORDER]).write_parquet(file)
    else:
        file.write_bytes(msgspec.json.encode(ORDER))
    fields = file_fields(Order, id="id", time="ts", key="card")
    (batch,) = file_messages(file, fields)
    assert (batch.times.tolist(), batch.keys) == ([T], [b"7"])
    assert msgspec.json.decode(batch.values[0]) == ORDER
    assert JsonFields([fields.paths_of(fields.id)]).read(batch.values[0]) == ["1001/2"]
    assert replayed(file, Order) == [ORDER]


def test_flat_columns_are_put_at_their_paths(tmp_path: Path) -> None:
    file = csv(
        tmp_path,
        f"order.number,order.line,created.at,card['no.'],total.amount\n1001,2,{T},7,12.50\n",
    )
    want = {
        "order": {"number": "1001", "line": "2"},
        "created": {"at": T},
        "card": {"no.": 7},
        "total": {"amount": 12.5},
    }
    fields = file_fields(Order, id="id", time="ts", key="card")
    (batch,) = file_messages(file, fields)
    assert (batch.times.tolist(), batch.keys) == ([T], [b"7"])
    assert msgspec.json.decode(batch.values[0]) == want
    assert replayed(file, Order) == [want]


@pytest.mark.parametrize("column", ["ID", "Id", "order_id", "payment_id", "uuid", "orderId", "key"])
@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_no_id_is_invented_where_a_column_could_hold_it(
    tmp_path: Path, column: str, suffix: str
) -> None:
    path = tmp_path / f"a.{suffix}"
    frame = pl.DataFrame({column: ["x"], "ts": [T], "amount": [1.0]})
    {"csv": frame.write_csv, "parquet": frame.write_parquet, "jsonl": frame.write_ndjson}[suffix](
        path
    )
    with pytest.raises(InputError, match=f"no column 'id' .*, but '{column}': .*name='{column}'"):
        published(path)


def test_rows_are_numbered_where_no_column_could_be_the_id(tmp_path: Path) -> None:
    path = csv(tmp_path, f"ts,amount\n{T},1\n{T},2\n")
    assert [row["id"] for row in published(path)] == ["0", "1"]
    with pytest.raises(InputError, match="names the event that each label is for"):
        list(file_messages(path, file_fields(Payment, id="id", time="ts"), topic_kind="labels"))


class Strict(Event, forbid_unknown_fields=True):
    id: str
    ts: int
    note: str | None = None


def test_an_unknown_column_is_refused_where_the_type_says_so(tmp_path: Path) -> None:
    path = csv(tmp_path, f"id,ts,notes\na,{T},x\n")
    with pytest.raises(InputError, match=r"column 'notes', which is no field of Strict.*'note' is"):
        replayed(path, Strict)


def test_a_missing_column_names_the_one_that_is_probably_meant(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no column 'amount' in .* \('amout' is there\)"):
        replayed(csv(tmp_path, f"id,ts,amout\na,{T},1\n"))
    with pytest.raises(InputError, match=r"no column 'ts' in .* \('TS' is there\)"):
        published(csv(tmp_path, f"id,TS,amount\na,{T},1\n"))
