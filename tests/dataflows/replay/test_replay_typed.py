"""Typed rows of a table equal the rows that their JSON decodes to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from river import linear_model, tree

from anabranch import Event, Pipeline, count_distinct, field, hashed, inline, one_hot, window
from anabranch.dataflows.batch.typed_rows import TypedRows
from anabranch.dataflows.files import file_rows
from anabranch.dataflows.files.typed_frames import TypedFrames
from anabranch.dataflows.replay.replay import ReplayReport, ReplaySettings, replay
from anabranch.state.errors import InputError
from tests.support.small_disk import mounted

T0 = 1_736_121_600_000
Row = dict[str, Any]


class Thing(Event):
    id: str
    ts: int
    box: str
    score: float
    size: int
    weight: float | None
    good: bool
    place: str


THINGS = Pipeline(
    name="things",
    event=Thing,
    label=inline("good"),
    features=[
        field("score"),
        field("size"),
        field("weight", fill_null=-1.0),
        one_hot("place", ("here", "there")),
        hashed("place", buckets=3),
        window("box", "score", over="1h", stats=("count", "max")),
        window("box", "weight", over="1h", stats=("count", "mean")),
        count_distinct("box", "place", over="1h"),
        window("place", "size", over="2h", stats=("count", "sum")),
    ],
    model=linear_model.LogisticRegression(),
    metrics=(),
    with_features=True,
)


def rows(count: int = 400) -> list[Row]:
    return [
        {
            "id": f"t{i}" if i % 50 else f"tö\0{i}",
            "ts": T0 + i * 60_000,
            "box": f"b{i * i % 7}",
            "score": i * 7 % 11 / 10 - 0.3,
            "size": i % 5 - 2,
            "weight": None if i % 4 == 0 else i / 3,
            "good": i % 3 == 0,
            "place": ("here", "there", "", "nowhere\n")[i * 5 % 4],
        }
        for i in range(count)
    ]


SCHEMA = {
    "id": pl.String, "ts": pl.Int64, "box": pl.String, "score": pl.Float64, "size": pl.Int32,
    "weight": pl.Float64, "good": pl.Boolean, "place": pl.String,
}  # fmt: skip


def replayed(
    directory: Path, frame: pl.DataFrame, pipeline: Pipeline = THINGS, **settings: Any
) -> tuple[pl.DataFrame, list[Row], ReplayReport]:
    """Rows and dead letters of a replay."""
    directory.mkdir(exist_ok=True)
    frame.write_parquet(directory / "e.parquet", row_group_size=64)
    to, dead = directory / "rows.parquet", directory / "dead.jsonl"
    found = replay(
        pipeline,
        ReplaySettings(events=str(directory / "e.parquet"), rows=to, dead_letters=dead, **settings),
    )
    letters = list(map(json.loads, dead.read_bytes().splitlines()))
    for letter in letters:
        if letter["reason"] == "event time ahead":
            letter["detail"] = found.first_rejected = ""  # the time of day is in it
    return pl.read_parquet(to), letters, found


def both(
    directory: Path, monkeypatch: pytest.MonkeyPatch, frame: pl.DataFrame, **settings: Any
) -> tuple[pl.DataFrame, list[Row]]:
    """The results of both ways, which must be equal."""
    taken: list[bool] = []
    make = TypedFrames.rows

    def watched(self: TypedFrames, *args: Any) -> TypedRows | None:
        made = make(self, *args)
        taken.append(made is not None)
        return made

    monkeypatch.setattr(TypedFrames, "rows", watched)
    monkeypatch.setattr(file_rows, "PARQUET_ROWS", 100)
    typed, dead, found = replayed(directory / "typed", frame, **settings)
    assert all(taken)
    assert taken
    monkeypatch.setattr(TypedFrames, "rows", lambda *_: None)
    decoded, letters, told = replayed(directory / "decoded", frame, **settings)
    assert_frame_equal(typed, decoded, check_exact=True)
    assert dead == letters
    assert found == told
    return typed, dead


@pytest.mark.parametrize("batch", [1, 33, 8192])
def test_typed_rows_equal_decoded_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    found, dead = both(tmp_path, monkeypatch, pl.DataFrame(rows(), SCHEMA), batch_size=batch)
    assert len(found) == 400
    assert not dead


BAD: dict[str, Row] = {
    "no id": {"id": None},
    "no time within the years": {"ts": 10**17},
    "ahead of the clock": {"ts": 4_102_444_800_000},
    "late": {"ts": T0 - 86_400_000},
    "no key": {"box": None},
    "no number": {"score": None},
    "infinite": {"score": float("inf")},
    "not a number": {"score": float("nan")},
    "too large for a model": {"score": 1e101},
    "no whole number": {"size": None},
    "no label": {"good": None},
    "nothing where nothing may be": {"weight": float("nan")},
    "infinite where nothing may be": {"weight": float("-inf")},
    "an id that was there": {"id": "t3"},
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
@pytest.mark.parametrize("batch", [7, 8192])
def test_an_ambiguous_row_is_decoded_from_json_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Row, batch: int
) -> None:
    things = rows(60)
    for i in (20, 21, 59):
        things[i] |= change
    found, dead = both(tmp_path, monkeypatch, pl.DataFrame(things, SCHEMA), batch_size=batch)
    assert len(found) + len(dead) == 60


OTHER = {
    "a float that is no double": {"score": pl.Float32},
    "a whole number of 64 bits without a sign": {"size": pl.UInt64},
    "a time that is text": {"ts": pl.String},
    "a text of few values": {"place": pl.Categorical},
}


@pytest.mark.parametrize("cast", OTHER.values(), ids=OTHER)
def test_columns_of_other_types_are_decoded(
    tmp_path: Path, cast: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    things = [{**row, "size": abs(row["size"])} for row in rows(40)]
    frame = pl.DataFrame(things, SCHEMA)
    given, _, _ = replayed(tmp_path / "given", frame.cast(cast))
    monkeypatch.setattr(TypedFrames, "rows", lambda *_: None)
    decoded, _, _ = replayed(tmp_path / "decoded", frame.cast(cast))
    assert_frame_equal(given, decoded, check_exact=True)


def test_a_type_that_says_more_than_its_annotations_is_decoded() -> None:
    class Checked(Event):
        id: str
        ts: int
        size: int

        def __post_init__(self) -> None:
            if self.size > 1:
                raise ValueError("too much")

    frame = pl.DataFrame({"id": ["a"], "ts": [T0], "size": [2]})
    assert TypedFrames(Checked, "id", "ts").rows(frame, frame["ts"].to_numpy()) is None


@pytest.mark.parametrize("kind", ["text", "whole numbers"])
def test_labels_of_several_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    several = Pipeline(
        name="things",
        event=Thing,
        label=inline("place" if kind == "text" else "size"),
        features=[field("score")],
        model=tree.HoeffdingTreeClassifier(grace_period=20),
        metrics=(),
    )
    frame = pl.DataFrame(rows(120), SCHEMA)
    found, _ = both(tmp_path, monkeypatch, frame, pipeline=several, batch_size=50)
    assert found["label"].to_list() == frame["place" if kind == "text" else "size"].to_list()


def test_features_only_equal_those_of_a_whole_replay(tmp_path: Path) -> None:
    frame = pl.DataFrame(rows(), SCHEMA)
    whole, _, told = replayed(tmp_path / "whole", frame)
    only, _, found = replayed(tmp_path / "only", frame, features_only=True)
    assert_frame_equal(only, whole.drop("model", "version", "prediction", "score_"))
    assert (found.rows, found.labelled) == (told.rows, told.labelled) == (400, 400)
    with pytest.raises(InputError, match="can't write a state"):
        replayed(tmp_path / "state", frame, features_only=True, state=tmp_path / "s")


def test_a_full_disk_is_one_error_and_leaves_existing_files(tmp_path: Path) -> None:
    many = pl.concat([pl.DataFrame(rows(4000), SCHEMA)] * 20)
    frame = many.with_columns(
        pl.int_range(len(many)).cast(pl.String).alias("id"),
        (T0 + pl.int_range(len(many), dtype=pl.Int64) * 60_000).alias("ts"),
    )
    frame.write_parquet(tmp_path / "e.parquet")
    with mounted(tmp_path / "disk", 2) as disk:
        settings = ReplaySettings(events=str(tmp_path / "e.parquet"), rows=disk / "rows.parquet")
        settings.rows.write_text("of yesterday")
        with pytest.raises(InputError, match="can't be written: No space left"):
            replay(THINGS, settings)
        assert [path.name for path in disk.iterdir()] == ["rows.parquet"]
        assert settings.rows.read_text() == "of yesterday"
