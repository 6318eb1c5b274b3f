"""Checkpoints as the ranks make and load them together. Imports: torch through `collectives`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from orchestrator.checkpoints.manifest import STATE, Manifest
from orchestrator.checkpoints.store import CheckpointStore
from orchestrator.engine import collectives
from orchestrator.errors import CheckpointError

_log = logging.getLogger(__name__)


def load_together(
    store: CheckpointStore, report: Callable[[str], None] = _log.error
) -> tuple[Manifest, dict[str, Any]] | None:
    """The newest whole checkpoint, the same on every rank; None where there is none. Collective.

    Every rank reads what all share, and the ranks divide the other files among them to be checked. Damage is
    reported by rank 0, and the next older checkpoint is tried. Raises CheckpointError where all are damaged.
    """
    manifests: list[Manifest] = collectives.broadcast_object(
        store.manifests() if collectives.rank() == 0 else None
    )
    for manifest in reversed(manifests):
        try:
            return manifest, load_one_together(store, manifest)
        except CheckpointError as error:
            if collectives.rank() == 0:
                report(error.reason)
    if manifests:
        raise store.all_damaged(len(manifests))
    return None


def load_one_together(store: CheckpointStore, manifest: Manifest) -> dict[str, Any]:
    """What all ranks share of one checkpoint, all of whose files are whole. Collective.

    Raises CheckpointError on all ranks alike where one found damage.
    """
    owners, damages = _load(store, manifest)
    found = sorted({damage for of_rank in collectives.gather_objects(damages) for damage in of_rank})
    if owners is None or found:
        raise CheckpointError("; ".join(found))
    return owners


def _load(store: CheckpointStore, manifest: Manifest) -> tuple[dict[str, Any] | None, list[str]]:
    """What all ranks share, where it is whole, and this rank's share of what is wrong."""
    others = sorted(name for name in manifest.files if name != STATE)
    mine = others[collectives.rank() :: collectives.world_size()]
    place = (store.folder / manifest.name).uri
    damages = [f"checkpoint {place} is damaged: {damage}" for damage in store.verify(manifest, mine)]
    try:
        return store.load(manifest), damages
    except CheckpointError as error:
        return None, [*damages, error.reason]
