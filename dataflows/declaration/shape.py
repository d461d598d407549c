"""The shape of messages: where in a message the value of each field is, and how it is cast.

A field's place is the name that msgspec has for it in messages (``encode_name``), read as a path:
``total.amount``, ``items[0].price``, ``['a.b'].c`` for a key with a dot. `path` declares one. What
is not in the payload has a place that starts with ``$``. Types are strict unless the field is
declared as `Cast`.

Formats that decode to dicts and lists use `Shape.from_mapping`; for JSON the fast way is the
compiled scanner (`dataflows.codec.json_scanner`), which follows the same paths and casts.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec

from anabranch.dataflows.declaration.casts import cast_to, join_texts
from anabranch.state.errors import DeclarationError

T = TypeVar("T")


class _CastMarker:
    """The mark of `Cast` in an annotation."""

    def __repr__(self) -> str:
        return "Cast"


CAST = _CastMarker()

Cast = Annotated[T, CAST]
"""Annotates a field whose values are written in another type: ``amount: Cast[float]``.

Text of a decimal becomes a float, 0, 1 and ``"true"`` a boolean, a number text, the digits of an
epoch a time; `dataflows.declaration.casts` has all rules. A value that can't be cast is a dead
letter.
"""

Step = str | int
"""A key of an object, or an index of an array."""

Origin = Literal["payload", "key", "header", "coordinates"]
"""Where a field comes from: the message's payload, its key, one of its headers, or its place."""

_ORIGINS: dict[str, Origin] = {"$key": "key", "$coordinates": "coordinates"}
_HEADER = "$header."
_TOP = "$."
_AND = " + "
_PIECE = re.compile(
    r"""\[\s*(?P<index>-?\d{1,9})\s*\]
    |\[\s*(?P<quoted>'(?:[^']|'')*'|"[^"]*")\s*\]
    |(?P<key>[^.\[\]'"]+)""",
    re.VERBOSE | re.DOTALL,
)
_UNDECLARABLE = re.compile(r"[\\\x00-\x1f]")  # msgspec has no such names
_PLAIN_KEY = re.compile(r"[^.\[\]'\"$+\s][^.\[\]'\"+]*")


@dataclass(frozen=True, slots=True)
class Path:
    """The way from the top of a message to a value.

    >>> Path.parse("items[0].price").steps, str(Path(("a.b", "c")))
    (('items', 0, 'price'), "['a.b'].c")
    """

    steps: tuple[Step, ...]

    @classmethod
    def parse(cls, text: str) -> Path:
        """Read a path.

        Raises:
            DeclarationError: it is not one.
        """
        rest = text.removeprefix("$.") if isinstance(text, str) else ""
        steps: list[Step] = []
        at = 0
        while at < len(rest):
            if steps and rest[at] == ".":
                at += 1
            elif steps and rest[at] != "[":
                break
            found = _PIECE.match(rest, at)
            if found is None or _UNDECLARABLE.search(rest):
                at = -1
                break
            steps.append(_step(found))
            at = found.end()
        if not steps or at < len(rest):
            raise DeclarationError(
                f"{text!r} is not a path: write keys with dots between them and indices in "
                "brackets, such as 'total.amount' or 'items[0].price', and a key that has a dot "
                "itself as ['a.b']"
            )
        return cls(tuple(steps))

    def __str__(self) -> str:
        pieces = [_shown_step(step) for step in self.steps]
        return "".join(
            piece if piece.startswith("[") or not i else f".{piece}"
            for i, piece in enumerate(pieces)
        )

    @property
    def location(self) -> str:
        """The path as the errors of msgspec write it: ``$.total.amount``."""
        text = str(self)
        return f"${text}" if text.startswith("[") else f"$.{text}"

    def upto(self, count: int) -> Path:
        """The first ``count`` steps."""
        return Path(self.steps[:count])


def _step(found: re.Match[str]) -> Step:
    if found["index"] is not None:
        return int(found["index"])
    if found["quoted"] is not None:
        key = found["quoted"][1:-1]
        return key.replace("''", "'") if found["quoted"][0] == "'" else key
    return found["key"]


def _shown_step(step: Step) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    if _PLAIN_KEY.fullmatch(step):
        return step
    doubled = step.replace("'", "''")
    return f"['{doubled}']"


