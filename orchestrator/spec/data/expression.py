"""Conditions over columns, as `age >= 18 and country in ('DE', 'FR')`: their syntax. Imports: the standard library.

Written as Python writes conditions, parsed by Python's own `ast`, and never run as Python: `data/cleaning`
translates the few nodes that are allowed here.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

FUNCTIONS = ("lower", "upper", "len", "abs", "isnull")
"""What may be called, each with one argument."""

ALLOWED = (
    "allowed are columns (`in backticks` where they hold spaces), numbers, 'text', True, False, the signs "
    "== != < <= > >= + - * / // % **, the words and, or, not, in (…), is None, is not None, and the functions "
    + ", ".join(FUNCTIONS)
)
_MAX_CHARACTERS = 10_000
_MAX_DEPTH = 100
_WORDS = {"null": None, "true": True, "false": False}
_QUOTED = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|`([^`\n]+)`""")
_HINTS: dict[type[ast.AST], str] = {
    ast.BitAnd: "write 'and' for '&'",
    ast.BitOr: "write 'or' for '|'",
    ast.Invert: "write 'not' for '~'",
}


@dataclass(frozen=True)
class Condition:
    """A checked condition: its syntax tree, whose names are columns, and the text that its positions count in."""

    tree: ast.expr
    text: str
    blanks: int = 0
    """How many blanks stood in front of the text."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it names, each once, in the order of their first mention."""
        functions = [node.func for node in ast.walk(self.tree) if isinstance(node, ast.Call)]
        names = [node for node in ast.walk(self.tree) if isinstance(node, ast.Name) and node not in functions]
        return tuple(dict.fromkeys(node.id for node in sorted(names, key=lambda node: node.col_offset)))

    def position(self, node: ast.expr) -> int:
        """Which character of the text a node begins with, counted from 1."""
        return len(self.text.encode()[: node.col_offset].decode(errors="ignore")) + 1 + self.blanks


def parse_condition(text: str) -> Condition:
    """Raises ValueError with the position and what is allowed where the text is no condition over columns."""
    if len(text) > _MAX_CHARACTERS:
        raise ValueError(f"is longer than {_MAX_CHARACTERS} characters")
    plain, names = _without_backticks(" ".join(text.splitlines()).rstrip())
    blanks = len(plain) - len(plain.lstrip())  # those in front would be read as an indentation
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of '\d' in a text: the message would point at no file
            tree = ast.parse(plain[blanks:], mode="eval").body
        condition = Condition(_Named(names).visit(tree), plain[blanks:], blanks)
        fault = _fault(condition, condition.tree, 0)
    except SyntaxError as error:
        # At the end of the text, Python's parser is already on the next line.
        ended = error.offset is None or error.offset < 1 or (error.lineno or 1) > 1
        position = len(plain) if ended else min(blanks + (error.offset or 1), len(plain))
        hint = "; compare with '=='" if re.search(r"(?<![=!<>])=(?!=)", plain) else ""
        raise ValueError(f"position {position}: {error.msg}{hint}; {ALLOWED}") from None
    except (RecursionError, MemoryError):
        raise ValueError(f"is nested too deeply; {ALLOWED}") from None
    if fault:
        node, words = fault
        raise ValueError(f"position {condition.position(node)}: {words}; {ALLOWED}")
    if not condition.columns:
        raise ValueError(f"names no column; {ALLOWED}")
    return condition


def _without_backticks(text: str) -> tuple[str, dict[str, str]]:
    """Each `name` in backticks replaced by an identifier of the same length, and what these stand for."""
    names: dict[str, str] = {}

    def stand_in(match: re.Match[str]) -> str:
        if match.group(1) is None:
            return match.group()  # a text in quotes, whatever it holds
        code = 0x4E00 + len(names)
        while chr(code) in text:
            code += 1
        name = chr(code) + "_" * (len(match.group()) - 1)
        names[name] = match.group(1)
        return name

    return _QUOTED.sub(stand_in, text), names


class _Named(ast.NodeTransformer):
    """Puts back the names that stood in backticks, and reads null, true and false as constants."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names

    def visit_Call(self, node: ast.Call) -> ast.Call:
        node.args = [self.visit(argument) for argument in node.args]
        return node

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id in _WORDS:
            return ast.copy_location(ast.Constant(_WORDS[node.id]), node)
        return ast.copy_location(ast.Name(self.names.get(node.id, node.id)), node)


_Fault = tuple[ast.expr, str] | None


def _fault(condition: Condition, node: ast.expr, depth: int) -> _Fault:
    """The first node, at or below this one, that is not allowed, and why."""
    if depth > _MAX_DEPTH:
        return node, "is nested too deeply"
    below: list[ast.expr] = []
    match node:
        case ast.Name():
            pass
        case ast.Constant(value=value):
            return _constant_fault(node, value)
        case ast.BoolOp(values=below):
            pass
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.UAdd(), operand=operand):
            below = [operand]
        case ast.BinOp(
            left=left,
            op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div() | ast.FloorDiv() | ast.Mod() | ast.Pow(),
            right=right,
        ):
            below = [left, right]
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            below = [left]
            for op, sides in zip(ops, pairwise([left, *comparators]), strict=True):
                if words := _comparison_fault(op, *sides):
                    return sides[1], words
                below += _compared(op, sides[1])
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            if len(arguments) != 1:
                return node, f"{name} takes one argument"
            below = arguments
        case _:
            shown = ast.get_source_segment(condition.text, node) or type(node).__name__
            hint = _HINTS.get(type(node.op), "") if isinstance(node, ast.BinOp | ast.UnaryOp) else ""
            return node, f"'{shown[:40]}' is not allowed{f': {hint}' if hint else ''}"
    return next(filter(None, (_fault(condition, part, depth + 1) for part in below)), None)


def _compared(op: ast.cmpop, right: ast.expr) -> list[ast.expr]:
    """What is to be checked of a comparison's right side."""
    if isinstance(op, ast.Is | ast.IsNot):
        return []
    return right.elts if isinstance(right, ast.Tuple | ast.List | ast.Set) else [right]


def _comparison_fault(op: ast.cmpop, left: ast.expr, right: ast.expr) -> str:
    if isinstance(op, ast.Is | ast.IsNot):
        return "" if _is_none(right) else "'is' goes with None only: compare with '=='"
    if isinstance(op, ast.In | ast.NotIn):
        if not isinstance(right, ast.Tuple | ast.List | ast.Set) or not right.elts:
            return "'in' takes a list of values, as in ('DE', 'FR') or ('DE',)"
        if not all(is_constant(value) and not _is_none(value) for value in right.elts):
            return "the list after 'in' holds values only (ask for gaps by 'is None')"
        return ""
    return (
        "nothing equals None: write 'is None' or 'is not None'" if _is_none(left) or _is_none(right) else ""
    )


def _constant_fault(node: ast.expr, value: object) -> _Fault:
    if value is None:
        return node, "None goes with 'is' and 'is not' only"
    if isinstance(value, bool | str):
        return None
    if isinstance(value, int | float):
        return None if abs(value) < 2**63 else (node, "the number is too large")
    return node, f"{value!r} is not allowed"


def is_constant(node: ast.expr) -> bool:
    """Whether a node is a value, or a number with a sign."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        return isinstance(node.operand, ast.Constant) and isinstance(node.operand.value, int | float)
    return isinstance(node, ast.Constant)


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
