"""Who writes an output topic: one pipeline, and one run of it at a time.

A pipeline finds what it has published already by the source coordinates in its outputs. Those of
another pipeline on the same input have the same coordinates, so on a shared topic each would take
the other's messages for its own, and leave its own out. So a run *claims* its outputs on the bus
before it reads or writes them. The claim stays when the run ends, and names the pipeline; while the
run is active it excludes other runs of that pipeline, too.
"""

from __future__ import annotations

import os
import socket
from typing import Protocol, Self

import msgspec

from anabranch.state.errors import BusError


class Claim(msgspec.Struct, frozen=True, omit_defaults=True):
    """A claim of an output topic, as it is stored.

    Attributes:
        pipeline: its name.
        run: identifies the run, and the next run from its state.
        where: the host and process, for people.
        beat: rises for as long as the run is active, where nothing else shows that it is.
        active: whether the run has not ended in an orderly way.
    """

    pipeline: str
    run: str
    where: str
    beat: int = 0
    active: bool = True


class OutputClaims(Protocol):
    """The claims of one run; a context manager that keeps them while the block runs.

    Leaving the block raises a `BusError` if another run has taken one over meanwhile; then the
    process has got SIGTERM.
    """

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: object, error: object, traceback: object) -> None: ...


def here() -> str:
    """This host and process, for people."""
    return f"{socket.gethostname()}, process {os.getpid()}"


def encode_claim(claim: Claim) -> bytes:
    """A claim as JSON."""
    return msgspec.json.encode(claim)


def decode_claim(stored: bytes | str | None) -> Claim | None:
    """The claim that was stored; None if there is none, or something else."""
    if not stored:
        return None
    try:
        return msgspec.json.decode(stored, type=Claim)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def check_pipeline(topic: str, stored: Claim | None, pipeline: str) -> None:
    """Check that no other pipeline writes the topic.

    Raises:
        BusError: one does.
    """
    if stored is not None and stored.pipeline != pipeline:
        raise BusError(
            f"topic {topic} is an output of pipeline {stored.pipeline!r}, so pipeline "
            f"{pipeline!r} can't write there: give it topics of its own with topics=Topics(…), or, "
            f"if {stored.pipeline!r} is no longer run, pass the topic on with `anabranch topics "
            f"release {topic}`"
        )


def in_use(topic: str, stored: Claim | None, pipeline: str) -> BusError:
    """The error for a topic that another run of the pipeline is writing."""
    where = "" if stored is None else f" ({stored.where})"
    return BusError(
        f"another run of pipeline {pipeline!r}{where} writes topic {topic}: two would publish each "
        "prediction twice; stop that run first, or give the other pipeline a name and topics of "
        "its own"
    )
