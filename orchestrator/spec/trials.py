"""The spec of one trial of a search: its parameters laid over the job's document, checked like any other."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from orchestrator.errors import Fault, SpecError
from orchestrator.spec.anatomy import fields_of_kind
from orchestrator.spec.document import Document, Place
from orchestrator.spec.domain import same_value
from orchestrator.spec.environment import escape_all, substitute
from orchestrator.spec.faults import explain
from orchestrator.spec.overrides import put
from orchestrator.spec.render import to_plain
from orchestrator.spec.validation import validate

if TYPE_CHECKING:
    from orchestrator.spec.load import LoadedSpec


def trial_spec(loaded: LoadedSpec, params: Mapping[str, Any]) -> LoadedSpec:
    """The job of one trial: the parameters (of `SearchSpace.resolve`) laid over the document, `tune` left out.

    Raises SpecError, which names the parameter and its value, where they do not fit.
    """
    file = str(loaded.path) if loaded.path else None
    written = Document(loaded.document, {(): Place(file)})
    document = lay_params(
        written, {path: escape_all(value) for path, value in params.items()}, to_plain(loaded.spec)
    )
    substituted = substitute(document, os.environ)
    if substituted.faults:
        raise SpecError(substituted.faults)
    try:
        spec = validate(substituted)
    except ValidationError as error:
        raise SpecError([blame(fault, params) for fault in explain(error, substituted.document)]) from None
    return replace(loaded, spec=spec, document=document.values)


def lay_params(document: Document, params: Mapping[str, Any], defaults: Mapping[str, Any]) -> Document:
    """The document of a trial. Sections that it does not have are made on the way; `defaults` (the job as plain
    values) tell their `kind`.

    A section whose `kind` changes keeps the keys that the new kind knows too; `args` go with the `name` that they were
    written for. Raises SpecError where a path runs through something that is no section.
    """
    values = copy.deepcopy(document.values)
    values.pop("tune", None)
    for path in sorted(params, key=_outer_first):
        parts = path.split(".")
        _make_ready(values, parts, params[path], defaults)
        try:
            put(values, parts, copy.deepcopy(params[path]))
        except SpecError as error:
            raise SpecError([Fault(path, fault.reason, fault.mend) for fault in error.faults]) from None
    return Document(values, document.places)


def blame(fault: Fault, params: Mapping[str, Any]) -> Fault:
    """A trial's fault, with the parameters that it comes of, as far as that can be told."""
    culprits = related(fault, list(params)) or list(params)
    given = ", ".join(f"{path} = {params[path]!r}" for path in culprits[:5])
    return replace(fault, reason=f"{fault.reason} (in the trial with {given})")


def related(fault: Fault, paths: Sequence[str]) -> list[str]:
    """Those of the paths that a fault speaks of: its own field, what lies inside it or around it, the narrowest."""
    own = [path for path in paths if f"{fault.field}.".startswith(f"{path}.")]
    inner = [path for path in paths if path.startswith(f"{fault.field}.") or not fault.field]
    named = [path for path in inner if path.rpartition(".")[2] in fault.reason]
    return own or named or inner


def _outer_first(path: str) -> tuple[int, bool]:
    """Sections before what lies in them, and what a section is before its other keys."""
    return path.count("."), path.rpartition(".")[2] not in ("kind", "name")


def _make_ready(
    values: dict[str, Any], parts: Sequence[str], value: Any, defaults: Mapping[str, Any]
) -> None:
    """Walk to where the value will lie, name the kinds of sections on the way, and drop what the value unseats."""
    here: Any = values
    default: Any = defaults
    for depth, part in enumerate(parts):
        if (
            isinstance(here, dict)
            and isinstance(default, Mapping)
            and "kind" in default
            and "kind" not in here
        ):
            here["kind"] = default["kind"]
        if depth == len(parts) - 1:
            break
        default = _step(default, part)
        inner = _step(here, part)
        if inner is None and isinstance(here, dict):
            inner = here[part] = copy.deepcopy(default) if isinstance(default, list) else {}
        elif isinstance(inner, str) and isinstance(default, Mapping) and "name" in default:
            inner = here[part] = {"name": inner}  # a name alone stands for the section, as in loss: focal
        here = inner
    if not isinstance(here, dict) or same_value(here.get(parts[-1]), value):
        return
    if parts[-1] == "name":
        here.pop("args", None)
    elif parts[-1] == "kind" and isinstance(value, str) and (known := fields_of_kind(parts[:-1], value)):
        for key in [key for key in here if key not in known]:
            del here[key]


def _step(value: Any, part: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(part)
    if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
        return value[int(part)]
    return None
