"""Claims of output topics on the embedded bus: a file beside each topic, locked by its run.

The lock is the kernel's, so it ends with the process, however that ends. It is shared, by the
processes of one cluster; who claims a topic tries first whether nobody has it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from anabranch.dataflows.bus.claims import (
    Claim,
    check_pipeline,
    decode_claim,
    encode_claim,
    here,
    in_use,
)
from anabranch.state.errors import BusError
from anabranch.state.store.permissions import umask

SUFFIX = ".writer"
_MOST_BYTES = 4096


class EmbeddedClaims:
    """The claims of one run, by topic and the file that stores each.

    Raises:
        BusError: another pipeline, or another run, writes one of the topics; or a file can't be
            written.
    """

    def __init__(self, files: Mapping[str, Path], pipeline: str, run: str) -> None:
        self._stack = ExitStack()
        claim = Claim(pipeline, run, here())
        with ExitStack() as stack:
            opened = {topic: _open(topic, path, stack) for topic, path in files.items()}
            for topic, descriptor in opened.items():
                stored = decode_claim(os.pread(descriptor, _MOST_BYTES, 0))
                check_pipeline(topic, stored, pipeline)
                if _lock(descriptor, fcntl.LOCK_EX):
                    _write(topic, files[topic], descriptor, encode_claim(claim))
                elif stored is None or stored.run != run:
                    raise in_use(topic, stored, pipeline)
                _lock(descriptor, fcntl.LOCK_SH)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()


def release(files: Mapping[str, Path]) -> None:
    """Let other pipelines claim these topics.

    Raises:
        BusError: a run is writing one of them; then none is released.
    """
    with ExitStack() as stack:
        existing = {topic: path for topic, path in files.items() if path.exists()}
        opened = {topic: _open(topic, path, stack) for topic, path in existing.items()}
        for topic, descriptor in opened.items():
            stored = decode_claim(os.pread(descriptor, _MOST_BYTES, 0))
            if stored is not None and not _lock(descriptor, fcntl.LOCK_EX):
                raise BusError(
                    f"topic {topic} is being written by pipeline {stored.pipeline!r} "
                    f"({stored.where}): stop that run first"
                )
        for topic, descriptor in opened.items():
            _write(topic, files[topic], descriptor, b"")


def _open(topic: str, path: Path, stack: ExitStack) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666 & ~umask())
    except OSError as error:
        raise BusError(f"topic {topic}: {path} can't be written: {error.strerror}") from None
    stack.callback(os.close, descriptor)
    return descriptor


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _write(topic: str, path: Path, descriptor: int, content: bytes) -> None:
    try:
        os.pwrite(descriptor, content, 0)
        os.ftruncate(descriptor, len(content))
    except OSError as error:
        raise BusError(f"topic {topic}: {path} can't be written: {error.strerror}") from None
