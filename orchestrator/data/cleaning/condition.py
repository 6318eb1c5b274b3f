"""Which rows meet a condition of `spec.data.expression`, worked out by Arrow's kernels. Imports: numpy, pyarrow.

A null or NaN compares to nothing: what depends on it is neither true nor false, as in SQL.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.data.cleaning.cleaned import Mask
from orchestrator.data.cleaning.step import plain
from orchestrator.data.columns import null_rows
from orchestrator.errors import SourceError
from orchestrator.spec.data.expression import ALLOWED, Condition

_COMPARE: dict[type[ast.cmpop], Callable[..., Any]] = {
    ast.Eq: pc.equal,
    ast.NotEq: pc.not_equal,
    ast.Lt: pc.less,
    ast.LtE: pc.less_equal,
    ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
}


def rows_meeting(table: pa.Table, condition: Condition, field: str) -> Mask:
    """Where the condition is true, shape (rows,).

    Raises SourceError, with the position in the text, where types do not fit together or a number overflows.
    An empty table of the schema shows the former.
    """
    found = _Reader(table, condition, field).value(condition.tree)
    if not pa.types.is_boolean(found.type):
        raise SourceError(f"{field}: gives {found.type}, not true or false", "compare it, as in 'age >= 18'")
    return np.asarray(pc.fill_null(found, False), dtype=bool)


@dataclass(frozen=True)
class _Reader:
    table: pa.Table
    condition: Condition
    field: str

    def value(self, node: ast.expr) -> Any:
        """A column or scalar; NaN are null."""
        match node:
            case ast.Name(id=name):
                return _without_nan(plain(self.table[name]))
            case ast.Constant(value=value):
                return pa.scalar(value)
            case ast.BoolOp(op=op, values=parts):
                join = pc.and_kleene if isinstance(op, ast.And) else pc.or_kleene
                return self._reduced(node, join, [self.value(part) for part in parts])
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return self._run(node, pc.invert, self.value(operand))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self._run(node, pc.negate_checked, self.value(operand))
            case ast.UnaryOp(operand=operand):
                return self.value(operand)
            case ast.BinOp(left=left, op=op, right=right):
                return self._arithmetic(node, op, self.value(left), self.value(right))
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                sides = pairwise([left, *comparators])
                pairs = [self._compare(node, op, *pair) for op, pair in zip(ops, sides, strict=True)]
                return self._reduced(node, pc.and_kleene, pairs)
            case ast.Call(func=ast.Name(id=name), args=[argument]):
                return self._called(node, name, argument)
        raise AssertionError(ast.dump(node))  # parse_condition lets nothing else through

    def _compare(self, node: ast.expr, op: ast.cmpop, left: ast.expr, right: ast.expr) -> Any:
        if isinstance(op, ast.Is | ast.IsNot):
            missing = self._missing(left)
            return missing if isinstance(op, ast.Is) else pc.invert(missing)
        value = self.value(left)
        if isinstance(op, ast.In | ast.NotIn):
            assert isinstance(right, ast.Tuple | ast.List | ast.Set)
            options = [self._like(item, self.value(item), value.type) for item in right.elts]
            equal = [self._run(item, pc.equal, value, option) for item, option in
                     zip(right.elts, options, strict=True)]  # fmt: skip
            found = self._reduced(node, pc.or_kleene, equal)
            return found if isinstance(op, ast.In) else pc.invert(found)
        other = self.value(right)
        if isinstance(left, ast.Constant):
            value = self._like(left, value, other.type)
        if isinstance(right, ast.Constant):
            other = self._like(right, other, value.type)
        return self._run(node, _COMPARE[type(op)], value, other)

    def _like(self, node: ast.expr, constant: Any, kind: pa.DataType) -> Any:
        """A text that is compared with a date or time, as such."""
        if pa.types.is_temporal(kind) and pa.types.is_string(constant.type):
            return self._run(node, constant.cast, kind)
        return constant

    def _missing(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):  # of any type, arrays and images too
            return pa.array(null_rows(self.table[node.id]))
        return pc.is_null(self.value(node))

    def _arithmetic(self, node: ast.expr, op: ast.operator, left: Any, right: Any) -> Any:
        checked = {ast.Add: pc.add_checked, ast.Sub: pc.subtract_checked, ast.Mult: pc.multiply_checked}
        if type(op) in checked:
            return self._run(node, checked[type(op)], left, right)
        left, right = (self._run(node, pc.cast, side, pa.float64(), safe=False) for side in (left, right))
        if isinstance(op, ast.Pow):
            return _without_nan(self._run(node, pc.power, left, right))
        ratio = self._run(node, pc.divide, left, right)
        if not isinstance(op, ast.Div):
            ratio = pc.floor(ratio)
        if isinstance(op, ast.Mod):
            ratio = pc.subtract(left, pc.multiply(ratio, right))
        return _without_nan(ratio)

    def _called(self, node: ast.expr, name: str, argument: ast.expr) -> Any:
        if name == "isnull":
            return self._missing(argument)
        value = self.value(argument)
        if name == "len":
            lists = pa.types.is_list(value.type) or pa.types.is_large_list(value.type)
            return self._run(node, pc.list_value_length if lists else pc.utf8_length, value)
        return self._run(
            node, {"lower": pc.utf8_lower, "upper": pc.utf8_upper, "abs": pc.abs_checked}[name], value
        )

    def _reduced(self, node: ast.expr, join: Callable[..., Any], parts: list[Any]) -> Any:
        found = parts[0]
        for part in parts[1:]:
            found = self._run(node, join, found, part)
        return found

    def _run(self, node: ast.expr, kernel: Callable[..., Any], *values: Any, **options: Any) -> Any:
        try:
            return kernel(*values, **options)
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
            kinds = " and ".join(str(value.type) for value in values if hasattr(value, "type"))
            reason = str(error).splitlines()[0]
            raise SourceError(
                f"{self.field}: position {self.condition.position(node)}: does not work with {kinds or 'this'} "
                f"({reason})",
                f"cast the column by a step before, or change the condition; {ALLOWED}",
            ) from error


def _without_nan(value: Any) -> Any:
    if not pa.types.is_floating(value.type):
        return value
    return pc.if_else(pc.is_nan(value), pa.scalar(None, value.type), value)
