"""YAML text, or a dict from Python, to plain values that remember where they were written.

YAML is read as most people believe it is: `yes`, `on` and dates are text, `1e-3` is a number, `010` is ten, a
key written twice is a fault. Numbers are finite and fit 64 bits. Imports: yaml, `errors`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import yaml

from orchestrator.errors import Fault, SpecError

FieldPath = tuple[str | int, ...]

MAX_DEPTH = 50
MAX_VALUES = 100_000
_TAG = "tag:yaml.org,2002:"
_DIGITS = r"[0-9]+(?:_[0-9]+)*"
SCALARS = {
    "null": re.compile(r"(?:~|null|Null|NULL|)\Z"),
    "bool": re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"),
    "int": re.compile(rf"(?:[-+]?{_DIGITS}|0o[0-7]+|0x[0-9a-fA-F]+)\Z"),
    "float": re.compile(
        rf"(?:[-+]?(?:\.{_DIGITS}|{_DIGITS}(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
    ),
}
"""Which unquoted scalars are not text: the core schema of YAML 1.2, and `10_000`."""

_MENDS = {
    "cannot start any token": "Put the value in quotes, and indent with spaces, never with tabs",
    "mapping values are not allowed": "Put a value that holds ': ' in quotes, or mend the indentation",
    "expected <block end>": "Mend the indentation: keys of one section begin in the same column",
    "expected ',' or": "Close the bracket, and part its items by commas",
    "could not find expected ':'": "Write 'key: value', with a space behind the colon",
    "undefined alias": "Put a value that begins with '*' in quotes",
    "unexpected end of stream": "Close the quote or the bracket",
    "expected a single document": "One file holds one job: remove the second '---'",
}


class _Loader(yaml.SafeLoader):
    """Composes nodes with our own idea of what is not text."""

    yaml_implicit_resolvers = {None: [(_TAG + kind, pattern) for kind, pattern in SCALARS.items()]}  # noqa: RUF012


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value was written: a file (or `command line`) and a line counted from 1, where known."""

    file: str | None = None
    line: int | None = None


@dataclass(frozen=True)
class Document:
    """Plain values (dict, list, str, int, float, bool, None) and the places of their fields."""

    values: dict[str, Any]
    places: Mapping[FieldPath, Place]

    def place(self, path: FieldPath) -> Place:
        """Where the field, or else the nearest section around it, was written."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, Place())

    def fault(self, path: FieldPath, reason: str, mend: str = "") -> Fault:
        place = self.place(path)
        return Fault(dotted(path), reason, mend, place.file, place.line)


def dotted(path: FieldPath) -> str:
    """`data.transforms.0.kind`, as overrides write it."""
    return ".".join(str(part) for part in path)


def plain_scalar(text: str) -> Any:
    """What YAML makes of the text without quotes: `3` an integer, `1e-3` a number, `yes` text."""
    for kind, pattern in SCALARS.items():
        if pattern.match(text):
            return _convert(kind, text)
    return text


def unfit(value: object) -> str:
    """Why a scalar cannot stand in a spec; empty where it can."""
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "is a number beyond 64 bits"
    if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
        return "holds a NUL character or broken Unicode"
    return ""


def parse(text: str, file: str) -> tuple[Document, list[Fault]]:
    """Read a YAML text whose top level is a mapping; `file` names it in faults.

    Raises SpecError where the text is no such YAML at all. Faults that leave the rest readable (a key
    written twice, a tag, a number out of range) are returned, so that others can be reported with them.
    """
    try:
        node = _compose(text, file)
        reader = _NodeReader(file)
        values = reader.read(node, ())
    except RecursionError as error:
        raise SpecError([Fault("", "is nested too deeply", file=file, line=1)]) from error
    if not isinstance(values, dict):
        raise SpecError([reader.fault((), node, "must be a mapping with keys such as name: and data:")])
    return Document(values, reader.places), reader.faults


def parse_value(text: str, file: str) -> Any:
    """The value of an override: `3`, `[1, 2]`, `{kind: sgd}`, `"quoted"`; anything else is plain text.

    Raises SpecError for brackets and quotes that do not close, and for a scalar that is unfit.
    """
    text = text.strip()
    if not text.startswith(("[", "{", '"', "'")):
        value = plain_scalar(text)
        if reason := unfit(value):
            raise SpecError([Fault("", reason, file=file, line=1)])
        return value
    try:
        reader = _NodeReader(file)
        value = reader.read(_compose(text, file), ())
    except RecursionError as error:
        raise SpecError([Fault("", "is nested too deeply", file=file, line=1)]) from error
    if reader.faults:
        raise SpecError(reader.faults)
    return value


def from_python(value: Any, path: FieldPath = ()) -> tuple[Any, list[Fault]]:
    """The same plain values out of Python's own: mappings, lists, tuples, paths and scalars."""
    if len(path) > MAX_DEPTH:
        return None, [Fault(dotted(path[:3]), "is nested too deeply, or holds itself")]
    faults: list[Fault] = []
    if isinstance(value, Mapping):
        plain: dict[str, Any] = {}
        for key, item in value.items():
            if isinstance(key, str) and not unfit(key):
                plain[key], found = from_python(item, (*path, key))
                faults += found
            else:
                faults.append(Fault(dotted(path), f"has a key that is no proper text: {key!r}"))
        return plain, faults
    if isinstance(value, list | tuple):
        items = [from_python(item, (*path, index)) for index, item in enumerate(value)]
        return [item for item, _ in items], [fault for _, found in items for fault in found]
    if isinstance(value, PurePath):
        value = str(value)
    if value is not None and not isinstance(value, str | bool | int | float):
        reason = f"is a {type(value).__name__}; a spec holds only text, numbers, booleans, lists and dicts"
        return None, [Fault(dotted(path), reason)]
    if reason := unfit(value):
        return None, [Fault(dotted(path), reason)]
    return value, faults


