"""Arithmetic over parameters, as `4096 // train.global_batch_size`: its syntax and its value.

Written as Python writes it, parsed by Python's own `ast`, and never run as Python: the few nodes that are allowed are
computed here. Imports: the standard library.
"""

from __future__ import annotations

import ast
import math
import operator
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "min": min, "max": max, "round": round, "int": int, "abs": abs,
}  # fmt: skip
ALLOWED = (
    "allowed are numbers, 'text', the paths of parameters and fields (train.global_batch_size), + - * / // % **, "
    "comparisons, and, or, not, 'a if condition else b', and the functions " + ", ".join(FUNCTIONS)
)
_MAX_CHARACTERS = 1000
_MAX_DEPTH = 50
_MAX_BITS = 1024
_DOT = "\u4e00"
"""Stands for the dots of a path while Python reads it: one character for one, so that positions hold."""
_QUOTED_OR_PATH = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[A-Za-z_]\w*(?:\.\w+)+""")
_SIGNS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


@dataclass(frozen=True)
class Arithmetic:
    """A checked expression; `names` are the paths that it reads, each once, in the order of their first mention."""

    tree: ast.expr
    names: tuple[str, ...]

    def value(self, values: Mapping[str, Any]) -> Any:
        """What it comes to, `values` holding one for each name. Raises ValueError where it comes to nothing: a
        division by zero, text in a product, a number beyond all measure."""
        try:
            found = _compute(self.tree, values)
        except ZeroDivisionError:
            raise ValueError("divides by zero") from None
        except (OverflowError, TypeError) as error:
            raise ValueError(f"cannot be computed: {error}") from None
        if isinstance(found, complex) or (isinstance(found, float) and not math.isfinite(found)):
            raise ValueError(f"comes to {found}, which is no finite number")
        return found


@lru_cache(maxsize=256)
def parse_arithmetic(text: str) -> Arithmetic:
    """Raises ValueError with the position and what is allowed where the text is no arithmetic."""
    if len(text) > _MAX_CHARACTERS:
        raise ValueError(f"is longer than {_MAX_CHARACTERS} characters")
    if _DOT in text:
        raise ValueError(f"position {text.index(_DOT) + 1}: '{_DOT}' is not allowed; {ALLOWED}")
    plain = _QUOTED_OR_PATH.sub(
        lambda found: found[0] if found[0][0] in "'\"" else found[0].replace(".", _DOT),
        " ".join(text.splitlines()).strip(),
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(plain, mode="eval").body
        _check(tree, plain, 0)
    except SyntaxError as error:
        raise ValueError(
            f"position {min(error.offset or 1, len(plain) + 1)}: {error.msg.replace(_DOT, '.')}; {ALLOWED}"
        ) from None
    except (RecursionError, MemoryError):
        raise ValueError(f"is nested too deeply; {ALLOWED}") from None
    functions = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node not in functions]
    found = sorted(names, key=lambda node: (node.lineno, node.col_offset))
    return Arithmetic(tree, tuple(dict.fromkeys(node.id.replace(_DOT, ".") for node in found)))


def _check(node: ast.expr, text: str, depth: int) -> None:
    """Raises ValueError for the first node, at or below this one, that is not allowed."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"is nested too deeply; {ALLOWED}")
    below: list[ast.expr] = []
    match node:
        case ast.Name():
            pass
        case ast.Constant(value=bool() | int() | float() | str()):
            pass
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _SIGNS:
            below = [left, right]
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() | ast.Not(), operand=operand):
            below = [operand]
        case ast.BoolOp(values=below):
            pass
        case ast.Compare(left=left, ops=ops, comparators=others) if all(
            type(op) in _COMPARISONS for op in ops
        ):
            below = [left, *others]
        case ast.IfExp(test=test, body=body, orelse=orelse):
            below = [test, body, orelse]
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            most = {"int": 1, "abs": 1, "round": 2}.get(name)
            if not arguments or (most and len(arguments) > most) or (most is None and len(arguments) < 2):
                takes = {1: "one argument", 2: "one argument or two"}.get(most or 0, "two arguments or more")
                raise ValueError(f"position {node.col_offset + 1}: {name} takes {takes}")
            below = arguments
        case _:
            shown = (ast.get_source_segment(text, node) or type(node).__name__).replace(_DOT, ".")
            at = len(text.encode()[: node.col_offset].decode(errors="ignore")) + 1
            raise ValueError(f"position {at}: '{shown[:40]}' is not allowed; {ALLOWED}")
    for part in below:
        _check(part, text, depth + 1)


def _compute(node: ast.expr, values: Mapping[str, Any]) -> Any:
    match node:
        case ast.Name(id=name):
            return values[name.replace(_DOT, ".")]
        case ast.Constant(value=value):
            return value
        case ast.BinOp(left=left, op=sign, right=right):
            return _combined(sign, _number(_compute(left, values)), _number(_compute(right, values)))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _compute(operand, values)
        case ast.UnaryOp(op=sign, operand=operand):
            number = _number(_compute(operand, values))
            return -number if isinstance(sign, ast.USub) else number
        case ast.BoolOp(op=op, values=parts):
            ends = isinstance(op, ast.Or)  # as Python: the first that decides
            found: Any = None
            for part in parts:
                found = _compute(part, values)
                if bool(found) == ends:
                    break
            return found
        case ast.Compare(left=left, ops=ops, comparators=others):
            sides = [_compute(side, values) for side in (left, *others)]
            return all(_COMPARISONS[type(op)](*pair) for op, pair in zip(ops, pairwise(sides), strict=True))
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return _compute(body if _compute(test, values) else orelse, values)
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return FUNCTIONS[name](*(_number(_compute(argument, values)) for argument in arguments))
    raise ValueError(f"{type(node).__name__} is not allowed")


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"computes with {value!r}, which is no number")
    return value


def _combined(sign: ast.operator, left: int | float, right: int | float) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        bits = {ast.Pow: left.bit_length() * max(right, 1), ast.Mult: left.bit_length() + right.bit_length()}
        if bits.get(type(sign), 0) > _MAX_BITS:
            raise ValueError("comes to a number beyond all measure")
    return _SIGNS[type(sign)](left, right)
