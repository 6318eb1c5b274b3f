"""How rank 0 learns of the files that other ranks wrote: by a small file of each beside them.

No collective, since all of it happens in threads beside the training. Imports: storage, the manifest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from orchestrator.checkpoints.manifest import FileFacts, rank_file
from orchestrator.checkpoints.patience import can_pass
from orchestrator.errors import CheckpointError
from orchestrator.storage import Folder

_PAUSE_S = (0.01, 0.5)
"""Between two looks: first often, then seldom."""


def announce(
    place: Folder, rank: int, save: tuple[int, int], files: Mapping[str, FileFacts], error: str = ""
) -> None:
    """Say what this rank has written, or why it could not. `save` is (attempt, number of the save in it)."""
    facts = {name: asdict(entry) for name, entry in files.items()}
    content = {"attempt": save[0], "save": save[1], "files": facts, "error": error}
    place.write_json(rank_file(rank, "json"), content)


def announced(
    place: Folder, rank: int, save: tuple[int, int], *, timeout_s: float, check: Callable[[], None]
) -> dict[str, FileFacts]:
    """Wait for what `announce` said of this save. `check` is called between looks and may raise.

    Raises CheckpointError where the rank failed or says nothing in time.
    """
    deadline, pause = time.monotonic() + timeout_s, _PAUSE_S[0]
    while True:
        check()
        content = _read(place, rank)
        if content is not None and (content["attempt"], content["save"]) == save:
            break
        if time.monotonic() > deadline:
            raise CheckpointError(
                f"checkpoint {place.uri} is given up: rank {rank} has not written its part in {timeout_s:.0f} s"
            )
        time.sleep(pause)
        pause = min(2 * pause, _PAUSE_S[1])
    if content["error"]:
        raise CheckpointError(f"rank {rank} could not write its part: {content['error']}")
    return {name: FileFacts(**entry) for name, entry in content["files"].items()}


def _read(place: Folder, rank: int) -> Any:
    """What the rank said last; None where it said nothing, or where the storage is gone for a moment."""
    try:
        return place.read_json(rank_file(rank, "json"))
    except OSError as error:
        if not can_pass(error):
            raise
        return None


def forget(place: Folder, rank: int) -> None:
    """The checkpoint is committed: its manifest says it all."""
    place.remove_file(rank_file(rank, "json"))
