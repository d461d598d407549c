"""JSON, the default message format: msgspec, with compiled fast paths for whole batches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from anabranch.dataflows.codec.json_decoder import JsonColumnDecoder, json_column_decoder
from anabranch.dataflows.codec.json_encoder import JsonPredictionEncoder
from anabranch.dataflows.codec.protocol import Codec, Message
from anabranch.dataflows.declaration.shape import Shape
from anabranch.dataflows.messages.dead_letter_reasons import DeadLetterReason
from anabranch.models.learners.learner import Task


class JsonCodec(Codec):
    """One JSON object per message, in UTF-8.

    >>> codec = JsonCodec()
    >>> codec.decoder(dict)(b'{"id":"a"}')
    {'id': 'a'}
    """

    name: ClassVar[str] = "json"
    errors: ClassVar[tuple[type[Exception], ...]] = (
        msgspec.DecodeError,
        UnicodeDecodeError,
        RecursionError,
    )
    malformed: ClassVar[DeadLetterReason] = DeadLetterReason.NOT_JSON
    makes_texts: ClassVar[bool] = True
    tells_unknown: ClassVar[bool] = True

    def __init__(self) -> None:
        self._encoder = msgspec.json.Encoder()

    def decoder(self, message: type[Message]) -> Callable[[bytes], Message]:
        if not issubclass(message, msgspec.Struct) or Shape.of(message).is_plain:
            return msgspec.json.Decoder(message).decode
        from_mapping, decode = Shape.of(message).from_mapping, msgspec.json.Decoder().decode
        return lambda value: from_mapping(decode(value))

    def unknown_fields(self, shape: Shape, value: bytes) -> Mapping[str, Any]:
        return shape.unknown(msgspec.json.decode(value))

    def encode(self, message: msgspec.Struct) -> bytes:
        return self._encoder.encode(message)

    def encode_all(self, messages: list[Any]) -> list[bytes]:
        lines = self._encoder.encode_lines(messages).split(b"\n")
        lines.pop()  # what follows the last line's end
        return lines

    def column_decoder(
        self,
        message: type[msgspec.Struct],
        time: str,
        wanted: Sequence[str],
        texts: Collection[str] = (),
    ) -> JsonColumnDecoder | None:
        return json_column_decoder(message, time, wanted, texts)

    def prediction_encoder(
        self, task: Task, topic: str, model: str
    ) -> JsonPredictionEncoder | None:
        return None if task is Task.MULTICLASS else JsonPredictionEncoder(task, topic, model)