def path(*places: str, default: Any = msgspec.NODEFAULT, default_factory: Any = None) -> Any:
    """Declare where in a message the value of a field is.

    ::

        class Order(Event):
            id: str = path("order.number", "order.line")
            ts: int = path("created.at")
            amount: Cast[float] = path("total.amount")
            price: float = path("items[0].price", default=0.0)

    A path that begins with ``$.`` begins at the top of the message, which matters in an envelope:
    with ``format=Debezium()`` the path ``amount`` is in the row, and ``$.op`` is beside it.

    Several places are joined to one text, such as ``1001/2``, in which a slash of a part itself has
    a backslash before it: different parts never give the same text. The field is then a ``str``.

    A path through a null or an absent object or index gives the default, or None if the field may
    be null; otherwise the message is a dead letter that names the path.

    A path may begin with ``$.``, the top of the message: ``path("$.store")`` is a second field
    beside one that is itself called ``store``.

    Args:
        places: a path, or several; see `Path`.
        default, default_factory: as in `msgspec.field`.

    Raises:
        DeclarationError: one of them is not a path.
    """
    if not places:
        raise DeclarationError("path() needs a path, such as path('total.amount')")
    name = _AND.join(_place(place) for place in places)
    if '"' in name:
        raise DeclarationError(f"path({places[0]!r}) has a key with a quotation mark in it")
    if default_factory is not None:
        return msgspec.field(default_factory=default_factory, name=name)
    return msgspec.field(default=default, name=name)


def _place(place: str) -> str:
    """A path in its usual form; one that begins at the top of an envelope still does."""
    top = _TOP if isinstance(place, str) and place.startswith(_TOP) else ""
    return f"{top}{Path.parse(place)}"


@dataclass(frozen=True, slots=True)
class ShapeField:
    """One field of a message type.

    Attributes:
        name: its name in the type.
        place: its place as it is declared, the ``encode_name`` of msgspec.
        paths: where its value is in the payload; several are joined to one text; none if its
            ``origin`` is not the payload.
        annotation: its type, without the mark of `Cast`.
        cast: whether values of other types are cast.
        required: whether it has no default.
        default: its default; `msgspec.NODEFAULT` if there is none, or a factory of it.
        origin: where it comes from.
        header: the name of the header if that is its origin.
        nullable: whether it may be null.
    """

    name: str
    place: str
    paths: tuple[Path, ...]
    annotation: Any
    cast: bool
    required: bool
    default: Any
    origin: Origin
    header: str
    nullable: bool

    @property
    def path(self) -> Path | None:
        """Its only path; None if it has several, or is not in the payload."""
        return self.paths[0] if len(self.paths) == 1 else None

    @property
    def is_plain(self) -> bool:
        """Whether it is a key of the message's top level, taken as it is."""
        return (
            not self.cast
            and len(self.paths) == 1
            and len(self.paths[0].steps) == 1
            and self.paths[0].steps[0] == self.place
        )


Tree = dict[Step, "Tree | None"]
"""The keys and indices that are read, by level; None where a whole value is."""


@dataclass(frozen=True, eq=False)
class Shape:
    """The fields of a message type and where they are; made by `Shape.of`.

    Attributes:
        message: the type.
        fields: its fields, in order of declaration.
        tree: the keys and indices that the fields read.
        forbids_unknown: whether a message with any other field is refused.
        is_plain: whether all fields are keys of the message's top level, taken as they are; then
            msgspec decodes messages without help.
    """

    message: type[msgspec.Struct]
    fields: tuple[ShapeField, ...]
    tree: Tree
    forbids_unknown: bool
    is_plain: bool
    _readers: tuple[tuple[str, Callable[[Any], Any]], ...] = field(repr=False)

    @staticmethod
    @cache
    def of(message: type[msgspec.Struct]) -> Shape:
        """The shape of a message type.

        Raises:
            DeclarationError: a field's place is not a path.
        """
        fields = tuple(_shape_field(message, each) for each in msgspec.structs.fields(message))
        tree: Tree = {}
        for each in fields:
            for one in each.paths:
                _plant(tree, one)
        config = message.__struct_config__
        if config.tag_field is not None:
            tree.setdefault(config.tag_field, None)
        is_plain = all(each.is_plain for each in fields)
        readers = tuple((each.place, _reader(each)) for each in fields if each.paths)
        return Shape(message, fields, tree, config.forbid_unknown_fields, is_plain, readers)

    def from_mapping(self, decoded: Any, places: Mapping[str, Any] | None = None) -> Any:
        """The message that a format decoded to dicts and lists, as a struct of the type.

        Args:
            decoded: the message.
            places: place → value of what is not in the payload, such as ``$key``.

        Raises:
            msgspec.ValidationError: it does not fit; names the path.

        >>> class Order(msgspec.Struct):
        ...     amount: Cast[float] = path("total.amount")
        >>> Shape.of(Order).from_mapping({"total": {"amount": "12.50"}})
        Order(amount=12.5)
        """
        if not isinstance(decoded, dict):
            raise msgspec.ValidationError(f"Expected `object`, got `{kind_of(decoded)}`")
        if self.forbids_unknown:
            for name in self.unknown(decoded):
                raise msgspec.ValidationError(f"Object contains unknown field `{name}`")
        flat: dict[str, Any] = {}
        for place, read in self._readers:
            value = read(decoded)
            if value is not _ABSENT:
                flat[place] = value
        config = self.message.__struct_config__
        if config.tag_field is not None and config.tag_field in decoded:
            flat[config.tag_field] = decoded[config.tag_field]
        if places:
            for each in self.fields:
                if not each.paths and each.place in places:
                    flat[each.place] = _from_place(each, places[each.place])
        try:
            return msgspec.convert(flat, self.message)
        except msgspec.ValidationError as error:
            if "`$.$." not in str(error):
                raise
            raise msgspec.ValidationError(str(error).replace("`$.$.", "`$.")) from error.__cause__

    def unknown(self, decoded: Any) -> dict[str, Any]:
        """The fields of a decoded message that the type does not read: path → value.

        An object or array of which the type reads a part is looked into; any other counts as one.
        """
        return dict(_unknown(decoded, self.tree, ()))


