"""What all sections of a job spec share: strict keys, and the field types that carry units.

Imports: pydantic, and `spec.units`.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, WithJsonSchema

from orchestrator.spec.units import parse_duration, parse_size


class Section(BaseModel):
    """A section of the spec: unknown keys are refused, values never change after reading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )


def _object_path(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", value):
        raise ValueError("must have the form 'module:object', as in 'my_model:Net'")
    return value


Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string", "examples": ["90s", "10m", "1h30m"]}]}),
]
"""Seconds; written as a number or with a unit: `90`, `90s`, `10m`, `1h30m`, `2d`."""

Size = Annotated[
    int,
    BeforeValidator(parse_size),
    WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "string", "examples": ["512MB", "64GB", "2GiB"]}]}),
]
"""Bytes; written as a number or with a unit: `64GB` (10⁹), `64GiB` (2³⁰)."""

ObjectPath = Annotated[str, AfterValidator(_object_path)]
"""User code, as `module:object`, found next to the spec or in the working directory."""
