"""Recognises files that are compressed, or text in another encoding than UTF-8, by their bytes."""

from __future__ import annotations

from pathlib import Path

from anabranch.state.errors import InputError

_BEGINNINGS = {
    b"\x1f\x8b": "is compressed with gzip: decompress it (gunzip) and name the result",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd: decompress it (unzstd) and name the result",
    b"BZh": "is compressed with bzip2: decompress it (bunzip2) and name the result",
    b"\xfd7zXZ": "is compressed with xz: decompress it (unxz) and name the result",
    b"PK\x03\x04": "is a ZIP archive or an Excel workbook: extract it, or save it as CSV",
    b"\xd0\xcf\x11\xe0": "is an old Excel workbook: save it as CSV",
    b"PAR1": "is a Parquet file: rename it to .parquet",
    b"Obj\x01": "is an Avro file: convert it to JSONL or Parquet",
    b"ARROW1": "is an Arrow file: convert it to Parquet",
    b"\xff\xfe": "is text in UTF-16: save it as UTF-8",
    b"\xfe\xff": "is text in UTF-16: save it as UTF-8",
}


def check_encoding(path: Path) -> None:
    """Raise if a file of text is anything else than UTF-8 by its first bytes.

    Raises:
        InputError: says what it is, and what to do.
    """
    with path.open("rb") as file:
        head = file.read(16)
    for beginning, what in _BEGINNINGS.items():
        if head.startswith(beginning):
            raise InputError(f"{path} {what}")
    if len(head) >= 4 and 0 in head and (not any(head[1:8:2]) or not any(head[0:8:2])):
        raise InputError(f"{path} is text in UTF-16: save it as UTF-8")