def _convert(kind: str, text: str) -> Any:
    """Raises ValueError where the text is not of the kind."""
    if kind == "null":
        return None
    if kind == "bool":
        if not SCALARS["bool"].match(text):
            raise ValueError(text)
        return text.lower() == "true"
    if kind == "int":
        if len(text) > 100:  # beyond 64 bits in any case, and Python refuses thousands of digits
            return 2**64
        if text.startswith(("0x", "0o")):
            return int(text, 0)
        return int(text)
    if kind == "float":
        return float(re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", text.lower()))
    return text


def _compose(text: str, file: str) -> yaml.Node:
    def refuse(reason: str, line: int, mend: str = "") -> SpecError:
        return SpecError([Fault("", reason, mend, file, line)])

    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise refuse(f"holds a character that YAML does not allow: {error.character!r}", line) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "cannot be parsed"
        mend = next((mend for part, mend in _MENDS.items() if part in f"{error.context} {problem}"), "")
        raise refuse(f"is not valid YAML: {problem}", mark.line + 1 if mark else 1, mend) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # an escape such as \UFFFFFFFF
        raise refuse(f"is not valid YAML: {error}", 1) from error
    if node is None:
        raise refuse("is empty", 1, "Write at least name:, data: and model:")
    return node


class _NodeReader:
    """Turns nodes into plain values, and gathers places and faults on the way."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.places: dict[FieldPath, Place] = {}
        self.faults: list[Fault] = []
        self._open: set[int] = set()
        self._count = 0

    def fault(self, path: FieldPath, node: yaml.Node, reason: str, mend: str = "") -> Fault:
        return Fault(dotted(path), reason, mend, self.file, node.start_mark.line + 1)

    def read(self, node: yaml.Node, path: FieldPath) -> Any:
        """Raises SpecError for what is endless or immense; other faults are gathered."""
        self.places.setdefault(path, Place(self.file, node.start_mark.line + 1))
        self._count += 1 + (len(node.value) // 100 if isinstance(node, yaml.ScalarNode) else 0)
        if self._count > MAX_VALUES:
            raise SpecError([self.fault(path, node, "expands to too many values", "Use fewer aliases ('*')")])
        if id(node) in self._open:
            raise SpecError([self.fault(path, node, "has an alias ('*') that holds itself")])
        if len(path) > MAX_DEPTH:
            raise SpecError([self.fault(path[:3], node, "is nested too deeply")])
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
                return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
            return self._scalar(node, path)
        finally:
            self._open.remove(id(node))

    def _mapping(self, node: yaml.MappingNode, path: FieldPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if _is_merge(key_node):
                for source in value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]:
                    inherited = self.read(source, path)
                    if isinstance(inherited, dict):
                        values = inherited | values
                    else:
                        self.faults.append(self.fault(path, key_node, "'<<' takes mappings only"))
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if _is_merge(key_node):
                continue
            line = key_node.start_mark.line + 1
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if not key or unfit(key):
                self.faults.append(self.fault(path, key_node, "has a key that is not plain text"))
            elif key in lines:
                reason = f"is written twice, on lines {lines[key]} and {line}"
                self.faults.append(self.fault((*path, key), key_node, reason, "Keep one of them"))
            else:
                lines[key] = line
                self._forget((*path, key))
                self.places[(*path, key)] = Place(self.file, line)
                values[key] = self.read(value_node, (*path, key))
        return values

    def _scalar(self, node: yaml.Node, path: FieldPath) -> Any:
        kind = node.tag.removeprefix(_TAG)
        if not isinstance(node, yaml.ScalarNode) or (kind != "str" and kind not in SCALARS):
            self.faults.append(self.fault(path, node, f"the tag '{node.tag}' is not supported", "Remove it"))
            return None
        try:
            value = _convert(kind, node.value)
        except ValueError:
            self.faults.append(self.fault(path, node, f"is not of the type that its tag !!{kind} names"))
            return None
        if reason := unfit(value):
            self.faults.append(self.fault(path, node, reason))
            return None
        return value

    def _forget(self, path: FieldPath) -> None:
        """A key written here replaces the merged one, with all the places below it."""
        if path in self.places:
            for known in [known for known in self.places if known[: len(path)] == path]:
                del self.places[known]


def _is_merge(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.value == "<<" and node.style is None
