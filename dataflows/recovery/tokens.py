"""What the engine's recovery store keeps of each step: offsets, and tokens of state partitions.

The contents of a state partition are in a database of its own; the engine keeps only a token that
says which generation of it belongs to an epoch. All of it is handed to the engine as bytes, so that
what it pickles names no class of this program: a module can move without a state directory
becoming unreadable.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import msgspec

SOURCE, SINK = "source", "sink"
"""Ids of the first and the last step in the engine."""

TOGETHER, BY_SHARD, MODELS_STEP = "windows_and_models", "windows", "models"
"""Ids of the stateful steps in the engine, without the number of the layout.

A single worker has one step for windows and models; several workers have one for each.
"""


class Token(msgspec.Struct, frozen=True, array_like=True):
    """Which generation of which state partition belongs to an epoch.

    Attributes:
        partition: its name, as ``windows-3`` or ``models``.
        id: distinguishes it from another one of the same name; random.
        generation: how often it had been committed to.
    """

    partition: str
    id: str
    generation: int


class PartitionState(msgspec.Struct, frozen=True, array_like=True):
    """How far the source has read one input partition number.

    Attributes:
        offsets: the next offset to read, by topic that has such a partition; also of topics that
            are no longer inputs.
        latest: the time reached, by topic (epoch ms), see `dataflows.bus.merge_times`.
        watermark: that of the worker's reader (epoch ms).
        token: of the ids seen; None in a run without state.
        topic_ids: which topics the offsets are of (`Bus.topic_ids`), by name.
    """

    offsets: dict[str, int]
    latest: dict[str, int]
    watermark: int
    token: Token | None
    topic_ids: dict[str, str] = {}


class SinkState(msgspec.Struct, frozen=True, array_like=True):
    """How far the sink has published to one partition number of the output topics.

    Attributes:
        ends: the offsets up to which they are confirmed, by topic; also of former outputs.
        topic_ids: as of `PartitionState`.
    """

    ends: dict[str, int]
    topic_ids: dict[str, str]


Tokens = tuple[Token | None, Token | None]
"""Of windows and models, where one step has both."""

StepState = bytes | None
"""What a step gives the engine in ``snapshot()``; None from a run without state."""


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit of a state partition: how long it took, and the bytes its files take now."""

    partition: str
    seconds: float
    disk_bytes: int


_SEAL = b"\xc1"  # MessagePack never begins so; states of former versions have no checksum
_ENCODER = msgspec.msgpack.Encoder()
_TOKEN = msgspec.msgpack.Decoder(Token)
_TOKENS = msgspec.msgpack.Decoder(Tokens)
_PARTITION = msgspec.msgpack.Decoder(PartitionState)
_SINK = msgspec.msgpack.Decoder(SinkState)


def encode(state: Token | Tokens | PartitionState | SinkState | None) -> StepState:
    """The bytes that the engine keeps, with a checksum; None stays None."""
    if state is None:
        return None
    packed = _ENCODER.encode(state)
    return _SEAL + zlib.crc32(packed).to_bytes(4, "little") + packed


def _unsealed(state: bytes) -> bytes:
    if state[:1] != _SEAL:
        return state
    if zlib.crc32(state[5:]).to_bytes(4, "little") != state[1:5]:
        raise msgspec.DecodeError("its checksum does not match")
    return state[5:]


def decode_token(state: StepState) -> Token | None:
    """The token that `encode` was given.

    Raises:
        msgspec.MsgspecError: the bytes are something else.
    """
    return None if state is None else _TOKEN.decode(_unsealed(state))


def decode_tokens(state: StepState) -> Tokens:
    """The tokens of windows and models that `encode` was given.

    Raises:
        msgspec.MsgspecError: the bytes are something else.
    """
    return (None, None) if state is None else _TOKENS.decode(_unsealed(state))


def decode_partition(state: StepState) -> PartitionState | None:
    """The state of an input partition that `encode` was given.

    Raises:
        msgspec.MsgspecError: the bytes are something else.
    """
    return None if state is None else _PARTITION.decode(_unsealed(state))


def decode_sink(state: bytes | dict[str, int] | None) -> SinkState:
    """The state of the sink that `encode` was given, or what former versions kept of it.

    Raises:
        msgspec.MsgspecError: it is something else.
    """
    if isinstance(state, bytes):
        return _SINK.decode(_unsealed(state))
    return SinkState(msgspec.convert(state or {}, dict[str, int]), {})
