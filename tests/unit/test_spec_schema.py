from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import orchestrator.spec
from orchestrator.spec import json_schema, load_spec
from orchestrator.spec.base import Section
from orchestrator.spec.job import JobSpec
from tests.unit.spec_helpers import FULL_YAML, MINIMAL, minimal

SCHEMA = json_schema()


def leaves(base: type[Section]) -> list[type[Section]]:
    return [leaf for child in base.__subclasses__() for leaf in leaves(child) or [child]]


SECTIONS = leaves(Section)


def definition(section: type[Section]) -> dict[str, Any]:
    found: dict[str, Any] = SCHEMA if section is JobSpec else SCHEMA["$defs"][section.__name__]
    return found


def test_it_is_a_valid_schema_that_refuses_unknown_keys() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"].endswith("2020-12/schema")
    for section in SECTIONS:
        assert definition(section)["additionalProperties"] is False


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_field_is_in_the_schema(section: type[Section]) -> None:
    assert set(definition(section)["properties"]) == set(section.model_fields)


def test_every_text_under_a_field_is_its_description() -> None:
    """The texts are found here by their indentation alone, without the parser that the schema uses."""
    described = 0
    everything = {
        (name, field): " ".join(str(properties.get("description", "")).split())
        for name, part in [("JobSpec", SCHEMA), *SCHEMA["$defs"].items()]
        for field, properties in part["properties"].items()
    }
    for path in Path(orchestrator.spec.__file__).parent.rglob("*.py"):
        section = field = ""
        for line in path.read_text().splitlines():
            if match := re.match(r"class (\w+)\((Section|OptimizerBase)\)", line):
                section, field = match.group(1).replace("OptimizerBase", "Sgd"), ""
            elif re.match(r"\S", line):
                section = ""
            elif match := re.match(r"    (\w+): ", line):
                field = match.group(1)
            elif (match := re.match(r'    """(.*)', line)) and section and field:
                first = match.group(1).removesuffix('"""')
                assert everything[section, field].startswith(first)
                described += 1
    assert described > 20


def test_the_examples_are_valid_for_the_schema_and_for_the_models() -> None:
    for example in [*SCHEMA["examples"], MINIMAL, yaml.safe_load(FULL_YAML.replace("1e-3", "0.001"))]:
        if "when" in example.get("tags", {}):
            example["tags"]["when"] = str(example["tags"]["when"])
        jsonschema.validate(example, SCHEMA)
        load_spec(example)


@pytest.mark.parametrize(
    ("workers", "good"), [(1, True), ([1, 4], True), (0, False), ([0, 4], False), ([1], False), ("2", False)]
)
def test_an_editor_knows_what_workers_look_like(workers: object, good: bool) -> None:
    spec = minimal(resources={"num_workers": workers})
    assert jsonschema.Draft202012Validator(SCHEMA).is_valid(spec) == good


@pytest.mark.parametrize(
    "sections",
    [
        {"nme": 1},
        {"train": {"max_epoch": 1}},
        {"train": {"max_epochs": "x"}},
        {"train": {"optimizer": {"kind": "x"}}},
    ],
)
def test_the_schema_refuses_what_the_models_refuse(sections: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(minimal(**sections), SCHEMA)
