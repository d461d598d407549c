"""The format of messages on topics: what a codec must do, and what it may do to be fast.

A codec turns bytes into typed messages and messages into bytes. What reads or writes a
topic of a pipeline goes through it: the source decodes events, labels and control messages, the
sink encodes predictions and all other outputs, and after a crash reads back which of them are
already published; `read_outputs`, `skew`, `rollout` and `demo` read with it too.

To add a format, write one file with a subclass of `Codec`, a declaration of it in
`dataflows.declaration.formats` and in `anabranch.__init__`, a line in `dataflows.codec.make_codec`,
and one in `dataflows.schemas.asyncapi` with its content type; `Declaration.format_of` says which
format a topic has. A pipeline may also be given a codec itself, or a function of a
message's bytes (`Custom`). Only `Codec.name`, `Codec.errors`, `Codec.decoder` and `Codec.encode`
are required. `Codec.column_decoder` and `Codec.prediction_encoder` are fast paths for whole
batches: without them messages pass through one struct each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

import msgspec
from numpy.typing import NDArray

from anabranch.dataflows.batch.dead_letters import Fault
from anabranch.dataflows.declaration.shape import Shape
from anabranch.dataflows.messages.dead_letter_reasons import DeadLetterReason
from anabranch.models.learners.learner import Predictions, Task
from anabranch.state.compile import I64
from anabranch.state.keys.text_column import Texts

Message = TypeVar("Message")

Columns = dict[str, Sequence[Any]]
"""Field name → one value per message."""

DecodedColumns = tuple[I64, Columns, tuple[int, int, int]]
"""Event times (``(n,) int64``, epoch ms), columns, and three extremes: the least and the greatest
event time, and the least publishing time."""


class Undecodable(Exception):
    """A message that cannot be decoded: the reason of its dead letter, and a sentence."""

    def __init__(self, reason: DeadLetterReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Filtered(Exception):
    """A message that is none of the pipeline's: it is counted and skipped, and no dead letter."""


class ColumnDecoder(Protocol):
    """Decodes whole batches of one message type straight into columns.

    One that ignores fields which the type does not have may count them: then it has a method
    ``take_unknown`` and an attribute ``has_new_fields``, as `JsonColumnDecoder` has.
    """

    def read(self, values: list[bytes], published: I64) -> DecodedColumns | None:
        """Times and columns of the messages; None if any of them needs the general path.

        ``published`` is ``(n,) int64`` epoch ms, C-contiguous.
        """


class PredictionEncoder(Protocol):
    """Encodes the predictions that one model made for the events of one topic."""

    def encode(
        self,
        ids: Texts,
        times: I64,
        offsets: NDArray[Any],
        partition: int,
        versions: Sequence[int],
        predictions: Predictions,
    ) -> list[bytes]:
        """One message per event of ``partition``; ``ids`` need no escaping (`Texts.plain`)."""


class Codec(ABC):
    """One message format. An instance is shared by all readers and writers of a process."""

    name: ClassVar[str]
    """By which `Declaration.format_of` names it."""

    errors: ClassVar[tuple[type[Exception], ...]]
    """What the functions made by `decoder` raise for bytes that they cannot decode.

    `msgspec.ValidationError` among them means a readable message that does not fit its type, an
    `Undecodable` says its reason itself, and `Filtered` means that the message is none to be used.
    What a schema registry raises that does not respond (`UnreachableError`) is not among them.
    """

    malformed: ClassVar[DeadLetterReason] = DeadLetterReason.MALFORMED
    """The reason of dead letters whose bytes are not in this format at all."""

    makes_texts: ClassVar[bool] = False
    """Whether `column_decoder` takes ``texts``; otherwise columns are made texts afterwards."""

    tells_unknown: ClassVar[bool] = False
    """Whether `unknown_fields` tells of any."""

    @abstractmethod
    def decoder(self, message: type[Message]) -> Callable[[bytes], Message]:
        """A function that decodes one message into ``message``.

        ``message`` is a `msgspec.Struct` type, or ``dict`` for whatever fields there are. The
        fields of a struct are found by their paths, and cast where that is declared; see `Shape`.
        Fields that it does not declare are ignored unless it forbids them.
        """

    def whole_decoder(self) -> Callable[[bytes], Any]:
        """A function that decodes one message, with the envelope around its fields, if any."""
        return self.decoder(dict)

    def unknown_fields(self, shape: Shape, value: bytes) -> Mapping[str, Any]:
        """The fields of a valid message that its type does not have: path → value.

        A format in which they can't be told from a schema has none.
        """
        return {}

    @abstractmethod
    def encode(self, message: msgspec.Struct) -> bytes:
        """One message as bytes."""

    def encode_all(self, messages: list[Any]) -> list[bytes]:
        """Several messages as bytes."""
        return [self.encode(message) for message in messages]

    def fault(self, error: Exception) -> Fault:
        """Why a message could not be decoded; ``error`` is one of `errors`."""
        if isinstance(error, Undecodable):
            return error.reason, str(error)
        mismatch = isinstance(error, msgspec.ValidationError)
        return DeadLetterReason.TYPE_MISMATCH if mismatch else self.malformed, str(error)

    def column_decoder(
        self,
        message: type[msgspec.Struct],
        time: str,
        wanted: Sequence[str],
        texts: Collection[str] = (),
    ) -> ColumnDecoder | None:
        """A fast decoder for this message type; None if there is none.

        Args:
            message: the type, whose field ``time`` is an integer (epoch ms).
            time: the field that holds the event time.
            wanted: the fields of which columns are made.
            texts: those whose columns are texts, whatever their type (`casts.text_of`).
        """
        return None

    def prediction_encoder(self, task: Task, topic: str, model: str) -> PredictionEncoder | None:
        """A fast encoder for the predictions of ``model`` on events of ``topic``; None if none."""
        return None
