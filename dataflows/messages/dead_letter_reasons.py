"""The reasons of dead letters, and what each of them means.

``python -m anabranch.dataflows.messages.dead_letter_reasons`` prints them as a page of Markdown.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class DeadLetterReason(StrEnum):
    """Why a message is on ``<pipeline>.dead-letters``.

    The value is the ``reason`` of the dead letter and the label of the metric, so it must not
    change. ``description`` says what it means and what to do.
    """

    description: str

    def __new__(cls, value: str, description: str) -> Self:
        reason = str.__new__(cls, value)
        reason._value_ = value
        reason.description = description
        return reason

    MALFORMED = (
        "malformed message",
        "The bytes are not in the format of their topic. Topics in JSON say `not JSON`.",
    )
    NOT_JSON = "not JSON", "The bytes are not one JSON object in UTF-8."
    UNKNOWN_SCHEMA = (
        "unknown schema",
        "The message names a schema by its id, and the schema registry has none with it.",
    )
    TYPE_MISMATCH = (
        "does not fit the type",
        "A field is missing, has another type than its declaration, can't be cast to it, or is "
        "unknown to a type that forbids that; or `__post_init__` of its type raised an exception, "
        "which `detail` has with file and line.",
    )
    INVALID_TIME = (
        "not a time",
        "The time field is neither a number in the pipeline's `time_unit` (or its digits as text) "
        "nor ISO-8601 text, or is outside the years 1 to 9999.",
    )
    TIME_AHEAD = (
        "event time ahead",
        "The event time is later than the publishing time, or than the worker's clock, by more "
        "than `max_clock_skew`.",
    )
    NUMBER_TOO_LARGE = (
        "number too large",
        "A number is beyond ±1e100, which no model could square.",
    )
    LATE = (
        "late",
        "The event is older than the newest event read so far by more than `allowed_lateness`.",
    )
    DUPLICATE_ID = (
        "duplicate id",
        "An event with this id came within `dedup_window`; or one still waits for its label: then "
        "this one was predicted, but will not be learned.",
    )
    FEATURE_TOO_LARGE = (
        "feature too large",
        "A feature of the event is beyond ±1e100, which no model could square.",
    )
    MODEL_FAILED = (
        "model failed",
        "The model, or a function in it, raised an exception on the event or the label: `detail` "
        "has it, with the file and the line. An event that can't be predicted is not learned "
        "either, and where `fallback=` is declared, that serves it instead of a dead letter; with "
        "labels in the events, one that can't be learned has been predicted. More than "
        "`max_model_failures` in a row end the run.",
    )
    NO_CANDIDATES = "no candidates", "The list of candidates of a ranking event is empty."
    TOO_MANY_CANDIDATES = (
        "too many candidates",
        "A ranking event has more candidates than `max_candidates`.",
    )
    REPEATED_CANDIDATE = (
        "repeated candidate",
        "The list of candidates of a ranking event holds one of them more than once.",
    )
    CONTROL_CHARACTER = (
        "control character",
        "The id of a ranking event, or a candidate, holds the character U+001F, which separates "
        "the two in the ids of rows.",
    )
    CANDIDATE_MISMATCH = (
        "does not fit the candidates",
        "A list field of a ranking event has another length than its list of candidates.",
    )
    LABEL_WITHOUT_EVENT = (
        "label without event",
        "No event with the label's id was predicted, or none came within `early_buffer`.",
    )
    TOO_MANY_EARLY_LABELS = (
        "too many early labels",
        "More labels came before their events than are buffered; this one was the oldest.",
    )
    LABEL_WITHOUT_VALUE = (
        "label without value",
        "The target field of the label is null, or not a value that the task can learn.",
    )
    DUPLICATE_LABEL = "duplicate label", "The id has the same label already."
    CONTRADICTING_LABEL = (
        "contradicting label",
        "The id has another label already, and the first one counts.",
    )
    LABEL_AFTER_TIMEOUT = (
        "label after timeout",
        "The label came after the label `timeout`, when its `default` had been learned or the "
        "prediction dropped.",
    )
    LABEL_TOO_OLD = (
        "label too old",
        "The label is older than every prediction that still waits for one.",
    )
    OUTPUT_TOO_LARGE = (
        "output too large",
        "What the message led to (a prediction with many features, a long ranking, a drift signal) "
        "is larger than its output topic takes, and is not published. The message was used.",
    )
    NOT_A_CONTROL_MESSAGE = (
        "not a control message",
        "A message on `<pipeline>.control` does not have the fields of a control message.",
    )


def reference_page() -> str:
    """All reasons as a page of Markdown."""
    lines = [
        "# Dead letters",
        "",
        "A message that cannot be used goes to `<pipeline>.dead-letters` with one of these values",
        "in `reason`; `detail` is a sentence about the message itself. The metric",
        "`anabranch_dead_letters_total` counts them by reason. `anabranch dead-letters list` shows",
        "them, and `anabranch dead-letters republish` publishes those again that a changed",
        "declaration takes. Written by",
        "`python -m anabranch.dataflows.messages.dead_letter_reasons`, checked by a test.",
        "",
        "| reason | what it means |",
        "|---|---|",
        *(f"| `{reason.value}` | {reason.description} |" for reason in DeadLetterReason),
        "",
        "The message is in `payload`, or in `payload_base64` where it is not UTF-8. A message",
        "without a payload (on a compacted topic, a tombstone) has its key in `key`, or in",
        "`key_base64`; other dead letters do not have these fields. Bytes that are known to be of",
        "another format are named in `detail`: a schema-registry prefix with its schema id, gzip",
        "and other compressions, a byte order mark, UTF-16, Avro, Protobuf, a Python dict.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(reference_page(), end="")
