"""Prepare a job's data, in this process or on its cluster. Imports: ray only where it is used."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from orchestrator.errors import UsageError
from orchestrator.runners.environment import environment
from orchestrator.runners.job import Job, resolve_storage, search_paths
from orchestrator.runners.ray_workers.start import cluster_address, connected, inside_ray_job

if TYPE_CHECKING:
    from orchestrator.data.prepared.prepared import Prepared
    from orchestrator.data.preparing.mapper import Mapper
    from orchestrator.spec import LoadedSpec
    from orchestrator.storage import Folder

ENOUGH_CHUNKS = 8
"""From so many on the cluster is worth the start of its tasks."""


def prepare_data(
    job: Job,
    *,
    fingerprint: str | None = None,
    cluster: Callable[[], object] | None = None,
    say: Callable[[str], None],
    stop: threading.Event | None = None,
) -> Prepared:
    """The job's data, found or built under its storage. `cluster` returns once Ray is there; None: it never is.

    The secrets of the spec are in this process's environment. Raises what `data.preparing.prepare.prepare` does,
    which also says what `stop` is for.
    """
    from orchestrator.data.preparing.prepare import prepare
    from orchestrator.spec import secret_values

    spec = job.loaded.spec
    wanted = spec.data.preparation.by

    def mapper(num_chunks: int) -> Mapper:
        from orchestrator.data.preparing.mapper import in_process

        if cluster is None or wanted == "process" or (wanted == "auto" and num_chunks < ENOUGH_CHUNKS):
            return functools.partial(in_process, say=say)
        cluster()
        from orchestrator.runners.ray_workers.prepare import map_by_ray

        say(f"preparing the data on the cluster, in {num_chunks} chunk(s)")
        return functools.partial(
            map_by_ray, search_paths=search_paths(job), variables=secret_values(spec), say=say
        )

    return prepare(
        spec.data,
        task=spec.train.task,
        seed=spec.seed,
        storage=job.storage,
        fingerprint=fingerprint or _fingerprint(job),
        mapper=mapper,
        stop=stop,
    )


def prepare_only(loaded: LoadedSpec, *, address: str | None, say: Callable[[str], None]) -> Folder:
    """Prepare a spec's data and nothing else, and say where it lies; Ray is started or joined if it is needed.
    Raises as a run does, and UsageError where the spec keeps nothing."""
    from orchestrator.data.preparing.prepare import prepared_folder
    from orchestrator.imports import add_search_paths
    from orchestrator.spec import secret_values

    if not loaded.spec.data.cache:
        raise UsageError(
            "data.cache is false: each run prepares the data for itself, and would not find what is prepared now",
            "write data.cache: true, or leave it out",
        )
    job = data_job(loaded, cluster_address(address))
    add_search_paths(loaded.search_paths)
    with environment(secret_values(loaded.spec)), contextlib.ExitStack() as stack:

        def cluster() -> None:
            stack.enter_context(connected(loaded.spec, job.address))

        found = prepare_data(job, cluster=cluster, say=say)
    return prepared_folder(job.storage, found.manifest.key)


def prepared_place(loaded: LoadedSpec) -> Folder:
    """Where a spec's prepared data lies, if there is any: reads as much of the source as tells it from others.

    Raises SourceError where the source is not there.
    """
    from orchestrator.data.preparing.prepare import names_of, prepared_folder
    from orchestrator.imports import add_search_paths
    from orchestrator.spec import secret_values

    job, spec = data_job(loaded, None), loaded.spec
    add_search_paths(loaded.search_paths)
    with environment(secret_values(spec)):
        named = names_of(spec.data, task=spec.train.task, seed=spec.seed, fingerprint=_fingerprint(job))
    return prepared_folder(job.storage, named["key"])


def data_job(loaded: LoadedSpec, address: str | None) -> Job:
    """The job as far as its data goes: nothing of it is tracked. `address` is that of `cluster_address`."""
    in_job = inside_ray_job()
    return Job(
        loaded=loaded,
        storage=resolve_storage(loaded.spec.storage, in_job=in_job),
        tracking_uri="",
        address=address,
        inline=False,
        in_job=in_job,
    )


def _fingerprint(job: Job) -> str:
    """Of the data as a run takes it."""
    from orchestrator.data.sources.fingerprint import fingerprint, memo_file

    return fingerprint(job.loaded.spec.data, job.loaded.search_paths, memo_file(job.storage))
