"""How many samples at once a run's attempts compute, kept beside its checkpoints. Imports: storage.

An attempt that ran out of memory lets the next one compute half as many. The driver says so for a worker that
was killed.
"""

from __future__ import annotations

from orchestrator.storage import Folder

_FILE = "microbatch.json"


def microbatch_limit(checkpoints: Folder) -> int | None:
    """The most that earlier attempts left; None where none ran out of memory."""
    found = checkpoints.read_json(_FILE)
    return found["limit"] if found else None


def note_microbatch(checkpoints: Folder, used: int) -> None:
    """Remember what the attempt that begins computes at once. Rank 0 only."""
    checkpoints.write_json(_FILE, {"used": used, "limit": microbatch_limit(checkpoints)})


def halve_microbatch(checkpoints: Folder) -> bool:
    """Out of memory: later attempts compute half as many. Any rank, or the driver, may say so.

    False where there is nothing to halve: one sample at once was too much, or no attempt has begun.
    """
    found = checkpoints.read_json(_FILE)
    if not found or found["used"] <= 1:
        return False
    checkpoints.write_json(_FILE, {**found, "limit": found["used"] // 2})
    return True
