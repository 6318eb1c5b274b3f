"""A job spec from a file, from standard input or from a dict: checked, with all of its faults at once."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.errors import Fault, SpecError
from orchestrator.spec.document import Document, Place, from_python, parse
from orchestrator.spec.environment import substitute
from orchestrator.spec.faults import explain
from orchestrator.spec.job import JobSpec
from orchestrator.spec.overrides import apply_nested, apply_overrides
from orchestrator.spec.search_faults import search_faults
from orchestrator.spec.validation import validate

MAX_FILE_BYTES = 1_000_000


@dataclass(frozen=True)
class LoadedSpec:
    """A valid spec, and how it came about.

    `document` is what was written, overrides merged in, references to the environment still in place.
    `env_names` and `secret_env_names` are the variables read outside and inside `secrets`: whoever loads the
    document elsewhere must set them. `search_paths` is where user code is looked for, first match first.
    """

    spec: JobSpec
    path: Path | None
    document: dict[str, Any] = field(repr=False)
    env_names: tuple[str, ...]
    secret_env_names: tuple[str, ...]
    search_paths: tuple[str, ...]


def load_spec(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    overrides_dict: Mapping[str, Any] | None = None,
) -> LoadedSpec:
    """Read and check a spec: a path, `-` for standard input, or a dict in the form of the YAML.

    `overrides_dict` (nested) is laid over the document first, then `overrides` (`key.path=value`), then the
    environment is filled in. Raises SpecError with all faults, sorted by place.
    """
    path = None if isinstance(source, Mapping) or str(source) == "-" else Path(source)
    document, faults = _read(source)
    if overrides_dict:
        document, found = apply_nested(document, overrides_dict)
        faults += found
    document, found = apply_overrides(document, overrides)
    faults += found
    substituted = substitute(document, os.environ)
    faults += substituted.faults
    try:
        spec = validate(substituted)
    except ValidationError as error:
        known = [fault.field for fault in faults]
        faults += [
            fault
            for fault in explain(error, document)
            if not any(fault.field == name or fault.field.startswith(f"{name}.") for name in known)
        ]
    else:
        faults += search_faults(spec, substituted) if not faults else []
    if faults:
        raise SpecError(
            sorted(set(faults), key=lambda fault: (fault.file or "", fault.line or 0, fault.field))
        )
    folders = [path.resolve().parent, Path.cwd()] if path else [Path.cwd()]
    return LoadedSpec(
        spec=spec,
        path=path,
        document=document.values,
        env_names=substituted.names,
        secret_env_names=substituted.secret_names,
        search_paths=tuple(dict.fromkeys(str(folder) for folder in folders)),
    )


def _read(source: str | Path | Mapping[str, Any]) -> tuple[Document, list[Fault]]:
    if isinstance(source, Mapping):
        values, faults = from_python(source)
        return Document(values, {(): Place()}), faults
    name = "standard input" if str(source) == "-" else str(source)
    try:
        if str(source) == "-":
            data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        else:
            with Path(source).open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
    except IsADirectoryError as error:
        raise _unreadable(name, "is a folder", _nearby(Path(source))) from error
    except FileNotFoundError as error:
        raise _unreadable(
            name, "there is no such file", _nearby(Path(source).parent, Path(source).name)
        ) from error
    except (OSError, ValueError) as error:
        raise _unreadable(name, f"cannot be read: {error}", "Give the path of a YAML job spec") from error
    if len(data) > MAX_FILE_BYTES:
        raise _unreadable(name, "is larger than 1 MB", "Give the path of a YAML job spec")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SpecError([Fault("", "is not UTF-8 text", "Save it as UTF-8", name, line)]) from error
    return parse(text, name)


def _unreadable(name: str, reason: str, mend: str) -> SpecError:
    return SpecError([Fault("", reason, mend, name)])


def _nearby(folder: Path, wanted: str = "") -> str:
    """Names the specs in the folder, the most alike first."""
    try:
        names = sorted(path.name for path in folder.iterdir() if path.suffix in (".yaml", ".yml"))
    except (OSError, ValueError):
        return "Give the path of a YAML job spec"
    close = difflib.get_close_matches(wanted, names, 3, 0.5) or names[:3]
    if not close:
        return "Give the path of a YAML job spec"
    return "Did you mean " + " or ".join(str(folder / name) for name in close) + "?"
