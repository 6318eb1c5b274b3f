"""The domains of a search space in the words of others: Ray Tune's, Optuna's. Imports: ray.tune and optuna in
functions, spec.

Searchers draw a flat set of values, one for each domain; `SearchSpace.resolve` drops those that do not hold. Values
that are no plain numbers, texts or booleans (lists, say) go to the searchers as their number in the list.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.spec.tune import Domain, same_value

if TYPE_CHECKING:
    from orchestrator.spec.space import SearchSpace

_DISCRETE = ("choice", "grid_search")
_WHOLE = ("randint", "lograndint")


def is_log(domain: Domain) -> bool:
    return domain.kind in ("loguniform", "lograndint")


def is_plain(domain: Domain) -> bool:
    """Whether the values can be given to searchers as they are."""
    return domain.kind not in _DISCRETE or all(
        value is None or isinstance(value, bool | int | float | str) for value in domain.values
    )


def encode(domain: Domain, value: Any) -> Any:
    """A value as searchers have it."""
    if is_plain(domain):
        return value
    return next(index for index, item in enumerate(domain.values) if same_value(item, value))


def decode(domain: Domain, value: Any) -> Any:
    """The value that a searcher means: within the domain's bounds, and a Python number."""
    if domain.kind in _DISCRETE:
        return value if is_plain(domain) else domain.values[int(value)]
    return _clipped(domain, value)


def encode_all(space: SearchSpace, sampled: Mapping[str, Any]) -> dict[str, Any]:
    domains = space.domains
    return {path: encode(domains[path], value) for path, value in sampled.items()}


def decode_all(space: SearchSpace, found: Mapping[str, Any]) -> dict[str, Any]:
    return {path: decode(domain, found[path]) for path, domain in space.domains.items() if path in found}


def clip(space: SearchSpace, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values that were changed at will, brought back into their domains."""
    domains = space.domains
    return {
        path: _clipped(domains[path], value) if path in domains else value for path, value in values.items()
    }


def _clipped(domain: Domain, value: Any) -> Any:
    if domain.kind in _DISCRETE:
        return value
    low, high = domain.values[:2]
    if domain.kind in _WHOLE:
        return int(min(max(round(value), low), high - 1))
    if domain.kind == "quniform":
        first, last, step = _steps(domain)
        return _multiple(min(max(round(value / step), first), last), step)
    return float(min(max(value, low), high))


def _steps(domain: Domain) -> tuple[int, int, float]:
    """The multiples of q that a quniform allows, first and last, and q."""
    low, high, step = domain.values
    return math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9), step


def _multiple(number: int, step: float) -> float:
    """3 times 0.1 is 0.3, and not 0.30000000000000004."""
    return float(f"{number * step:.12g}")


def has_conditions(space: SearchSpace) -> bool:
    return any(domain.when for domain in space.domains.values())


def to_tune(domain: Domain) -> Any:
    """The domain as one of `ray.tune.search.sample`."""
    from ray.tune.search import sample

    values = domain.values
    match domain.kind:
        case "uniform":
            return sample.Float(*values).uniform()
        case "loguniform":
            return sample.Float(*values).loguniform()
        case "quniform":
            first, last, step = _steps(domain)
            return sample.Float(_multiple(first, step), _multiple(last, step)).uniform().quantized(step)
        case "randint":
            return sample.Integer(*values).uniform()
        case "lograndint":
            return sample.Integer(*values).loguniform()
        case _:
            return sample.Categorical(values if is_plain(domain) else range(len(values))).uniform()


def to_optuna(domain: Domain) -> Any:
    """The domain as one of `optuna.distributions`."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    values = domain.values
    match domain.kind:
        case "uniform" | "loguniform":
            low, high = values
            return FloatDistribution(low, high, log=is_log(domain))
        case "quniform":
            first, last, step = _steps(domain)
            return FloatDistribution(_multiple(first, step), _multiple(last, step), step=step)
        case "randint" | "lograndint":
            low, high = values
            return IntDistribution(low, high - 1, log=is_log(domain))
        case _:
            return CategoricalDistribution(values if is_plain(domain) else range(len(values)))


def mutations(space: SearchSpace) -> dict[str, Any]:
    """What population based training may change, as it wants it: a domain, or a list of neighbouring values. The spec
    allows it nothing that cannot change in the course of a training."""
    return {
        path: _neighbours(domain.values) if domain.kind in _DISCRETE else to_tune(domain)
        for path, domain in space.domains.items()
    }


def _neighbours(values: list[Any]) -> list[Any]:
    """Numbers in their order, other values as they are written."""
    numbers = all(isinstance(value, int | float) for value in values)
    return sorted(values) if numbers else values


def bounds(space: SearchSpace) -> dict[str, list[float]]:
    """What population based bandits may change: low and high, as logarithms where they are drawn so."""
    found = {}
    for path, domain in space.domains.items():
        if domain.kind not in _DISCRETE:
            low, high = domain.values[:2]
            high = high - 1 if domain.kind in _WHOLE else high
            found[path] = [math.log(low), math.log(high)] if is_log(domain) else [float(low), float(high)]
    return found
