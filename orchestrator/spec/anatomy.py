"""How the models of the spec hang together: where a field is, which sections know a key, which kinds exist.

All of it is read from the models' annotations, so that messages never lag behind them.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from orchestrator.spec.base import Section
from orchestrator.spec.document import FieldPath
from orchestrator.spec.job import JobSpec


@dataclass(frozen=True, slots=True)
class Spot:
    """What an error's location means: the field's path, and the section that should hold its last key."""

    path: FieldPath
    section: type[Section] | None


def locate(loc: Sequence[str | int]) -> Spot:
    """Follow a pydantic location through the models, dropping the names of union branches."""
    path: FieldPath = ()
    section: type[Section] | None = None
    kind: Any = JobSpec
    for part in loc:
        kind = _bare(kind)
        if _is_section(kind):
            section = kind
            path = (*path, part)
            field = kind.model_fields.get(part)
            kind = field.annotation if field else None
        elif get_origin(kind) in (Union, types.UnionType):
            kind = next((member for member in get_args(kind) if part in _kinds(member)), None)
        elif get_origin(kind) in (list, tuple, dict) and part != "[key]":
            path = (*path, part)
            kind = get_args(kind)[1 if get_origin(kind) is dict else 0]
            section = None
    return Spot(path, section)


@cache
def homes() -> dict[str, list[tuple[str, str | None]]]:
    """For every field name: the sections that hold it, with the `kind` they must have (None: any)."""
    found: dict[str, list[tuple[str, str | None]]] = {}

    def visit(section: type[Section], home: str) -> None:
        kinds = _kinds(section) if _is_tagged(section) else ()
        for name, field in section.model_fields.items():
            found.setdefault(name, []).append((home, kinds[0] if kinds else None))
            for inner in _sections_in(field.annotation):
                visit(inner, f"{home}.{name}" if home else name)

    visit(JobSpec, "")
    return found


def kinds_at(path: FieldPath) -> list[str]:
    """The kinds that the tagged sections at this path know."""
    return [name for member in get_args(_at(path)) for name in _kinds(member)]


def fields_of_kind(path: Sequence[str], kind: str) -> frozenset[str]:
    """The keys of the section of this kind at a path, written with dots or not; empty where kinds share their keys,
    or none is known."""
    try:
        members = get_args(_at(tuple(path)))
    except (KeyError, IndexError):  # a path that leads nowhere
        return frozenset()
    return frozenset(name for member in members if kind in _kinds(member) for name in member.model_fields)


def _at(path: FieldPath) -> Any:
    """What stands at this path by the annotations, bare. Raises KeyError or IndexError where nothing does."""
    kind: Any = JobSpec
    for part in path:
        kind = _bare(kind)
        if _is_section(kind):
            kind = kind.model_fields[str(part)].annotation
        else:
            kind = get_args(kind)[-1 if get_origin(kind) is dict else 0]
    return _bare(kind)


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    kind = _bare(annotation)
    if _is_section(kind):
        yield kind
    for inner in get_args(kind):
        yield from _sections_in(inner)


def _bare(kind: Any) -> Any:
    """The type without `Annotated` and without `| None`."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) in (Union, types.UnionType):
        members = [member for member in get_args(kind) if member is not type(None)]
        if len(members) == 1:
            return _bare(members[0])
    return kind


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def _kinds(kind: Any) -> tuple[str, ...]:
    """The values of a section's own `kind`, where it has one."""
    if not _is_section(kind) or "kind" not in kind.model_fields:
        return ()
    annotation = kind.model_fields["kind"].annotation
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _is_tagged(section: type[Section]) -> bool:
    """Whether the section is one of several that its `kind` tells apart."""
    return "kind" in section.model_fields and section.model_fields["kind"].is_required()
