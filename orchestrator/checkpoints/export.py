"""A checkpoint's weights as safetensors files, for other programs. Imports: the store; `tensors`, and so torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from orchestrator.checkpoints.files import write_file
from orchestrator.checkpoints.manifest import Manifest
from orchestrator.checkpoints.store import CheckpointStore
from orchestrator.checkpoints.tensors import dump_safetensors, named_tensors
from orchestrator.errors import UsageError
from orchestrator.storage import Folder

WEIGHTS = "model.safetensors"
AVERAGES = "ema.safetensors"
FACTS = "checkpoint.json"


def export_weights(store: CheckpointStore, manifest: Manifest, target: Folder) -> list[str]:
    """Write the model's weights, their moving averages where the run keeps them (what evaluation and export use),
    and the checkpoint's facts into a folder. Returns the names of the files.

    Raises CheckpointError where the checkpoint is damaged, UsageError where it holds no weights under "model".
    """
    state = store.load(manifest)
    weights = _weights(state, manifest)
    files: dict[str, Mapping[str, Any]] = {WEIGHTS: weights}
    ema = state.get("ema")
    if isinstance(ema, Mapping) and isinstance(ema.get("averages"), Mapping):
        files[AVERAGES] = weights | named_tensors(ema["averages"])
    facts = {
        "format": "pt",
        "checkpoint": manifest.name,
        "step": str(manifest.step),
        "epoch": str(manifest.epoch),
    }
    written = {
        name: asdict(
            write_file(target, name, lambda sink, tensors=tensors: dump_safetensors(tensors, sink, facts))  # type: ignore[misc]
        )
        for name, tensors in files.items()
    }
    entry = asdict(manifest) | {"from": (store.folder / manifest.name).uri, "files": written}
    target.write_json(FACTS, entry)
    return [*written, FACTS]


def _weights(state: Mapping[str, Any], manifest: Manifest) -> dict[str, Any]:
    model = state.get("model")
    weights = named_tensors(model) if isinstance(model, Mapping) else {}
    if not weights:
        raise UsageError(
            f"{manifest.name} holds no tensors under 'model', but {', '.join(sorted(state)) or 'nothing'}",
            "let the train function save its model's state_dict() under the name 'model'",
        )
    return weights
