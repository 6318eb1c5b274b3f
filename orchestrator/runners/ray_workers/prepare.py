"""Preparation on a cluster: each pass over the source's chunks is a map by Ray Data. Imports: ray."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from orchestrator.data.preparing.mapper import Result
from orchestrator.errors import OrchestratorError
from orchestrator.imports import add_search_paths

_SAY_EVERY_S = 5.0
_RETRIES = 3
"""Of a task whose process or machine died, as for want of memory. Ray by itself tries for ever."""


def map_by_ray(
    function: Callable[[Any], Result],
    items: Sequence[Any],
    label: str,
    *,
    search_paths: Sequence[str],
    variables: Mapping[str, str],
    say: Callable[[str], None],
) -> Iterator[Result]:
    """A mapper (see `data.preparing.mapper`) whose calls run as tasks on the cluster, one CPU each.

    Results come in the order of the items. An error of ours, or of the system, is raised here as it was raised
    there; OrchestratorError where a task died. When the iterator ends or is closed, no task runs any more.
    `variables` are set in the environment of the tasks.
    """
    import ray.data

    # By reference: what stands in the plan itself is written to Ray's logs.
    job = ray.put((pickle.dumps(function), label, list(search_paths), dict(variables)))
    with _quiet():
        rows = ray.data.from_items(
            [{"item": pickle.dumps(item)} for item in items], override_num_blocks=len(items)
        )
        results = rows.map(_call, fn_args=(job,), num_cpus=1)
        results.context.enable_progress_bars = False
        results.context.execution_options.preserve_order = True
        said_s = time.monotonic()
        with contextlib.closing(iter(results.iter_rows())) as found:
            for done, row in enumerate(found, start=1):
                if time.monotonic() - said_s >= _SAY_EVERY_S:
                    said_s = time.monotonic()
                    say(f"{label}: {done} of {len(items)} chunks")
                result, error = pickle.loads(row["result"])
                if error is not None:
                    raise error
                yield result


def _call(row: dict[str, Any], job: Any) -> dict[str, Any]:
    """One chunk's task. Errors that say something to the user travel as values: Ray would wrap them in its own."""
    import ray

    function, label, search_paths, variables = ray.get(job)
    if ray._private.worker.global_worker.core_worker.get_current_task_attempt_number() > _RETRIES:
        return {"result": pickle.dumps((None, _died(label)))}
    os.environ.update(variables)
    add_search_paths(search_paths)
    try:
        return {"result": pickle.dumps((pickle.loads(function)(pickle.loads(row["item"])), None))}
    except (OrchestratorError, OSError) as error:
        return {"result": pickle.dumps((None, error))}


def _died(label: str) -> OrchestratorError:
    return OrchestratorError(
        f"preparing the data ({label}): the process that worked on a chunk died {_RETRIES + 1} times",
        "if memory ran out, make data.preparation.chunk_size smaller; Ray's log of its node tells more",
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing of Ray Data's own log on the terminal; its files have it."""
    consoles = [
        handler
        for handler in logging.getLogger("ray.data").handlers
        if isinstance(handler, logging.StreamHandler)
    ]
    levels = [handler.level for handler in consoles]
    for handler in consoles:
        handler.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for handler, level in zip(consoles, levels, strict=True):
            handler.setLevel(level)
