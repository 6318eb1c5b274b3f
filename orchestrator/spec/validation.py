"""A document, with the environment's values in it, checked against the models."""

from __future__ import annotations

import copy
from typing import Any

from pydantic import ValidationError

from orchestrator.spec.anatomy import locate
from orchestrator.spec.document import FieldPath, plain_scalar
from orchestrator.spec.environment import Substituted
from orchestrator.spec.job import JobSpec


def validate(substituted: Substituted) -> JobSpec:
    """Raises ValidationError. What the environment gives is text; where a field wants something else, the
    text is read as YAML would read it unquoted."""
    values = substituted.document.values
    try:
        return JobSpec.model_validate(values)
    except ValidationError as error:
        refused = {locate(detail["loc"]).path for detail in error.errors(include_url=False)}
        again = sorted(refused & substituted.from_environment, key=str)
        if not again:
            raise
    values = copy.deepcopy(values)
    for path in again:
        _retype(values, path)
    return JobSpec.model_validate(values)


def _retype(values: Any, path: FieldPath) -> None:
    for part in path[:-1]:
        values = values[part]
    values[path[-1]] = plain_scalar(values[path[-1]])
