"""The job spec: its sections, and how one is read, checked and shown.

Imports: pydantic, yaml, `errors`. Nothing heavy: `orchestrator validate` answers at once.
"""

from orchestrator.spec.job import MASK, JobSpec
from orchestrator.spec.load import LoadedSpec, load_spec
from orchestrator.spec.render import redact, render, secret_values, to_plain
from orchestrator.spec.schema import json_schema

__all__ = [
    "MASK",
    "JobSpec",
    "LoadedSpec",
    "json_schema",
    "load_spec",
    "redact",
    "render",
    "secret_values",
    "to_plain",
]
