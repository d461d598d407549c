"""Compiles a writer's Avro schema into a program for `dataflows.codec.avro_scanner`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anabranch.dataflows.codec import avro_scanner as op
from anabranch.dataflows.codec.column_fields import BOOLEAN, INTEGER, NUMBER, TEXT, ColumnField

Schema = Any
"""A parsed schema: a name, a dict, or a list of branches."""

_UNITS = {
    "timestamp-millis": op.MILLIS,
    "timestamp-micros": op.MICROS,
    "timestamp-nanos": op.NANOS,
    "date": op.DAYS,
}
_LOCAL = ("local-timestamp-millis", "local-timestamp-micros", "local-timestamp-nanos")
_FIXED_SIZES = {"float": 4, "double": 8, "boolean": 1, "null": 0}
_MOST = 20_000  # instructions; a schema that needs more goes the general way


class _UnsupportedError(Exception):
    """The schema, or a field of the type, asks for the general path."""


@dataclass(slots=True)
class Program:
    """How to read the messages of one writer's schema.

    Attributes:
        instructions: four integers each, see `dataflows.codec.avro_scanner`.
        symbols: the symbols of enums.
    """

    instructions: list[tuple[int, int, int, int]] = field(default_factory=list)
    symbols: list[str] = field(default_factory=list)


def compile_program(
    writer: Schema,
    names: Mapping[str, Schema],
    fields: Sequence[ColumnField],
    reader: Schema | None = None,
    reader_names: Mapping[str, Schema] | None = None,
) -> Program | None:
    """The program that reads ``fields``; None if it takes the general path.

    Args:
        writer: the schema that messages were written with.
        names: the named types in it, by full name.
        fields: the fields of the message type.
        reader: the reader's schema: its names, aliases and defaults count. None: the writer's.
        reader_names: the named types in that.
    """
    compiler = _Compiler(names, reader_names or {})
    try:
        tree = _tree(fields)
        if reader is not None:
            tree = compiler.resolved(tree, reader, writer)
        compiler.read(writer, tree, ())
    except _UnsupportedError:
        return None
    compiler.emit(op.END)
    return compiler.program


Tree = dict[str, "Tree | ColumnField"]


def _tree(fields: Sequence[ColumnField]) -> Tree:
    tree: Tree = {}
    for each in fields:
        node = tree
        for step in each.steps[:-1]:
            below = node.setdefault(step, {})
            if not isinstance(below, dict):
                raise _UnsupportedError
            node = below
        if each.steps[-1] in node:
            raise _UnsupportedError  # two fields of one place
        node[each.steps[-1]] = each
    return tree


def _leaves(tree: Tree | ColumnField) -> list[ColumnField]:
    if not isinstance(tree, dict):
        return [tree]
    return [leaf for below in tree.values() for leaf in _leaves(below)]


class _Compiler:
    def __init__(self, names: Mapping[str, Schema], reader_names: Mapping[str, Schema]) -> None:
        self.program = Program()
        self._names, self._reader_names = names, reader_names

    def emit(self, code: int, a: int = 0, b: int = 0, c: int = 0) -> int:
        """Append an instruction; its index."""
        instructions = self.program.instructions
        if len(instructions) >= _MOST:
            raise _UnsupportedError
        instructions.append((code, a, b, c))
        return len(instructions) - 1

    def _patch(self, at: int, a: int) -> None:
        code, _, b, c = self.program.instructions[at]
        self.program.instructions[at] = (code, a, b, c)

    def resolved(self, tree: Tree, reader: Schema, writer: Schema) -> Tree:
        """``tree``, which has the reader's names, with the names of the writer.

        Only records in each other are resolved here: the general path knows the rest.
        """
        own, other = self._record(reader, self._reader_names), self._record(writer, self._names)
        if own is None or other is None:
            raise _UnsupportedError
        written = {each["name"]: each for each in other["fields"]}
        declared = {each["name"]: each for each in own["fields"]}
        resolved: Tree = {}
        for name, below in tree.items():
            mine = declared.get(name)
            if mine is None:
                raise _UnsupportedError
            names = [name, *mine.get("aliases", ())]
            found = next((each for each in names if each in written), None)
            if found is None:
                raise _UnsupportedError  # the reader's default, which the general path applies
            if isinstance(below, dict):
                below = self.resolved(below, mine["type"], written[found]["type"])
            resolved[found] = below
        # What the reader does not read may still be incompatible; promotions are checked when read.
        for each in declared.values():
            names = [each["name"], *each.get("aliases", ())]
            if "default" not in each and not any(one in written for one in names):
                raise _UnsupportedError
        return resolved

    def _record(self, schema: Schema, names: Mapping[str, Schema]) -> Any:
        branches = schema if isinstance(schema, list) else [schema]
        records = []
        for branch in branches:
            resolved = self._resolve(branch, names)
            if _kind(resolved) == "record":
                records.append(resolved)
        return records[0] if len(records) == 1 else None

    def _resolve(self, schema: Schema, names: Mapping[str, Schema] | None = None) -> Schema:
        known = self._names if names is None else names
        if isinstance(schema, str) and schema in known:
            return known[schema]
        if isinstance(schema, dict) and isinstance(schema.get("type"), str):
            inner = schema["type"]
            if inner in known:
                return known[inner]
        return schema

    def read(self, schema: Schema, node: Tree | ColumnField, open_types: tuple[str, ...]) -> None:
        """Read a value: a record whose fields lead to columns, or a column itself."""
        schema = self._resolve(schema)
        if isinstance(schema, list):
            self._read_union(schema, node, open_types)
        elif isinstance(node, dict):
            if _kind(schema) != "record":
                raise _UnsupportedError
            self._read_record(schema, node, open_types)
        else:
            self._read_column(schema, node, open_types)

    def _read_record(self, schema: Any, node: Tree, open_types: tuple[str, ...]) -> None:
        open_types = self._opened(schema, open_types)
        names = {each["name"] for each in schema["fields"]}
        for name, below in node.items():
            if name not in names:
                for leaf in _leaves(below):
                    self._miss(leaf, direct=isinstance(below, ColumnField))
        for each in schema["fields"]:
            if each["name"] in node:
                self.read(each["type"], node[each["name"]], open_types)
            else:
                self.skip(each["type"], open_types)

    def _miss(self, leaf: ColumnField, *, direct: bool) -> None:
        """A field that the writer does not have: its default, or null on a longer path."""
        if not leaf.required and leaf.default is not None:
            return  # its column is filled with it
        if not leaf.required or (leaf.nullable and (len(leaf.steps) > 1 or not direct)):
            self.emit(op.NULL, leaf.slot)
        else:
            raise _UnsupportedError

    def _read_union(
        self, branches: list[Schema], node: Tree | ColumnField, open_types: tuple[str, ...]
    ) -> None:
        union = self._emit_union(len(branches))
        ends = []
        for number, branch in enumerate(branches):
            self._patch(union + 1 + number, len(self.program.instructions))
            if self._resolve(branch) == "null" or _kind(branch) == "null":
                self._read_null(node)
            else:
                before = len(self.program.instructions)
                try:
                    self.read(branch, node, open_types)
                except _UnsupportedError:
                    if len(branches) == 1 or ("null" in branches and len(branches) == 2):
                        raise
                    del self.program.instructions[before:]
                    self.emit(op.REJECT)
            ends.append(self.emit(op.JUMP))
        for at in ends:
            self._patch(at, len(self.program.instructions))

    def _read_null(self, node: Tree | ColumnField) -> None:
        if not isinstance(node, dict):
            if node.nullable:
                self.emit(op.NULL, node.slot)
            else:
                self.emit(op.REJECT)
            return
        for leaf in _leaves(node):  # a path through a null
            if leaf.required and not leaf.nullable:
                self.emit(op.REJECT)
            elif leaf.required or leaf.default is None:
                self.emit(op.NULL, leaf.slot)

    def _emit_union(self, count: int) -> int:
        union = self.emit(op.UNION, count)
        for _ in range(count):
            self.emit(op.JUMP)
        return union

    def _read_column(self, schema: Schema, leaf: ColumnField, open_types: tuple[str, ...]) -> None:
        kind, logical = _kind(schema), _logical(schema)
        if kind == "null":
            self._read_null(leaf)
            return
        if leaf.out < 0:
            if not _fits(leaf.kind, kind, logical):
                raise _UnsupportedError
            self.skip(schema, open_types)
        elif not _fits(leaf.kind, kind, logical):
            raise _UnsupportedError
        elif leaf.kind == TEXT and kind == "enum":
            first = len(self.program.symbols)
            self.program.symbols += schema["symbols"]
            self.emit(op.ENUM, leaf.out, first, len(schema["symbols"]))
        elif leaf.kind == TEXT:
            self.emit(op.TEXT, leaf.out)
        elif leaf.kind == BOOLEAN:
            self.emit(op.BOOLEAN, leaf.out)
        elif kind in ("int", "long"):
            unit = _UNITS.get(logical or "", op.MILLIS)
            self.emit(op.INTEGER if leaf.kind == INTEGER else op.NUMBER, leaf.out, unit)
        elif logical == "decimal" and kind == "bytes":
            self.emit(op.DECIMAL, leaf.out, schema.get("scale", 0))
        elif logical == "decimal":
            self.emit(op.FIXED_DECIMAL, leaf.out, schema.get("scale", 0), schema["size"])
        else:
            self.emit(op.DOUBLE if kind == "double" else op.FLOAT, leaf.out)

    def skip(self, schema: Schema, open_types: tuple[str, ...]) -> None:
        """Pass over a value."""
        schema = self._resolve(schema)
        if isinstance(schema, list):
            union = self._emit_union(len(schema))
            ends = []
            for number, branch in enumerate(schema):
                self._patch(union + 1 + number, len(self.program.instructions))
                self.skip(branch, open_types)
                ends.append(self.emit(op.JUMP))
            for at in ends:
                self._patch(at, len(self.program.instructions))
            return
        kind = _kind(schema)
        if kind in ("int", "long", "enum"):
            self._skip_more(op.SKIP_INTS, 1)
        elif kind in ("string", "bytes"):
            self._skip_more(op.SKIP_BYTES, 1)
        elif kind in _FIXED_SIZES:
            self._skip_more(op.SKIP_FIXED, _FIXED_SIZES[kind])
        elif kind == "fixed":
            self._skip_more(op.SKIP_FIXED, schema["size"])
        elif kind == "record":
            open_types = self._opened(schema, open_types)
            for each in schema["fields"]:
                self.skip(each["type"], open_types)
        elif kind in ("array", "map"):
            block = self.emit(op.BLOCK)
            if kind == "map":
                self.emit(op.SKIP_BYTES, 1)
            self.skip(schema["items" if kind == "array" else "values"], open_types)
            self.emit(op.NEXT, block)
            self._patch(block, len(self.program.instructions))
        else:
            raise _UnsupportedError

    def _skip_more(self, code: int, count: int) -> None:
        """Pass over more of what was passed over before; a jump never leads between the two."""
        last = self.program.instructions[-1] if self.program.instructions else None
        if last is not None and last[0] == code:
            self._patch(len(self.program.instructions) - 1, last[1] + count)
        else:
            self.emit(code, count)

    def _opened(self, schema: Any, open_types: tuple[str, ...]) -> tuple[str, ...]:
        name = schema["name"]
        if name in open_types:
            raise _UnsupportedError  # it contains itself
        return (*open_types, name)


def _kind(schema: Schema) -> str:
    if isinstance(schema, str):
        return schema
    if isinstance(schema, dict):
        kind = schema["type"]
        return _kind(kind) if isinstance(kind, dict) else str(kind)
    return "union"


def _logical(schema: Schema) -> str | None:
    return schema.get("logicalType") if isinstance(schema, dict) else None


def _fits(column: int, kind: str, logical: str | None) -> bool:
    """Whether values of a type of Avro go into a column without the general path."""
    if logical in _LOCAL or (logical or "").startswith("time-"):
        return False
    if column == TEXT:
        return kind == "enum" or (kind == "string" and logical is None)
    if column == BOOLEAN:
        return kind == "boolean"
    if logical == "decimal":
        return column == NUMBER and kind in ("bytes", "fixed")
    if kind in ("int", "long"):
        return True
    return column == NUMBER and kind in ("float", "double")
