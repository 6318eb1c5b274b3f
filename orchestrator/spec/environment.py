"""`${env:NAME}`, `${env:NAME:-default}` and `${env:NAME:?what to do without it}` in the values of a document.

`$${env:` stands for itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import Fault
from orchestrator.spec.document import Document, FieldPath, unfit

_REFERENCE = re.compile(r"(\$\$\{env:)|\$\{env:([^}]*)(\})?")
_INSIDE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::([-?])((?:(?!\$\{).)*))?", re.DOTALL)


@dataclass(frozen=True)
class Substituted:
    """A document with the environment's values in it.

    `from_environment` are the fields that hold such a value, always as text. `names` and `secret_names` are
    the variables read outside and inside `secrets`, sorted: what must be passed on to another machine.
    """

    document: Document
    from_environment: frozenset[FieldPath]
    names: tuple[str, ...]
    secret_names: tuple[str, ...]
    faults: tuple[Fault, ...]


def substitute(document: Document, environ: Mapping[str, str]) -> Substituted:
    """Replace the references; a variable that is not set and has no default is a fault of its field.

    As in a shell, the default after `:-` also stands in for an empty variable, and with `:?` an empty variable
    is a fault too; the text after it is that fault's mend.
    """
    fields: set[FieldPath] = set()
    names: set[str] = set()
    secret_names: set[str] = set()
    faults: list[Fault] = []

    def text_of(text: str, path: FieldPath) -> str:
        def replace(match: re.Match[str]) -> str:
            escaped, inside, closed = match.groups()
            if escaped:
                return "${env:"
            parsed = _INSIDE.fullmatch(inside)
            if not closed or not parsed:
                reason = "holds a malformed reference to the environment"
                mend = (
                    "Write ${env:NAME}, ${env:NAME:-default} or ${env:NAME:?message}, "
                    "or $${env: for the text itself"
                )
                faults.append(document.fault(path, reason, mend))
                return ""
            name, mark, rest = parsed.groups()
            value = environ.get(name)
            if not value and mark == "-":
                return str(rest)
            if value is None or (not value and mark == "?"):
                mend = rest.strip() if mark == "?" else ""
                mend = mend or f"Run: export {name}=…, or give a default: ${{env:{name}:-…}}"
                state = "not set" if value is None else "empty"
                faults.append(document.fault(path, f"the environment variable {name} is {state}", mend))
                return ""
            if unfit(value):
                faults.append(document.fault(path, f"the environment variable {name} is not UTF-8 text"))
                return ""
            (secret_names if path[0] == "secrets" else names).add(name)
            return value

        replaced = _REFERENCE.sub(replace, text)
        if replaced != text:
            fields.add(path)
        return replaced

    def value_of(value: Any, path: FieldPath) -> Any:
        if isinstance(value, dict):
            return {key: value_of(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [value_of(item, (*path, index)) for index, item in enumerate(value)]
        return text_of(value, path) if isinstance(value, str) else value

    substituted = Document(value_of(document.values, ()), document.places)
    return Substituted(
        substituted, frozenset(fields), tuple(sorted(names)), tuple(sorted(secret_names)), tuple(faults)
    )


def escape(text: str) -> str:
    """The text such that `substitute` gives it back as it is."""
    return text.replace("${env:", "$${env:")


def escape_all(value: Any) -> Any:
    """The same for every text in plain values."""
    if isinstance(value, dict):
        return {key: escape_all(item) for key, item in value.items()}
    if isinstance(value, list):
        return [escape_all(item) for item in value]
    return escape(value) if isinstance(value, str) else value
