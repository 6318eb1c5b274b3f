"""Prepare a job's data, in this process or on its cluster. Imports: ray only where it is used."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from orchestrator.errors import UsageError
from orchestrator.runners.environment import environment
from orchestrator.runners.job import resolve_job
from orchestrator.runners.ray_workers.start import connected

if TYPE_CHECKING:
    from orchestrator.data.prepared.prepared import Prepared
    from orchestrator.data.preparing.mapper import Mapper
    from orchestrator.spec import LoadedSpec
    from orchestrator.storage import Folder

ENOUGH_CHUNKS = 8
"""From so many on the cluster is worth the start of its tasks."""


def prepare_data(
    loaded: LoadedSpec,
    storage: Folder,
    *,
    fingerprint: str | None = None,
    cluster: Callable[[], object] | None = None,
    say: Callable[[str], None],
) -> Prepared:
    """The spec's data, found or built under the storage. `cluster` returns once Ray is there; None: it never is.

    Raises what `data.preparing.prepare.prepare` does.
    """
    from orchestrator.data.preparing.prepare import prepare

    spec = loaded.spec
    wanted = spec.data.preparation.by

    def mapper(num_chunks: int) -> Mapper:
        from orchestrator.data.preparing.mapper import in_process

        if cluster is None or wanted == "process" or (wanted == "auto" and num_chunks < ENOUGH_CHUNKS):
            return in_process
        cluster()
        from orchestrator.runners.ray_workers.prepare import map_by_ray

        return functools.partial(
            map_by_ray, search_paths=[str(path) for path in loaded.search_paths], say=say
        )

    return prepare(
        spec.data,
        task=spec.train.task,
        seed=spec.seed,
        storage=storage,
        fingerprint=fingerprint,
        mapper=mapper,
    )


def prepare_only(loaded: LoadedSpec, *, address: str | None, say: Callable[[str], None]) -> Prepared:
    """Prepare a spec's data and nothing else; Ray is started or joined if it is needed. Raises as a run does."""
    from orchestrator.imports import add_search_paths
    from orchestrator.spec import secret_values

    if not loaded.spec.data.cache:
        raise UsageError(
            "data.cache is false: what is prepared now would not be found by any run",
            "run the job, which prepares its data itself, or override data.cache=true",
        )
    job = resolve_job(loaded, inline=False, address=address)
    add_search_paths(loaded.search_paths)
    with environment(secret_values(loaded.spec)), contextlib.ExitStack() as stack:

        def cluster() -> None:
            stack.enter_context(connected(loaded.spec, job.address))

        return prepare_data(loaded, job.storage, cluster=cluster, say=say)
