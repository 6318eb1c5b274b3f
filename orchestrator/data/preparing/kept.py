"""What the cleaning pass leaves of a chunk for the passes after it: in memory, or in a scratch folder.

Imports: numpy.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.cleaning.cleaned import Cleaned
from orchestrator.storage import Folder


@dataclass(frozen=True)
class Kept:
    """A chunk's cleaned rows; of encoded images also the `pixels` (rows, height, width, channels)."""

    cleaned: Cleaned
    pixels: NDArray[np.uint8] | None = None

    def load(self) -> Kept:
        return self

    def spool(self, scratch: Folder, name: str) -> Spooled:
        """Write it into the scratch folder: of this build alone, and gone when it ends."""
        scratch.write_bytes(name, pickle.dumps(self, protocol=5))
        return Spooled(scratch, name)


@dataclass(frozen=True)
class Spooled:
    """A `Kept` in a scratch folder."""

    scratch: Folder
    name: str

    def load(self) -> Kept:
        kept: Kept = pickle.loads(self.scratch.read_bytes(self.name))
        return kept
