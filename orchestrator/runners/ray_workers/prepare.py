"""Preparation on a cluster: each pass over the source's chunks is a map by Ray Data. Imports: ray."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from orchestrator.data.preparing.mapper import Result
from orchestrator.errors import OrchestratorError
from orchestrator.imports import add_search_paths

_SAY_EVERY_S = 5.0


def map_by_ray(
    function: Callable[[Any], Result],
    items: Sequence[Any],
    label: str,
    *,
    search_paths: Sequence[str],
    say: Callable[[str], None],
) -> Iterator[Result]:
    """A mapper (see `data.preparing.mapper`) whose calls run as tasks on the cluster, one CPU each.

    Results come in the order of the items. An error of ours is raised here as it was raised there.
    """
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    pickled = pickle.dumps(function)
    rows = ray.data.from_items(
        [{"item": pickle.dumps(item)} for item in items], override_num_blocks=len(items)
    )
    results = rows.map(_call, fn_args=(pickled, list(search_paths)), num_cpus=1)
    said_s = time.monotonic()
    for done, row in enumerate(results.iter_rows(), start=1):
        if time.monotonic() - said_s > _SAY_EVERY_S:
            said_s = time.monotonic()
            say(f"{label}: {done} of {len(items)} chunks")
        result, error = pickle.loads(row["result"])
        if error is not None:
            raise error
        yield result


def _call(row: dict[str, Any], function: bytes, search_paths: Sequence[str]) -> dict[str, Any]:
    """One chunk's task. Errors of ours travel as values: Ray would wrap them in its own."""
    add_search_paths(search_paths)
    try:
        return {"result": pickle.dumps((pickle.loads(function)(pickle.loads(row["item"])), None))}
    except OrchestratorError as error:
        return {"result": pickle.dumps((None, error))}
