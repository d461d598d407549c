"""Dead letters that fit their topic: a payload too large for it is cut, a detail likewise.

A message may be as large as its topic takes and still make a larger dead letter: bytes that are not
UTF-8 grow by a third as base64, and quotes and control characters by up to six times as JSON text.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from anabranch.dataflows.batch.dead_letters import payload_fields
from anabranch.dataflows.messages.dead_letter_reasons import DeadLetterReason
from anabranch.dataflows.messages.outputs import Cause, DeadLetter

_DETAIL = 200  # characters that are kept of a detail, unless all of it fits

Encode = Callable[[DeadLetter], bytes]


def output_too_large(
    cause: Cause, topic: str, size: int, most: int, payload: bytes | None = None
) -> DeadLetter:
    """The dead letter in place of an output of ``size`` bytes, of which ``topic`` takes ``most``.

    ``payload`` is that of the message that caused the output, where it is at hand.
    """
    return DeadLetter(
        topic=cause.topic,
        partition=cause.partition,
        offset=cause.offset,
        reason=DeadLetterReason.OUTPUT_TOO_LARGE.value,
        detail=f"its message for {topic} has {size:,} bytes, and the topic takes {most:,}",
        **({} if payload is None else payload_fields(payload)),
    )


def encode_within(letter: DeadLetter, encode: Encode, most: int | None) -> bytes:
    """``letter`` as a message of at most ``most`` bytes, with as much of its payload as fits.

    A letter without any payload may still be larger, where ``most`` is a few hundred bytes.
    """
    whole = encode(letter)
    if most is None or len(whole) <= most:
        return whole
    text, base64 = letter.payload, letter.payload_base64
    payload = base64 or text or ""
    cut = msgspec.structs.replace(letter, payload=None, payload_base64=None)
    if payload:
        cut.truncated_from = _byte_count(text, base64)
    if len(encode(cut)) > most:
        cut.detail = f"{letter.detail[:_DETAIL]}…" if len(letter.detail) > _DETAIL else cut.detail

    def with_first(length: int) -> bytes:
        if base64 is not None:
            cut.payload_base64 = payload[: length // 4 * 4]  # whole groups can be decoded
        elif text is not None:
            cut.payload = payload[:length]
        return encode(cut)

    fits, too_long = 0, min(len(payload), most) + 1  # no character takes less than a byte
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if len(with_first(middle)) <= most:
            fits = middle
        else:
            too_long = middle
    return with_first(fits)


def _byte_count(text: str | None, base64: str | None) -> int:
    if base64 is not None:
        return len(base64) // 4 * 3 - base64.count("=", -2)
    return len((text or "").encode())
