"""Where the reading of an input partition started, by topic; kept for the lineage of models."""

from __future__ import annotations

from pathlib import Path

import msgspec

from anabranch.dataflows.recovery.sealed_json import damaged, unseal

START_OFFSETS = "start_offsets.json"
"""The file beside an input partition's state that has them."""


def read_start_offsets(path: Path) -> dict[str, int | None]:
    """By topic; None stands for history that was read in place of what lies before the offset.

    Empty for a state that did not keep them.

    Raises:
        StateError: the file is damaged.
    """
    try:
        content = path.read_bytes()
    except OSError:
        return {}
    found = unseal(content, path)
    try:
        # Former versions wrote the offsets alone.
        return msgspec.convert(found.get("offsets", found), dict[str, int | None])
    except msgspec.ValidationError as error:
        raise damaged(path, str(error)) from None
