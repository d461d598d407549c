"""Small JSON files with a checksum of their contents, so that a flipped bit is noticed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from anabranch.state.errors import StateError

_CHECKSUM = "sha256"


def seal(contents: Mapping[str, Any]) -> bytes:
    """The contents as JSON, with their checksum among them."""
    plain = msgspec.to_builtins(contents)
    return msgspec.json.format(msgspec.json.encode({**plain, _CHECKSUM: _sha256(plain)}))


def unseal(content: bytes, path: Path) -> dict[str, Any]:
    """The contents of what `seal` made, or of JSON without a checksum, as former versions wrote it.

    Raises:
        StateError: they are damaged; the message names ``path``.
    """
    try:
        found = msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise damaged(path, str(error)) from None
    checksum = found.pop(_CHECKSUM, None)
    if checksum is not None and checksum != _sha256(found):
        raise damaged(path, "its checksum does not match")
    return found


def damaged(path: Path, why: str) -> StateError:
    """The error for a file that is damaged."""
    return StateError(f"{path} is damaged ({why}): restore it from a backup")


def _sha256(contents: Mapping[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(contents, order="deterministic")).hexdigest()
