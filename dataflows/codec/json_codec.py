"""JSON, the default message format: msgspec, with compiled fast paths for whole batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import msgspec

from anabranch.dataflows.codec.json_decoder import JsonColumnDecoder, json_column_decoder
from anabranch.dataflows.codec.json_encoder import JsonPredictionEncoder
from anabranch.dataflows.codec.protocol import Codec, Message
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

    def __init__(self) -> None:
        self._encoder = msgspec.json.Encoder()

    def decoder(self, message: type[Message]) -> Callable[[bytes], Message]:
        return msgspec.json.Decoder(message).decode

    def encode(self, message: msgspec.Struct) -> bytes:
        return self._encoder.encode(message)

    def encode_all(self, messages: list[Any]) -> list[bytes]:
        lines = self._encoder.encode_lines(messages).split(b"\n")
        lines.pop()  # what follows the last line's end
        return lines

    def column_decoder(
        self, message: type[msgspec.Struct], time: str, wanted: Sequence[str]
    ) -> JsonColumnDecoder | None:
        return json_column_decoder(message, time, wanted)

    def prediction_encoder(
        self, task: Task, topic: str, model: str
    ) -> JsonPredictionEncoder | None:
        return None if task is Task.MULTICLASS else JsonPredictionEncoder(task, topic, model)
