"""What is to be run, and where: resolved before anything starts. Imports: no ray of its own."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import UsageError
from orchestrator.runners.ray_workers.start import cluster_address, inside_ray_job
from orchestrator.storage import Folder
from orchestrator.tracking.links import resolve_tracking_uri

if TYPE_CHECKING:
    from orchestrator.spec import LoadedSpec

_log = logging.getLogger(__name__)
DEFAULT_STORAGE = "runs"


@dataclass(frozen=True)
class Job:
    """What is run and how; resolved before anything starts."""

    loaded: LoadedSpec
    storage: Folder
    tracking_uri: str
    address: str | None
    inline: bool
    in_job: bool

    @property
    def embedded(self) -> bool:
        """Whether the run brings its own Ray along, on this machine."""
        return not self.inline and self.address is None and not self.in_job


def resolve_storage(spec_storage: str | None, *, in_job: bool) -> Folder:
    """Where runs lie: the spec's, else `ORCHESTRATOR_STORAGE`, else `./runs`.

    Raises UsageError for a relative place inside a Ray job, whose working directory is thrown away.
    """
    chosen = spec_storage or os.environ.get("ORCHESTRATOR_STORAGE") or DEFAULT_STORAGE
    if in_job and "://" not in chosen and not Path(chosen).expanduser().is_absolute():
        raise UsageError(
            f"storage '{chosen}' is relative, and a Ray job's working directory is thrown away with all in it",
            "set storage in the spec, or ORCHESTRATOR_STORAGE, to a folder that all nodes share, or a URI",
        )
    return Folder.at(chosen)


def resolve_job(loaded: LoadedSpec, *, inline: bool, address: str | None) -> Job:
    """Raises UsageError for places and addresses that cannot be used, or not together."""
    if inline and address:
        raise UsageError("--inline runs in this process; it takes no --address")
    if inline and loaded.spec.tune is not None:
        raise UsageError(
            "--inline trains one model in this process, and tune searches among many",
            "leave --inline out, or train one model without the search: tune=null",
        )
    if inline and loaded.spec.resources.max_workers > 1:
        _log.info("--inline trains as one worker, not %s", loaded.spec.resources.num_workers)
    in_job = inside_ray_job()
    storage = resolve_storage(loaded.spec.storage, in_job=in_job)
    return Job(
        loaded=loaded,
        storage=storage,
        tracking_uri=resolve_tracking_uri(loaded.spec.mlflow.tracking_uri, storage.uri),
        address=None if inline else cluster_address(address),
        inline=inline,
        in_job=in_job,
    )


def search_paths(job: Job) -> list[str]:
    """Where workers find user code: absolute on this machine; on a cluster relative to the shipped folder."""
    here = Path.cwd().resolve()
    paths = [Path(path).resolve() for path in job.loaded.search_paths]
    if job.inline or job.embedded:
        return [str(path) for path in paths]
    return [str(path.relative_to(here)) if path.is_relative_to(here) else str(path) for path in paths]
