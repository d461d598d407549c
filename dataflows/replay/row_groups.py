"""One Parquet file of many frames, of which a few are in memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import polars as pl
from polars.io.plugins import register_io_source


def write_frames(path: Path, frames: Iterator[pl.DataFrame], rows: int) -> None:
    """Write frames of one schema, with row groups of so many rows; nothing if there is no frame.

    Whatever ``frames`` raises is raised.
    """
    first = next(frames, None)
    if first is None:
        return
    failure: list[BaseException] = []

    def make(*_: object) -> Iterator[pl.DataFrame]:
        try:
            yield from chain([first], frames)
        except BaseException as error:
            failure.append(error)
            raise

    source = register_io_source(make, schema=first.schema)
    try:
        source.sink_parquet(path, compression="lz4", row_group_size=rows)
    except pl.exceptions.PolarsError as error:
        raise (failure[0] if failure else error) from None
