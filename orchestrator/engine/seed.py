"""Random state of a rank: seeding it, taking it into a checkpoint, putting it back. Imports: torch, numpy."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed Python, NumPy and torch (all devices). Ranks draw different numbers from the same seed."""
    mixed = int(np.random.SeedSequence([seed, rank]).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def rng_state(device: torch.device) -> dict[str, Any]:
    """This rank's random state, made of what `torch.load(weights_only=True)` reads."""
    python_version, python_keys, python_gauss = random.getstate()
    return {
        "python": [python_version, list(python_keys), python_gauss],
        "numpy": plain_numpy_state(np.random.get_state()),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Put back what `rng_state` gave."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    np.random.set_state(numpy_state(state["numpy"]))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


def plain_numpy_state(state: Any) -> list[Any]:
    """What `RandomState.get_state()` gives, its keys as a tensor."""
    kind, keys, position, has_gauss, gauss = state
    return [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss]


def numpy_state(plain: Sequence[Any]) -> Any:
    """What `RandomState.set_state()` takes, from what `plain_numpy_state` gave."""
    kind, keys, position, has_gauss, gauss = plain
    return (kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss)
