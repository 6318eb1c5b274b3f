"""Settings from the command line (`train.max_epochs=3`) and from Python (dicts), laid over a document."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.errors import Fault, SpecError
from orchestrator.spec.document import Document, FieldPath, Place, dotted, from_python, parse_value, unfit
from orchestrator.spec.domain import KINDS

COMMAND_LINE = "command line"
PYTHON = "Python overrides"


def apply_overrides(document: Document, overrides: Sequence[str]) -> tuple[Document, list[Fault]]:
    """Each `key.path=value` replaces the value there; missing sections are made on the way.

    The value is read as YAML (`3`, `null`, `[1, 2]`, `{kind: sgd}`), a list index stands as a number
    (`data.transforms.0.kind=scale`; one past the end appends). Later ones win. A faulty one is left out.
    """
    values = copy.deepcopy(document.values)
    places = dict(document.places)
    faults: list[Fault] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        parts = _parts(key, values)
        if not equals or not all(parts) or unfit(key):
            reason = "is not of the form key.path=value"
            faults.append(Fault(key or "(empty)", reason, "Write it as train.max_epochs=3", COMMAND_LINE))
            continue
        try:
            value = parse_value(text, COMMAND_LINE)
            path = put(values, parts, value)
        except SpecError as error:
            faults += [Fault(key, fault.reason, fault.mend, COMMAND_LINE) for fault in error.faults]
            continue
        places = {known: place for known, place in places.items() if known[: len(path)] != path}
        places[path] = Place(COMMAND_LINE)
        for depth in range(1, len(path)):
            places.setdefault(path[:depth], Place(COMMAND_LINE))  # a section made on the way
    return Document(values, places), faults


def apply_nested(document: Document, overrides: Mapping[str, Any]) -> tuple[Document, list[Fault]]:
    """Lay a nested dict over the document: sections merge key by key, all else replaces.

    A dict that names another `kind` than the one it meets replaces it too: their keys differ. And `args` go
    with the `name` that they were written for.
    A dotted key (`train.max_epochs`) stands for the dicts that it runs through.
    """
    plain, found = from_python(_undotted(overrides, document.values))
    places = dict(document.places)
    values = _merge(document.values, plain, (), places)
    faults = [Fault(fault.field, fault.reason, fault.mend, PYTHON) for fault in found]
    return Document(values, places), faults


def _parts(key: str, values: Mapping[str, Any]) -> list[str]:
    """The keys that a path runs through. Those of `tune.param_space` hold dots themselves."""
    parts = [part.strip() for part in key.split(".")]
    if parts[:2] != ["tune", "param_space"]:
        return parts
    rest, tune = parts[2:], values.get("tune")
    there = tune.get("param_space") if isinstance(tune, dict) else None
    if not isinstance(there, dict) or ".".join(rest) not in there:
        for length in range(1, len(rest)):
            if rest[length] == "when" or (length == len(rest) - 1 and rest[length] in KINDS):
                tail = [".".join(rest[length + 1 :])] if rest[length + 1 :] else []
                return [*parts[:2], ".".join(rest[:length]), rest[length], *tail]
    return [*parts[:2], ".".join(rest)] if rest else parts


def _undotted(overrides: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in overrides.items():
        *sections, name = _parts(key, values) if isinstance(key, str) else [key]
        for section in reversed(sections):
            name, value = section, {name: value}
        both = isinstance(value, Mapping) and isinstance(nested.get(name), Mapping)
        nested[name] = _merge(nested[name], dict(value), (), {}) if both else value
    return nested


def put(values: dict[str, Any], parts: Sequence[str], value: Any) -> FieldPath:
    """Put the value in; raises SpecError where the path runs through something that is no section."""
    here: Any = values
    path: FieldPath = ()
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        step: str | int = part
        if isinstance(here, list):
            step = _index(here, part, path)
            if step == len(here):
                here.append(None)
        elif not isinstance(here, dict):
            raise _refused(f"{dotted(path)} is {_kind(here)}, not a section: nothing can be set inside it")
        path = (*path, step)
        if last:
            here[step] = value
        else:
            inner = here.get(step) if isinstance(here, dict) else here[step]
            if inner is None:
                inner = here[step] = {}
            here = inner
    return path


def _index(here: list[Any], part: str, path: FieldPath) -> int:
    if not part.isdecimal() or len(part) > 6:
        raise _refused(f"{dotted(path)} is a list: '{part}' is no index of it")
    if int(part) > len(here):
        raise _refused(f"{dotted(path)} has {len(here)} items: write an index from 0 to {len(here)}")
    return int(part)


def _refused(reason: str) -> SpecError:
    return SpecError([Fault("", reason)])


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "a boolean"
    return "text" if isinstance(value, str) else "a number"


def _merge(below: Any, above: Any, path: FieldPath, places: dict[FieldPath, Place]) -> Any:
    merges = isinstance(below, dict) and isinstance(above, dict)
    if merges and ("kind" not in above or above["kind"] == below.get("kind")):
        merged = dict(below)
        if "args" in below and above.get("name", below.get("name")) != below.get("name"):
            del merged["args"]  # those of another network
            below = dict(merged)
            for known in [known for known in places if known[: len(path) + 1] == (*path, "args")]:
                del places[known]
        for key, value in above.items():
            merged[key] = _merge(below.get(key), value, (*path, key), places)
        return merged
    for known in [known for known in places if known[: len(path)] == path]:
        del places[known]
    places[path] = Place(PYTHON)
    return above
