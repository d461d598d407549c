"""The codecs by name, and which one a topic uses; see `dataflows.codec.protocol`."""

from __future__ import annotations

from anabranch.dataflows.codec.json_codec import JsonCodec
from anabranch.dataflows.codec.protocol import Codec
from anabranch.dataflows.declaration.declaration import Declaration

__all__ = ["CODECS", "Codec", "codec_of"]

CODECS: dict[str, Codec] = {codec.name: codec for codec in (JsonCodec(),)}
"""Name → codec; a new format is registered here."""


def codec_of(pipeline: Declaration, topic: str) -> Codec:
    """The codec of the messages on a topic of a pipeline."""
    return CODECS[pipeline.format_of(topic)]