_ABSENT: Any = object()
_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "bool"),
    (int, "int"),
    (float, "float"),
    (str, "str"),
    (type(None), "null"),
    (dict, "object"),
    ((list, tuple), "array"),
)


def kind_of(value: Any) -> str:
    """What the errors of msgspec call the type of a decoded value."""
    return next((name for kind, name in _KINDS if isinstance(value, kind)), type(value).__name__)


def with_field_type(
    message: type[msgspec.Struct], declared: ShapeField, annotation: Any, gc: bool = True
) -> type[msgspec.Struct]:
    """The message type with another type of a field that is required, in the same place."""
    return msgspec.defstruct(
        message.__name__,
        [(declared.name, annotation, msgspec.field(name=declared.place))],
        bases=(message,),
        kw_only=True,
        gc=gc,
    )


def without_cast(annotation: Any) -> tuple[Any, bool]:
    """An annotation without `Cast`, also of a member of a union, and whether it had one.

    >>> without_cast(Cast[float] | None)
    (float | None, True)
    """
    if get_origin(annotation) in (Union, types.UnionType):
        members = [without_cast(arg) for arg in get_args(annotation)]
        if not any(is_cast for _, is_cast in members):
            return annotation, False
        bare = members[0][0]
        for member, _ in members[1:]:
            bare = bare | member
        return bare, True
    metadata = getattr(annotation, "__metadata__", ())
    if CAST not in metadata:
        return annotation, False
    rest = tuple(each for each in metadata if each is not CAST)
    bare = annotation.__origin__
    return (Annotated[(bare, *rest)] if rest else bare), True


def members_of(annotation: Any) -> tuple[list[Any], bool]:
    """The types of a union other than None, without metadata, and whether None is among them."""
    annotation = (
        getattr(annotation, "__origin__", annotation)
        if hasattr(annotation, "__metadata__")
        else annotation
    )
    if get_origin(annotation) not in (Union, types.UnionType):
        return [annotation], annotation is type(None) or annotation is None
    members: list[Any] = []
    nullable = False
    for arg in get_args(annotation):
        if arg is type(None):
            nullable = True
            continue
        inner, inner_nullable = members_of(arg)
        members += inner
        nullable |= inner_nullable
    return members, nullable


def _shape_field(message: type[msgspec.Struct], declared: msgspec.structs.FieldInfo) -> ShapeField:
    annotation, cast = without_cast(declared.type)
    place = declared.encode_name
    origin, header, paths = _parse_place(message, declared)
    members, nullable = members_of(annotation)
    if len(paths) > 1 and members != [str]:
        raise DeclarationError(
            f"{message.__name__}.{declared.name} joins several fields to one text: declare it as "
            "str"
        )
    return ShapeField(
        declared.name,
        place,
        paths,
        annotation,
        cast,
        declared.required,
        declared.default,
        origin,
        header,
        nullable or annotation is Any,
    )


