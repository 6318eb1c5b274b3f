"""Give one run's checkpoint to another: what population based training does, and a search with its winner.

Imports: the files beside this one, storage.
"""

from __future__ import annotations

import functools

from orchestrator.checkpoints.files import Sink, write_file
from orchestrator.checkpoints.manifest import MANIFEST, Manifest, dump_manifest
from orchestrator.checkpoints.store import CheckpointStore
from orchestrator.errors import CheckpointError


def hand_over(source: CheckpointStore, manifest: Manifest, target: CheckpointStore) -> None:
    """Copy a checkpoint of `source` into `target`, where it is the only one then. May be done again.

    Each file is compared by its hash, where it is read and where it was written. Raises CheckpointError where the
    checkpoint is damaged, OSError.
    """
    damages = source.verify(manifest)
    if damages:
        raise CheckpointError(
            f"checkpoint {(source.folder / manifest.name).uri} is damaged: {'; '.join(damages)}",
            "remove it, and run again",
        )
    for name in [one.name for one in target.manifests()] + target.uncommitted():
        target.discard(name)
    place = target.folder / manifest.name
    for name, facts in manifest.files.items():
        content = source.read(manifest, name)
        if write_file(place, name, functools.partial(_all, content)) != facts:
            raise CheckpointError(f"{name} of {place.uri} was not written as it was read", "run again")
    # Last: it is a checkpoint from now on.
    write_file(place, MANIFEST, functools.partial(_all, dump_manifest(manifest)))


def _all(content: bytes, sink: Sink) -> None:
    sink.write(content)
