"""What pydantic found wrong, as faults in plain words: file, line, field, and what to write instead."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from orchestrator.errors import Fault
from orchestrator.spec.anatomy import Spot, homes, kinds_at, locate
from orchestrator.spec.base import Section
from orchestrator.spec.document import Document, FieldPath, dotted

Detail = Mapping[str, Any]
"""One error as pydantic tells it: type, loc, input, msg, ctx."""

MAX_FAULTS = 100
_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a section with keys",
    "model_type": "a section with keys",
    "model_attributes_type": "a section with keys",
}
_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def explain(error: ValidationError, document: Document) -> list[Fault]:
    """One fault per field, each with a reason and, where there is one, a mend. Secrets are never quoted."""
    by_path: dict[FieldPath, list[tuple[Spot, Detail]]] = {}
    details = [
        detail
        for detail in error.errors(include_url=False)
        if detail["type"] != "default_factory_not_called"  # a default that waits for a field with a fault
    ]
    for detail in details[:MAX_FAULTS]:
        spot = locate(detail["loc"])
        path = spot.path + (("kind",) if detail["type"].startswith("union_tag") else ())
        by_path.setdefault(path, []).append((spot, detail))
    faults = [_fault(path, found, document) for path, found in by_path.items()]
    if len(details) > MAX_FAULTS:
        path = locate(details[MAX_FAULTS]["loc"]).path
        faults.append(document.fault(path, f"and {len(details) - MAX_FAULTS} more faults like these"))
    return faults


def _fault(path: FieldPath, found: Sequence[tuple[Spot, Detail]], document: Document) -> Fault:
    details = [detail for _, detail in found]
    # Where branches of a union fail, one that is not about the type says more.
    typed = [detail for detail in details if detail["type"] in _TYPES]
    sharp = [detail for detail in details if detail["type"] not in (*_TYPES, "literal_error")]
    if sharp or len(typed) <= 1:
        reason, mend = _words((sharp or details)[0], path, found[0][0].section)
    else:
        wanted = dict.fromkeys(_TYPES[detail["type"]] for detail in typed)
        if "a number" in wanted:
            wanted.pop("a whole number", None)
        reason, mend = f"must be {' or '.join(wanted)}{_instead_of(typed[0]['input'], path)}", ""
    return document.fault(path, reason, mend)


def _words(detail: Detail, path: FieldPath, section: type[Section] | None) -> tuple[str, str]:
    """The reason, and what to write instead."""
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(path, section)
    if kind == "missing":
        return "is missing", f"Add '{path[-1]}:'" + (f" under '{dotted(path[:-1])}:'" if path[1:] else "")
    if kind == "union_tag_not_found":
        return "is missing", f"Write one of: {', '.join(kinds_at(path[:-1]))}"
    if kind == "union_tag_invalid":
        return _not_one_of(value["kind"], kinds_at(path[:-1]), path)
    if kind == "literal_error":
        return _not_one_of(value, re.findall(r"'([^']*)'", context["expected"]), path)
    if kind in _TYPES:
        return f"must be {_TYPES[kind]}{_instead_of(value, path)}", _mend_type(kind, value, path)
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        return f"must be {words} {context[key]:g}{_instead_of(value, path)}", ""
    if kind == "value_error":
        return str(context["error"]), ""
    if kind in ("too_short", "string_too_short"):
        return f"must hold at least {context['min_length']}, and is too short", ""
    if kind in ("too_long", "string_too_long"):
        return f"must hold at most {context['max_length']}, and is too long", ""
    return detail["msg"][:1].lower() + detail["msg"][1:], ""


def _mend_type(kind: str, value: Any, path: FieldPath) -> str:
    if kind in ("int_type", "int_from_float") and isinstance(value, float) and value.is_integer():
        return f"Write {int(value)}"
    if kind == "string_type" and isinstance(value, int | float):
        return "Put it in quotes"
    if kind in ("int_type", "float_type") and isinstance(value, str) and re.fullmatch(r"[-+\d.e]+", value):
        return "Remove the quotes"
    if kind == "bool_type" and value in ("yes", "on", "no", "off"):
        return f"Write {'true' if value in ('yes', 'on') else 'false'}"
    if kind.startswith(("dict", "model")) and value is None:
        return f"Remove '{path[-1]}:', or give it keys" if path else ""
    return ""


def _not_one_of(value: Any, choices: Sequence[str], path: FieldPath) -> tuple[str, str]:
    close = difflib.get_close_matches(str(value).lower(), choices, 1)
    reason = f"must be one of {', '.join(choices)}{_instead_of(value, path)}"
    return reason, f"Did you mean '{close[0]}'?" if close else ""


def _instead_of(value: Any, path: FieldPath) -> str:
    if path[:1] == ("secrets",):
        return ""
    if isinstance(value, dict | list):
        return ", not a section" if isinstance(value, dict) else ", not a list"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return f", not {text if len(text) <= 60 else text[:57] + '…'}"


def _unknown_key(path: FieldPath, section: type[Section] | None) -> tuple[str, str]:
    key = str(path[-1])
    spelled = key.lower().replace("-", "_")
    here = list(section.model_fields) if section else []
    home = dotted(tuple(part for part in path[:-1] if isinstance(part, str)))
    if close := [spelled] if spelled in here else difflib.get_close_matches(spelled, here, 2, 0.7):
        return "is not a known key", f"Did you mean {' or '.join(repr(name) for name in close)}?"
    known = homes()
    for name in [spelled, *difflib.get_close_matches(spelled, known, 1, 0.8)]:
        kinds = [kind for place, kind in known.get(name, ()) if place == home and kind]
        if kinds:
            return "is not a known key of this kind", f"'{name}' goes with kind: {' or '.join(kinds)}"
        places = sorted(dict.fromkeys(place for place, _ in known.get(name, ())), key=_depth)
        if places:
            places = [f"under '{place}:'" if place else "at the top level" for place in places[:3]]
            return "is not a known key here", f"'{name}' belongs {' or '.join(places)}"
    return "is not a known key", f"Known here: {', '.join(here)}"


def _depth(place: str) -> int:
    return place.count(".")