def _parse_place(
    message: type[msgspec.Struct], declared: msgspec.structs.FieldInfo
) -> tuple[Origin, str, tuple[Path, ...]]:
    place = declared.encode_name
    if place == declared.name:
        return "payload", "", (Path((place,)),)
    if place in _ORIGINS:
        return _ORIGINS[place], "", ()
    if place.startswith(_HEADER):
        return "header", place.removeprefix(_HEADER), ()
    try:
        return "payload", "", tuple(Path.parse(piece) for piece in split_place(place))
    except DeclarationError as error:
        raise DeclarationError(f"{message.__name__}.{declared.name}: {error}") from None


_PLACE = re.compile(
    r"""(?:^|\ \+\ )((?:'(?:[^']|'')*'|(?!\ \+\ ).)+)""",
    re.VERBOSE | re.DOTALL,
)


def split_place(place: str) -> list[str]:
    """The paths of a place, which has `` + `` between them; one in quotes belongs to a key."""
    return _PLACE.findall(place) or [place]


def _plant(tree: Tree, one: Path) -> None:
    for depth, step in enumerate(one.steps, 1):
        below = tree.get(step, {})
        if depth == len(one.steps) or below is None:
            tree[step] = None
            return
        tree[step] = below
        tree = below


def _unknown(value: Any, tree: Tree, above: tuple[Step, ...]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in tree:
                yield str(Path((*above, key))), inner
            elif (below := tree[key]) is not None:
                yield from _unknown(inner, below, (*above, key))
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for index, below in tree.items():
            # The other entries of an array are more of the same, and no field of their own.
            if below is not None and isinstance(index, int) and -len(value) <= index < len(value):
                yield from _unknown(value[index], below, (*above, index))


def _reader(declared: ShapeField) -> Callable[[Any], Any]:
    """A function that takes the field's value out of a decoded message."""
    if len(declared.paths) > 1:
        return _join_reader(declared)
    one = declared.paths[0]
    cast = cast_to(declared.annotation) if declared.cast else None
    if len(one.steps) == 1 and cast is None and isinstance(one.steps[0], str):
        key = one.steps[0]
        return lambda decoded: decoded.get(key, _ABSENT)

    def read(decoded: Any) -> Any:
        value, reached = _follow(decoded, one)
        if reached < len(one.steps):
            return _instead(declared, one, value, reached)
        return value if cast is None else _cast(cast, value, one.location)

    return read


def _join_reader(declared: ShapeField) -> Callable[[Any], Any]:
    text = cast_to(str)

    def read(decoded: Any) -> Any:
        parts = []
        for one in declared.paths:
            value, reached = _follow(decoded, one)
            if reached < len(one.steps) or value is None:
                return _instead(declared, one, value, reached)
            parts.append(_cast(text, value, one.location))
        return join_texts(parts)

    return read


def _follow(decoded: Any, one: Path) -> tuple[Any, int]:
    """The value at a path, and how many steps there were: fewer where it is absent.

    Raises:
        msgspec.ValidationError: something on the way is neither an object nor an array.
    """
    value = decoded
    for taken, step in enumerate(one.steps):
        if value is None:
            return None, taken
        is_index = isinstance(step, int)
        if not isinstance(value, list | tuple if is_index else Mapping):
            wanted = "array" if is_index else "object"
            at = one.upto(taken).location if taken else "$"
            raise msgspec.ValidationError(
                f"Expected `{wanted}`, got `{kind_of(value)}` - at `{at}`"
            )
        try:
            value = value[step]  # type: ignore[index]
        except LookupError:
            return _ABSENT, taken
    return value, len(one.steps)


def _instead(declared: ShapeField, one: Path, value: Any, reached: int) -> Any:
    """The value of a field whose path leads nowhere."""
    if not declared.required:
        return _ABSENT
    if declared.nullable and (len(declared.paths) > 1 or len(one.steps) > 1):
        return None
    why = ""
    if value is None:
        at = one.upto(reached)
        why = f": `{at}` is null"
    elif reached:
        why = f": `{one.upto(reached)}` has no `{_shown_step(one.steps[reached])}`"
    raise msgspec.ValidationError(f"Object missing required field `{one}`{why}")


def _cast(cast: Callable[[Any], Any], value: Any, location: str) -> Any:
    try:
        return cast(value)
    except (ValueError, OverflowError, ArithmeticError) as error:
        raise msgspec.ValidationError(f"{error} - at `{location}`") from None


def _from_place(declared: ShapeField, value: Any) -> Any:
    if not declared.cast:
        return value
    return _cast(cast_to(declared.annotation), value, declared.place)
