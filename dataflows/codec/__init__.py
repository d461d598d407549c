"""The codecs of formats, and which one a topic uses; see `dataflows.codec.protocol`."""

from __future__ import annotations

from functools import cache

import msgspec

from anabranch.dataflows.codec.json_codec import JsonCodec
from anabranch.dataflows.codec.protocol import Codec
from anabranch.dataflows.declaration.conditions import Condition
from anabranch.dataflows.declaration.declaration import Declaration
from anabranch.dataflows.declaration.formats import (
    Avro,
    CloudEvents,
    Connect,
    Csv,
    Custom,
    Debezium,
    Format,
    Json,
    JsonSchema,
    MessagePack,
    Protobuf,
    is_codec,
)

__all__ = ["CODECS", "Codec", "codec_of", "make_codec"]

CODECS: dict[str, Codec] = {codec.name: codec for codec in (JsonCodec(),)}
"""Name → codec, of the formats without settings."""


def codec_of(pipeline: Declaration, topic: str, labels: bool = False) -> Codec:
    """The codec of the messages on a topic of a pipeline; one for all that ask in a process.

    ``labels``: of its labels, where it has events too.

    Raises:
        DeclarationError: the format's schema can't be used.
    """
    condition = pipeline.condition_of(topic, labels)
    declared = pipeline.format_of(topic, labels)
    if is_codec(declared):
        codec: Codec = declared
        return codec if condition is None else _selective(codec, condition, pipeline.time_scale)
    written, subject, unit_ms = None, "", pipeline.time_scale
    if topic == pipeline.topics.predictions:
        unit_ms = 1.0  # whatever that of the events is
        written = _written(pipeline)
        subject = getattr(declared, "subject", None) or f"{topic}-value"
    if condition is not None:
        return _in_envelope(declared, pipeline.time_scale, condition)
    return make_codec(declared, unit_ms, subject, written)


@cache
def _selective(codec: Codec, condition: Condition, unit_ms: float) -> Codec:
    from anabranch.dataflows.codec.envelope_codec import EnvelopeCodec

    return EnvelopeCodec(codec, None, unit_ms, condition)


@cache
def _in_envelope(format: Format, unit_ms: float, condition: Condition | None) -> Codec:
    from anabranch.dataflows.codec.envelope_codec import EnvelopeCodec

    return EnvelopeCodec(make_codec(_inside(format), unit_ms), format, unit_ms, condition)


def _inside(format: Format) -> Format:
    """The format of the messages as they are, the envelope included."""
    if isinstance(format, Debezium | Connect | CloudEvents):
        return _inside(format.format)
    return format


@cache
def make_codec(
    format: Format,
    unit_ms: float = 1.0,
    subject: str = "",
    written: type[msgspec.Struct] | None = None,
) -> Codec:
    """The codec of a format.

    Args:
        format: as it is declared.
        unit_ms: the pipeline's time unit, in milliseconds.
        subject: under which a schema is registered of what is written.
        written: the struct type that is written, if any.

    >>> make_codec(Json()).name
    'json'
    """
    # Most pipelines are in JSON: what other formats need is imported when it is used.
    if isinstance(format, Json):
        return CODECS["json"]
    if isinstance(format, Debezium | Connect | CloudEvents):
        return _in_envelope(format, unit_ms, None)
    if isinstance(format, Avro):
        from anabranch.dataflows.codec.avro_codec import AvroCodec

        return AvroCodec(format, unit_ms, subject, written)
    from anabranch.dataflows.codec import simple_codecs

    if isinstance(format, MessagePack):
        return simple_codecs.MessagePackCodec(unit_ms)
    if isinstance(format, Csv):
        return simple_codecs.CsvCodec(format)
    if isinstance(format, Custom):
        return simple_codecs.CustomCodec(format, unit_ms)
    if isinstance(format, JsonSchema):
        return simple_codecs.JsonSchemaCodec(format, subject, written)
    if isinstance(format, Protobuf):
        from anabranch.dataflows.codec.protobuf_codec import ProtobufCodec

        return ProtobufCodec(format, unit_ms)
    raise TypeError(f"no codec for {format!r}")


def _written(pipeline: Declaration) -> type[msgspec.Struct] | None:
    if isinstance(pipeline.output_format, Json):
        return None
    from anabranch.dataflows.codec.written_schemas import written_type

    return written_type(pipeline.task, pipeline.candidates is not None)
