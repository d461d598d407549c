"""The description of one version of a registered model: lineage, parameters, metrics, weights.

It is stored as JSON with a checksum, so that it can be read without unpickling anything, whatever
version of River is installed.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from anabranch.state.errors import InputError, StateError

FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_REFERENCE = re.compile(r"([^@]*)(?:@([1-9][0-9]{0,8}))?")


class Span(msgspec.Struct, frozen=True):
    """Offsets of one partition that a model was trained on, from ``start`` to before ``end``.

    ``start`` is None where it is not known, or where replayed history takes the place of what lay
    before.
    """

    topic: str
    partition: int
    start: int | None
    end: int


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """The description of a version.

    Attributes:
        name, version: of the model; `Registry.add` assigns the number.
        made: how it was created: snapshot, import or copy; ``made_ms`` when (epoch ms).
        source: the state directory or the file that it was created from.
        pipeline: the name of the pipeline that it is for; ``task`` the kind of prediction.
        model: the class of its last step; ``declaration`` the description of the whole model, and
            ``parameters`` its parameters by dotted path.
        columns: names of the feature columns, in order; ``features`` how they were declared.
        rows: labels that it has learned; None where that is not known.
        trained_on: the messages, by topic and partition, of the state it was taken from.
        metrics: prequential, at that time; None for one without a value.
        weights: of a linear model, with the intercept; else empty.
        versions: of Python and of the libraries.
        parent: the version that it continues, as ``NAME@VERSION``.
        state: the id of the state that it was taken from, and at which ``generation``.
        note: the user's.
        bytes, sha256: of the pickle beside it.
        distributions: what its distribution monitors compared with, in words, and
            ``distributions_sha256`` of the file that holds them; empty without monitors.
    """

    name: str
    version: int = 0
    made: str
    made_ms: int
    source: str
    pipeline: str
    task: str
    model: str
    declaration: str
    parameters: dict[str, str]
    columns: list[str]
    features: str
    rows: int | None = None
    trained_on: list[Span] = []
    metrics: dict[str, float | None] = {}
    weights: dict[str, float | None] = {}
    versions: dict[str, str]
    parent: str | None = None
    state: str = ""
    generation: int | None = None
    note: str = ""
    bytes: int = 0
    sha256: str = ""
    distributions: str = ""
    distributions_sha256: str = ""

    @property
    def reference(self) -> str:
        """``NAME@VERSION``."""
        return f"{self.name}@{self.version}"

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the features: equal for equal names, order and declaration."""
        return _sha256([self.columns, self.features])

    @property
    def river(self) -> str | None:
        """The version of River that wrote the pickle."""
        return self.versions.get("river")


class _Sealed(msgspec.Struct):
    format: int
    sha256: str
    about: msgspec.Raw


def seal(about: Version) -> bytes:
    """The description as JSON with its checksum."""
    raw = msgspec.json.encode(about)
    sealed = _Sealed(FORMAT, _sha256(msgspec.json.decode(raw)), msgspec.Raw(raw))
    return msgspec.json.format(msgspec.json.encode(sealed)) + b"\n"


def unseal(content: bytes, where: object) -> Version:
    """The description in what `seal` returned; ``where`` it was read from, for the message.

    Raises:
        StateError: it is damaged, something else, or of another format.
    """
    try:
        sealed = msgspec.json.decode(content, type=_Sealed)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise StateError(
            f"{where} is damaged, or not the description of a model ({error}): restore it from a "
            "backup, or remove it"
        ) from None
    if sealed.format != FORMAT:
        raise StateError(
            f"{where} is of format {sealed.format}, and this program reads format {FORMAT}: use "
            "the version of the program that wrote it"
        )
    try:
        if _sha256(msgspec.json.decode(sealed.about)) == sealed.sha256:
            return msgspec.json.decode(sealed.about, type=Version)
        reason = "its checksum does not match"
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        reason = str(error)
    raise StateError(f"{where} is damaged ({reason}): restore it from a backup, or remove it")


def check_name(name: str) -> None:
    """Raise InputError for what can't be the name of a model."""
    if not _NAME.fullmatch(name):
        raise InputError(
            f"model name {name!r} can't be used: start with a letter or a digit, then letters, "
            "digits, - and _, at most 100"
        )


def parse_reference(text: str) -> tuple[str, int | None]:
    """Name and number in ``NAME@VERSION``; without a number, None for the newest version.

    Raises:
        InputError: it is neither.

    >>> parse_reference("champion@3"), parse_reference("champion")
    (('champion', 3), ('champion', None))
    """
    match = _REFERENCE.fullmatch(text)
    if match is None or not _NAME.fullmatch(match[1]):
        raise InputError(f"{text!r} does not name a model: write NAME@VERSION, such as champion@3")
    return match[1], None if match[2] is None else int(match[2])


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """The values with None for NaN and infinity, which JSON can't hold."""
    return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}


def spans_text(spans: Sequence[Span]) -> str:
    """Offsets in words.

    >>> spans_text([Span("a.events", 0, 0, 1200), Span("a.events", 1, None, 7)])
    'a.events 0: 0 to 1,200; a.events 1: ? to 7'
    """
    return "; ".join(
        f"{each.topic} {each.partition}: {'?' if each.start is None else format(each.start, ',')} "
        f"to {each.end:,}"
        for each in spans
    )


def _sha256(value: Any) -> str:
    """Checksum of a value decoded from JSON, independent of whitespace and order of keys."""
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()
