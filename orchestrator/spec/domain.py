"""The values that one parameter of a search may take."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, Self, get_args

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from orchestrator.spec.arithmetic import parse_arithmetic
from orchestrator.spec.base import Section

Kind = Literal["uniform", "loguniform", "quniform", "randint", "lograndint", "choice", "grid_search", "expr"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def same_value(one: Any, other: Any) -> bool:
    """Equal as YAML sees it: 1 is 1.0, and true is not 1."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


class Domain(Section):
    """The values that one parameter may take: exactly one of the kinds, and perhaps `when`."""

    uniform: tuple[float, float] | None = Field(default=None, strict=False)
    """[low, high]: any number in between, each as likely."""
    loguniform: tuple[float, float] | None = Field(default=None, strict=False)
    """[low, high]: any number in between, each order of magnitude as likely."""
    quniform: tuple[float, float, float] | None = Field(default=None, strict=False)
    """[low, high, q]: the multiples of q from low to high."""
    randint: tuple[int, int] | None = Field(default=None, strict=False)
    """[low, high): a whole number, high left out."""
    lograndint: tuple[int, int] | None = Field(default=None, strict=False)
    """[low, high): a whole number, high left out, each order of magnitude as likely."""
    choice: list[Any] | None = Field(default=None, min_length=1)
    """One of these values."""
    grid_search: list[Any] | None = Field(default=None, min_length=1)
    """Each of these values, with every combination of the other grids."""
    expr: str | None = None
    """Follows from others: arithmetic over paths of parameters and fields, as `4096 // train.global_batch_size`."""
    when: dict[str, Any] = Field(default_factory=dict)
    """Only where all of these hold: the path of another parameter or field, and its value or a list of them."""

    @model_validator(mode="before")
    @classmethod
    def _is_a_domain(cls, value: Any) -> Any:
        if isinstance(value, dict):
            if value and not any(key in cls.model_fields for key in value) and all(
                isinstance(inner, dict) for inner in value.values()
            ):  # fmt: skip
                raise ValueError(
                    f"is no domain; write the whole path as one key, as in 'train.optimizer.lr:', and under it one of "
                    f"{', '.join(KINDS)}"
                )
            return value
        shown = "a list" if isinstance(value, list) else repr(value)
        raise ValueError(
            f"is {shown}, not a domain; write one of {', '.join(KINDS)}, as in {{uniform: [0.1, 0.5]}}; "
            "a fixed value belongs in its own section"
        )

    @field_validator("expr")
    @classmethod
    def _is_arithmetic(cls, value: str | None) -> str | None:
        if value is not None:
            parse_arithmetic(value)
        return value

    @field_validator("when")
    @classmethod
    def _some_value(cls, value: dict[str, Any]) -> dict[str, Any]:
        for path, wanted in value.items():
            if wanted == []:
                raise ValueError(f"{path}: lists no value, so that it never holds")
        return value

    @model_validator(mode="after")
    def _holds_values(self) -> Self:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            told = f"has {' and '.join(given)}" if given else "has no values"
            raise ValueError(f"{told}; write exactly one of {', '.join(KINDS)}")
        kind, values = self.kind, self.values
        if kind in ("choice", "grid_search"):
            for index, item in enumerate(values):
                if any(same_value(item, other) for other in values[:index]):
                    raise ValueError(f"{kind} lists {item!r} twice")
        elif kind != "expr":
            low, high = values[:2]
            if low >= high:
                raise ValueError(f"{kind}: [low, high] needs low < high, not [{low:g}, {high:g}]")
            if kind in ("loguniform", "lograndint") and low <= 0:
                raise ValueError(f"{kind}: low must be greater than 0, not {low:g}")
            if kind == "quniform":
                step = values[2]
                if step <= 0:
                    raise ValueError(f"quniform: [low, high, q] needs q greater than 0, not {step:g}")
                if _steps(high, step, math.floor) < _steps(low, step, math.ceil):
                    raise ValueError(f"quniform: no multiple of {step:g} lies between {low:g} and {high:g}")
        return self

    @model_serializer(mode="wrap")
    def _without_nothing(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = handler(self)
        return {
            key: value for key, value in written.items() if value is not None and (key != "when" or value)
        }

    @property
    def kind(self) -> Kind:
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def values(self) -> list[Any]:
        """What the kind was given: the bounds, the values to choose from; of an `expr`, its text."""
        given = getattr(self, self.kind)
        return [given] if isinstance(given, str) else list(given)

    def corners(self, most: int = 100) -> list[Any]:
        """The values at the ends, or the (first) ones to choose from. An `expr` has none of its own."""
        low, high = [*self.values, None, None][:2]
        match self.kind:
            case "choice" | "grid_search":
                return self.values[:most]
            case "randint" | "lograndint":
                return [low, high - 1] if high - 1 > low else [low]
            case "quniform":
                step = self.values[2]
                ends = [_steps(low, step, math.ceil) * step, _steps(high, step, math.floor) * step]
                return ends if ends[0] < ends[1] else ends[:1]
            case "expr":
                return []
            case _:
                return [low, high]

    def holds(self, value: Any) -> bool:
        """Whether the value is one of the domain's."""
        if self.kind in ("choice", "grid_search"):
            return any(same_value(value, item) for item in self.values)
        if isinstance(value, bool) or not isinstance(value, int | float) or self.kind == "expr":
            return False
        low, high = self.values[:2]
        if self.kind in ("randint", "lograndint"):
            return isinstance(value, int) and low <= value < high
        if self.kind == "quniform":
            steps = value / self.values[2]
            return low <= value <= high and math.isclose(steps, round(steps), abs_tol=1e-6)
        return bool(low <= value <= high)


def _steps(bound: float, step: float, rounded: Callable[[float], int]) -> int:
    """A bound as a multiple of the step, rounded inwards, but for what floats miss it by."""
    count = bound / step
    return round(count) if math.isclose(count, round(count), abs_tol=1e-9) else int(rounded(count))
