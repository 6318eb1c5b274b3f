"""What all sections of a job spec share: strict keys, and the field types that carry units.

Imports: pydantic, and `units`.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, WithJsonSchema

from orchestrator.units import parse_duration, parse_size


class Section(BaseModel):
    """A section of the spec: unknown keys are refused, values never change after reading."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,  # YAML has types of its own: no "3" for 3, no true for 1
        allow_inf_nan=False,
        defer_build=True,  # only the job as a whole is ever validated: build one validator, not thirty
        protected_namespaces=(),
    )


OBJECT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
"""What `module:object` looks like, dots allowed on both sides."""


def _object_path(value: str) -> str:
    if not OBJECT_PATH.fullmatch(value):
        raise ValueError("must have the form 'module:object', as in 'my_model:Net'")
    return value


def _env_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise ValueError(
            f"'{value}' cannot name an environment variable: use letters, digits and '_', no digit first"
        )
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
    WithJsonSchema(
        {"anyOf": [{"type": "integer"}, {"type": "string", "examples": ["512MB", "64GB", "2GiB"]}]}
    ),
]
"""Bytes; written as a number or with a unit: `64GB` (10⁹), `64GiB` (2³⁰)."""

ObjectPath = Annotated[str, AfterValidator(_object_path)]
"""User code, as `module:object`, found next to the spec or in the working directory."""

EnvName = Annotated[str, AfterValidator(_env_name)]
"""The name of an environment variable."""
