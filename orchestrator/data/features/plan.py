"""Which transform works on which columns, told from the section and the columns' types alone.

Imports: none but those of `data.columns`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.data.columns import unknown_column
from orchestrator.errors import SourceError
from orchestrator.spec.data import (
    CategoryTransform,
    Hashing,
    NumberTransform,
    OneHot,
    Ordinal,
    Robust,
    TargetEncoding,
    Transform,
)


@dataclass(frozen=True)
class Plan:
    """`encoders` by column; `numbers` in the order of the section, each with the raw columns whose numbers it
    changes, or None for all channels of images and arrays."""

    encoders: Mapping[str, CategoryTransform]
    numbers: tuple[tuple[NumberTransform, tuple[str, ...] | None], ...]


def plan_table(steps: Sequence[Transform], dtypes: Mapping[str, str]) -> Plan:
    """The plan for a table of columns of these dtypes, `str` for strings, else numpy's names.

    Raises SourceError where a step names a column that is missing, of another type, encoded twice or not yet.
    """
    encoders: dict[str, CategoryTransform] = {}
    named: list[tuple[int, NumberTransform]] = []
    for index, step in enumerate(steps):
        place = f"data.transforms[{index}] ({step.kind})"
        for name in step.columns or []:
            if name not in dtypes:
                raise SourceError(
                    f"{place}.columns: there is no feature '{name}'", unknown_column(name, list(dtypes))
                )
        if not isinstance(step, OneHot | Ordinal | Hashing | TargetEncoding):
            named.append((index, step))
            continue
        for name in _to_encode(step, dtypes, encoders, place):
            encoders[name] = step
    plain = tuple(name for name in dtypes if name not in encoders)
    for index, step in named:
        place = f"data.transforms[{index}] ({step.kind})"
        for name in step.columns or []:
            if name in encoders and any(encoders[name] is later for later in steps[index:]):
                raise SourceError(
                    f"{place}.columns: '{name}' is encoded only further down ({encoders[name].kind})",
                    f"put the {step.kind} behind it, or leave '{name}' out of one of them",
                )
            if name not in encoders and dtypes[name] == "str":
                raise SourceError(
                    f"{place}.columns: '{name}' holds strings",
                    f"encode it first, as by {{kind: one_hot, columns: [{name}]}}",
                )
    return Plan(encoders, tuple((step, tuple(step.columns) if step.columns else plain) for _, step in named))


def plan_channels(steps: Sequence[Transform], shape: tuple[int, ...]) -> Plan:
    """The plan for images or arrays, of which a row is stored in this shape.

    Raises SourceError for steps that are for tables.
    """
    numbers: list[NumberTransform] = []
    for index, step in enumerate(steps):
        place = f"data.transforms[{index}] ({step.kind})"
        if step.columns or isinstance(step, OneHot | Ordinal | Hashing | TargetEncoding):
            raise SourceError(
                f"{place} is for the columns of a table, and the feature is an image or an array",
                "leave 'columns' out" if step.columns else "leave the step out",
            )
        if isinstance(step, Robust) and len(shape) > 1:
            raise SourceError(f"{place} is not for images", "write standardize or min_max")
        numbers.append(step)
    return Plan({}, tuple((step, None) for step in numbers))


def _to_encode(
    step: CategoryTransform, dtypes: Mapping[str, str], encoders: Mapping[str, CategoryTransform], place: str
) -> list[str]:
    names = step.columns or [
        name for name, dtype in dtypes.items() if dtype == "str" and name not in encoders
    ]
    if not names:
        raise SourceError(
            f"{place}: no column of strings is left to encode",
            "name booleans or integers by 'columns', or leave it out",
        )
    for name in names:
        if name in encoders or names.count(name) > 1:
            raise SourceError(f"{place}.columns: '{name}' is encoded twice", "leave one of them out")
        if dtypes[name] not in ("str", "bool") and not dtypes[name].startswith(("int", "uint")):
            raise SourceError(
                f"{place}.columns: '{name}' is {dtypes[name]}, and categories are strings, booleans or integers",
                "name other columns, or cast it by data.clean",
            )
    return names
