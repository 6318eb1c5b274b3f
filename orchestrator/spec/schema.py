"""The JSON schema of a job spec, for editors: completion, descriptions, red lines under unknown keys."""

from __future__ import annotations

import ast
import inspect
import sys
from itertools import pairwise
from typing import Any

from orchestrator.spec.base import Section
from orchestrator.spec.job import JobSpec

_EXAMPLE = {
    "name": "digits",
    "data": {
        "source": {"kind": "sklearn", "name": "digits"},
        "target": "label",
        "split": {"kind": "stratified"},
        "transforms": [{"kind": "standardize"}],
    },
    "model": {"name": "cnn"},
    "train": {"max_epochs": 10, "global_batch_size": 64, "optimizer": {"kind": "adamw", "lr": 0.001}},
    "resources": {"num_workers": 2},
    "mlflow": {"registered_model_name": "digits"},
}


def json_schema() -> dict[str, Any]:
    """Draft 2020-12. Each field carries the text that stands under it in the source."""
    schema = JobSpec.model_json_schema()
    definitions = schema.pop("$defs")
    _describe(schema, JobSpec)
    for section in _sections(Section):
        if section.__name__ in definitions:
            _describe(definitions[section.__name__], section)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "Orchestrator job spec",
        "examples": [_EXAMPLE],
        "$defs": definitions,
    }


def _sections(base: type[Section]) -> list[type[Section]]:
    return [section for child in base.__subclasses__() for section in (child, *_sections(child))]


def _describe(schema: dict[str, Any], section: type[Section]) -> None:
    """Pydantic can gather these texts too, but does so at import, where every command would pay for it."""
    for name, text in field_docs(section).items():
        schema["properties"][name]["description"] = text


def field_docs(section: type[Section]) -> dict[str, str]:
    """The string that stands under each field of a section in its source, joined to one line."""
    bases = [base for base in reversed(section.__mro__) if issubclass(base, Section) and base is not Section]
    return {name: text for base in bases for name, text in _own_docs(base).items()}


def _own_docs(section: type[Section]) -> dict[str, str]:
    tree = ast.parse(inspect.getsource(sys.modules[section.__module__]))
    body = next(
        node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == section.__name__
    )
    docs: dict[str, str] = {}
    for statement, below in pairwise(body):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            docs[statement.target.id] = " ".join(below.value.value.split())
    return docs
