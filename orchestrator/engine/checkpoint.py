"""Checkpoints: the one owner of a run's saved state.

A checkpoint is a dict of named owners (model, optimizer, …) in `state.pt`, and a manifest with the file's
SHA-256 and size, written last. Without a manifest a checkpoint does not exist. Reading never unpickles code
(`weights_only`), checks the hash first, and falls back to the next older checkpoint where one is damaged.
A worker of an older attempt that still lives (a cut-off node) may not commit: the newest attempt fences it.
Imports: torch, the storage module.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import pickle
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from orchestrator.engine import collectives
from orchestrator.engine.optim.stopping import is_better
from orchestrator.errors import CheckpointError
from orchestrator.storage import Folder

_log = logging.getLogger(__name__)
_STATE = "state.pt"
_MANIFEST = "manifest.json"
_FENCE = "attempt.json"


@dataclass(frozen=True)
class Manifest:
    """What is known of a checkpoint without reading its state."""

    name: str
    step: int
    epoch: int
    attempt: int
    time_s: float
    metrics: Mapping[str, float]
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one run. Only rank 0 writes.

    Keeps the newest `num_to_keep` and, beyond those, the best by `score_attribute`.
    """

    folder: Folder
    num_to_keep: int = 2
    score_attribute: str = "val/loss"
    score_order: Literal["min", "max"] = "min"

    def begin_attempt(self) -> int:
        """Number a new attempt (from 1) and shut out the workers of earlier ones. Rank 0 only."""
        attempt = int((self.folder.read_json(_FENCE) or {"attempt": 0})["attempt"]) + 1
        self.folder.write_json(_FENCE, {"attempt": attempt})
        return attempt

    def save(
        self,
        owners: Mapping[str, Any],
        *,
        step: int,
        epoch: int,
        attempt: int,
        metrics: Mapping[str, float],
    ) -> str:
        """Write a checkpoint and commit it; older ones that need not be kept are removed. Returns its name.

        Raises CheckpointError where a newer attempt has begun.
        """
        name = f"step-{step:09d}"
        place = self.folder / name
        buffer = io.BytesIO()
        torch.save(dict(owners), buffer)
        data = buffer.getvalue()
        # An uncommitted or older checkpoint of the same step is replaced: first it stops to exist.
        place.remove_file(_MANIFEST)
        place.write_bytes(_STATE, data)
        newest_attempt = (self.folder.read_json(_FENCE) or {"attempt": attempt})["attempt"]
        if newest_attempt > attempt:
            raise CheckpointError(
                f"attempt {attempt} may not commit checkpoint {name}: attempt {newest_attempt} has begun",
                "this worker was believed dead; let it end",
            )
        place.write_json(
            _MANIFEST,
            {
                "name": name,
                "step": step,
                "epoch": epoch,
                "attempt": attempt,
                "time_s": time.time(),
                # JSON knows no NaN: a metric that is undefined is left out.
                "metrics": {key: value for key, value in metrics.items() if value == value},
                "sha256": hashlib.sha256(data).hexdigest(),
                "size_bytes": len(data),
            },
        )
        self._prune()
        return name

    def manifests(self) -> list[Manifest]:
        """All committed checkpoints, oldest first."""
        found = []
        for place in self.folder.folders():
            try:
                content = place.read_json(_MANIFEST)
                if content is not None:
                    found.append(Manifest(**content))
            except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
                _log.warning("checkpoint %s has a damaged manifest and is passed over: %s", place.uri, error)
        return sorted(found, key=lambda manifest: manifest.step)

    def best(self) -> Manifest | None:
        """The best checkpoint by the score; None where none has been scored."""
        best: Manifest | None = None
        for manifest in self.manifests():
            value = manifest.metrics.get(self.score_attribute)
            best_value = best.metrics[self.score_attribute] if best else None
            if value is not None and is_better(value, best_value, mode=self.score_order):
                best = manifest
        return best

    def load(self, manifest: Manifest) -> dict[str, Any]:
        """The owners' states, on the CPU. Raises CheckpointError where the file is damaged."""
        place = self.folder / manifest.name
        try:
            data = place.read_bytes(_STATE)
        except OSError as error:
            raise CheckpointError(f"checkpoint {place.uri} cannot be read: {error}") from error
        if hashlib.sha256(data).hexdigest() != manifest.sha256:
            raise CheckpointError(
                f"checkpoint {place.uri} is damaged: {_STATE} has {len(data)} bytes and not the hash that "
                f"its manifest states ({manifest.size_bytes} bytes)",
                "an older checkpoint is taken where there is one",
            )
        try:
            owners: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise CheckpointError(f"checkpoint {place.uri} cannot be read: {error}") from error
        return owners

    def load_newest(self) -> tuple[Manifest, dict[str, Any]] | None:
        """The newest checkpoint that is whole; damaged ones are reported and passed over.

        None where there is none at all; raises CheckpointError where all are damaged.
        """
        manifests = self.manifests()
        for manifest in reversed(manifests):
            try:
                return manifest, self.load(manifest)
            except CheckpointError as error:
                _log.error("%s", error)
        if manifests:
            raise CheckpointError(
                f"all {len(manifests)} checkpoints in {self.folder.uri} are damaged",
                "start again with --fresh, or restore the folder from a backup",
            )
        return None

    def load_together(self) -> tuple[Manifest, dict[str, Any]] | None:
        """The newest whole checkpoint, the same on every rank; None where there is none. Collective.

        Rank 0 chooses, so that all load the same one even if a file goes bad between two reads.
        """
        newest = self.load_newest() if collectives.rank() == 0 else None
        name = collectives.broadcast_object(newest[0].name if newest else None)
        if name is None or newest is not None:
            return newest
        manifest = next(found for found in self.manifests() if found.name == name)
        return manifest, self.load(manifest)

    def _prune(self) -> None:
        manifests = self.manifests()
        best = self.best()
        keep = {manifest.name for manifest in manifests[-self.num_to_keep :]}
        keep |= {best.name} if best else set()
        newest_step = manifests[-1].step
        committed = {manifest.name: manifest for manifest in manifests}
        for place in self.folder.folders():
            name = place.path.rpartition("/")[2]
            if name not in keep and (name in committed or _step_of(name) < newest_step):
                place.remove_file(_MANIFEST)
                place.remove()


def _step_of(name: str) -> int:
    digits = name.removeprefix("step-")
    return int(digits) if digits.isdigit() else -1
