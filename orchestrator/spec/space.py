"""What a search may choose: the domains of `tune.param_space`, what they depend on, and a trial's parameters.

Imports: the standard library, and the sections.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import product
from typing import Any

from orchestrator.spec.arithmetic import parse_arithmetic
from orchestrator.spec.domain import Domain, same_value
from orchestrator.spec.tune import TuneSection

_NOTHING = object()
"""Stands for the value of what has none; None is a value."""

_MOST_POINTS = 100_000
"""Of a grid; more are not listed to find those in which a condition does not hold."""


class NoValue(ValueError):
    """The `expr` of the parameter `path` comes to nothing, and why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class SearchSpace:
    """The parameters of a search in written order, and the rest of the job, whose fields they may refer to."""

    params: Mapping[str, Domain]
    """All of them, those that follow from others by `expr` included."""
    fixed: Mapping[str, Any]
    """The job as plain values, defaults filled in."""
    order: tuple[str, ...]
    """The same parameters, each behind those that it depends on."""

    @classmethod
    def of(cls, section: TuneSection, plain_spec: Mapping[str, Any]) -> SearchSpace:
        """Raises ValueError with the circle where parameters depend on one another in one."""
        params = section.param_space
        graph = {path: sorted(_needs(domain, params)) for path, domain in params.items()}
        try:
            order = tuple(TopologicalSorter(graph).static_order())
        except CycleError as error:
            raise ValueError(" needs ".join(reversed(error.args[1]))) from None
        return cls(params, plain_spec, order)

    @property
    def domains(self) -> dict[str, Domain]:
        """Those that are drawn, in written order."""
        return {path: domain for path, domain in self.params.items() if domain.kind != "expr"}

    @property
    def has_grid(self) -> bool:
        return any(domain.kind == "grid_search" for domain in self.params.values())

    def grid_points(self) -> list[dict[str, Any]]:
        """Every combination of the grids, the last one walked fastest; one empty point where there is no grid.

        Where a grid's `when` hangs on other grids and fixed fields alone, it is left out of the points in which it
        does not hold.
        """
        grids = self._grids()
        points = [
            dict(zip(grids, values, strict=True))
            for values in product(*(grids[path].values for path in grids))
        ]
        if not any(domain.when for domain in grids.values()):
            return points
        for point in points:
            for path in self.order:
                if path in point and self._refuted(path, point, grids):
                    del point[path]
        return list({repr(sorted(point.items())): point for point in points}.values())

    def num_trials(self, num_samples: int) -> int:
        """How many trials so many samples are: each walks the whole grid."""
        grids = self._grids()
        points = math.prod(len(domain.values) for domain in grids.values())
        conditional = any(domain.when for domain in grids.values())
        return num_samples * (len(self.grid_points()) if conditional and points <= _MOST_POINTS else points)

    def ends(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """A sample of the first (least) value of each domain, and one of the last (greatest)."""
        corners = {path: domain.corners() for path, domain in self.domains.items()}
        return (
            {path: values[0] for path, values in corners.items()},
            {path: values[-1] for path, values in corners.items()},
        )

    def around(self, base: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Samples that differ from `base` in one parameter, for each parameter and each end of its domain (each value
        of a choice), and in what fulfils its conditions. With the parameter that varies."""
        for path, domain in self.domains.items():
            fulfilled = self.fulfilled(path, base)
            for value in domain.corners():
                yield path, {**base, **fulfilled, path: value}

    def fulfilled(
        self, path: str, base: Mapping[str, Any], seen: frozenset[str] = frozenset()
    ) -> dict[str, Any]:
        """Values of others under which a parameter's conditions hold; those of `base` where they do."""
        found: dict[str, Any] = {}
        for _, home, values in self.fulfilling(path):
            if home and values and home not in seen:
                kept = any(same_value(value, base[home]) for value in values)
                found |= {
                    **self.fulfilled(home, base, seen | {path}),
                    home: base[home] if kept else values[0],
                }
        return found

    def is_active(self, path: str, chosen: Mapping[str, Any]) -> bool:
        """Whether a parameter's `when` holds, given the others that are chosen so far."""
        return all(
            _matches(self.value_of(other, chosen), wanted) for other, wanted in self.params[path].when.items()
        )

    def resolve(self, sampled: Mapping[str, Any]) -> dict[str, Any]:
        """A trial's parameters, in written order: those sampled whose `when` holds, and what follows from them.

        Raises NoValue where an `expr` comes to nothing.
        """
        chosen: dict[str, Any] = {}
        for path in self.order:
            domain = self.params[path]
            if domain.kind != "expr" and path not in sampled:
                continue
            if self.is_active(path, chosen):
                value = self._computed(path, chosen) if domain.expr is not None else sampled[path]
                chosen[path] = _plain(value)
        return {path: chosen[path] for path in self.params if path in chosen}

    def value_of(self, path: str, chosen: Mapping[str, Any]) -> Any:
        """What a field of the job is in a trial: chosen, or as the job has it. `NOTHING` where it has no value."""
        home, rest = _home(path, self.params)
        if home:
            return _inside(chosen[home], rest) if home in chosen else _NOTHING
        return _inside(self.fixed, rest)

    def knows(self, path: str) -> bool:
        """Whether a path is a parameter, lies in one, or is a field of the job."""
        home, rest = _home(path, self.params)
        return bool(home) or _inside(self.fixed, rest) is not _NOTHING

    def fulfilling(self, path: str) -> Iterator[tuple[str, str, list[Any]]]:
        """For each condition of a parameter: the path that it names, the parameter that this is or lies in (empty: it
        is fixed), and those of that one's values that fulfil it, as far as they can be listed."""
        for other, wanted in self.params[path].when.items():
            home, rest = _home(other, self.params)
            if not home:
                value = _inside(self.fixed, rest)
                yield other, "", [value] if _matches(value, wanted) else []
            elif home in self.domains:
                domain = self.params[home]
                wishes = wanted if isinstance(wanted, list) else [wanted]
                listed = domain.values if domain.kind in ("choice", "grid_search") else wishes
                yield (
                    other,
                    home,
                    [
                        value
                        for value in listed
                        if domain.holds(value) and _matches(_inside(value, rest), wanted)
                    ],
                )

    def _grids(self) -> dict[str, Domain]:
        return {path: domain for path, domain in self.params.items() if domain.kind == "grid_search"}

    def _computed(self, path: str, chosen: Mapping[str, Any]) -> Any:
        arithmetic = parse_arithmetic(str(self.params[path].expr))
        values = {name: self.value_of(name, chosen) for name in arithmetic.names}
        for name, value in values.items():
            if value is _NOTHING:
                raise NoValue(
                    path, f"{name} has no value here; give this parameter the same 'when' as that one"
                )
        try:
            return arithmetic.value(values)
        except ValueError as error:
            given = ", ".join(f"{name} = {value}" for name, value in values.items())
            raise NoValue(path, f"{error}" + (f" (with {given})" if given else "")) from None

    def _refuted(self, path: str, point: Mapping[str, Any], grids: Mapping[str, Domain]) -> bool:
        """Whether some condition cannot hold at a point of the grid; one on a parameter that is drawn may."""
        return any(
            (_home(other, self.params)[0] in ("", *grids))
            and not _matches(self.value_of(other, point), wanted)
            for other, wanted in self.params[path].when.items()
        )


def _needs(domain: Domain, params: Mapping[str, Domain]) -> set[str]:
    """The other parameters that this one depends on, whole or by a field inside of one."""
    named = {*domain.when, *(parse_arithmetic(domain.expr).names if domain.expr is not None else ())}
    return {home for name in named if (home := _home(name, params)[0])}


def _home(path: str, params: Mapping[str, Domain]) -> tuple[str, list[str]]:
    """The parameter that a path is or lies in, and what is left of the path; an empty text where there is none."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        if (home := ".".join(parts[:length])) in params:
            return home, parts[length:]
    return "", parts


def _inside(value: Any, parts: list[str]) -> Any:
    for index, part in enumerate(parts):
        if isinstance(value, Mapping):
            rest = ".".join(parts[index:])
            if rest in value:  # a key that holds dots
                return value[rest]
            value = value.get(part, _NOTHING)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return _NOTHING
    return value


def _matches(value: Any, wanted: Any) -> bool:
    wishes = wanted if isinstance(wanted, list) else [wanted]
    return value is not _NOTHING and any(same_value(value, wish) for wish in wishes)


def _plain(value: Any) -> Any:
    """Python's own number where a searcher gives one of NumPy's."""
    return value.item() if hasattr(value, "item") else value


__all__ = ["Domain", "NoValue", "SearchSpace"]
