"""Suggestions by Ax: Bayesian optimisation with Gaussian processes. Imports: ax in functions, spec, runners.search.

Ray Tune's wrapper (2.60) does not know Ax 1.3's objectives; this one speaks to `AxClient` itself.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from orchestrator.runners.search import spaces
from orchestrator.runners.search.chance import Chance
from orchestrator.runners.search.searchers import Searcher

if TYPE_CHECKING:
    from orchestrator.spec.space import SearchSpace
    from orchestrator.spec.tune import Domain


class AxSearch(Searcher):
    """One metric. Conditional values are drawn with the others, and dropped where they do not hold; pruned trials count
    by their best so far."""

    def __init__(
        self,
        space: SearchSpace,
        mode: str,
        seed: int,
        points: Sequence[Mapping[str, Any]],
    ) -> None:
        from ax.service.ax_client import AxClient
        from ax.service.utils.instantiation import ObjectiveProperties
        from ax.utils.common.logger import set_ax_logger_levels

        set_ax_logger_levels(logging.ERROR)
        self._space = space
        self._points = [spaces.encode_all(space, point) for point in points]
        self._chance = Chance(seed)
        self._indices: dict[str, int] = {}
        with _quiet(), self._chance.own():
            self._client = AxClient(
                random_seed=seed, verbose_logging=False, enforce_sequential_optimization=False
            )
            self._client.create_experiment(
                parameters=[_parameter(path, domain) for path, domain in space.domains.items()],
                objectives={_OBJECTIVE: ObjectiveProperties(minimize=mode == "min")},
            )

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        with _quiet(), self._chance.own():
            if self._points:
                found, index = self._client.attach_trial(self._points.pop(0))
            else:
                found, index = self._client.get_next_trial()
        self._indices[trial_id] = index
        return spaces.decode_all(self._space, found)

    def completed(self, trial_id: str, values: Sequence[float]) -> None:
        with _quiet(), self._chance.own():
            self._client.complete_trial(self._indices[trial_id], {_OBJECTIVE: (values[0], None)})

    def failed(self, trial_id: str) -> None:
        with _quiet(), self._chance.own():
            self._client.log_trial_failure(self._indices[trial_id])


_OBJECTIVE = "objective"
"""Ax takes no slashes in names."""


def _parameter(path: str, domain: Domain) -> dict[str, Any]:
    """A domain as Ax describes it; the steps of a quniform are taken afterwards."""
    if domain.kind in ("choice", "grid_search"):
        plain = spaces.is_plain(domain)
        values = domain.values if plain else list(range(len(domain.values)))
        numbers = plain and all(type(value) in (int, float) for value in values)
        return {
            "name": path,
            "type": "choice",
            "values": values,
            "is_ordered": numbers,
            "sort_values": numbers,
        }
    low, high = domain.values[:2]
    whole = domain.kind in ("randint", "lograndint")
    return {
        "name": path,
        "type": "range",
        "bounds": [low, high - 1] if whole else [low, high],
        "value_type": "int" if whole else "float",
        "log_scale": spaces.is_log(domain),
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what Ax, BoTorch and linear_operator warn of, which is nothing to act upon."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
