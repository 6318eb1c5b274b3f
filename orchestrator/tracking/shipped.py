"""How far a journal was shipped, and to which runs of the server; kept beside the journal.

`state.json` is written whole after every operation, and so holds but the run and those children that have not
ended. `children.jsonl` holds the run id of every child that ever began, a line each, since one that has ended may
be told more later (that it was the best), or go on. Imports: the standard library, ops.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from orchestrator.tracking.ops import EndRun, Op, RunState, StartRun

_log = logging.getLogger(__name__)
_STATE, _CHILDREN = "state.json", "children.jsonl"


@dataclass
class Shipped:
    """What was shipped: everything before `offset`. `run` is the run's own state, `live` that of its children which
    have not ended, `run_ids` of all children; those of `unnoted` are not in `children.jsonl` yet."""

    run: RunState = field(default_factory=RunState)
    offset: int = 0
    live: dict[str, RunState] = field(default_factory=dict)
    run_ids: dict[str, str] = field(default_factory=dict)
    unnoted: dict[str, str] = field(default_factory=dict)

    def state_of(self, child: str) -> RunState:
        """The state of the run ('') or of a child; a child that is not known is made in the experiment of the run."""
        if not child:
            return self.run
        known = RunState(run_id=self.run_ids.get(child), experiment_id=self.run.experiment_id)
        return self.live.get(child, known)

    def applied(self, op: Op | None, child: str, state: RunState) -> None:
        """The sink has applied an operation. Of a child that has ended, nothing stays but its run id."""
        if not child:
            self.run = state
        elif isinstance(op, EndRun):
            self.live.pop(child, None)
        elif isinstance(op, StartRun) or child in self.live:
            self.live[child] = state
            if state.run_id is not None and self.run_ids.get(child) != state.run_id:
                self.run_ids[child] = self.unnoted[child] = state.run_id


def load_shipped(folder: Path) -> Shipped:
    """What was shipped of the journal in a folder; where that cannot be read, all of it is to be shipped again."""
    try:
        value = json.loads((folder / _STATE).read_text())
        live = {child: RunState(**state) for child, state in value.get("children", {}).items()}
        return Shipped(RunState(**value["run"]), int(value["offset"]), live, _run_ids(folder))
    except FileNotFoundError:
        return Shipped()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _log.warning("what was shipped of %s is damaged (%s): shipping all of it again", folder, error)
        return Shipped()


def save_shipped(folder: Path, shipped: Shipped, *, durable: bool) -> None:
    """Write it down, `state.json` whole or not at all; `durable` waits for the disk (else a loss costs a replay)."""
    if shipped.unnoted:
        _note(folder / _CHILDREN, shipped.unnoted)
        shipped.unnoted.clear()
    children = {child: asdict(state) for child, state in shipped.live.items()}
    text = json.dumps({"run": asdict(shipped.run), "offset": shipped.offset, "children": children})
    temporary = folder / f".{_STATE}"
    with temporary.open("w") as file:
        file.write(text)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    temporary.replace(folder / _STATE)


def _note(path: Path, run_ids: Mapping[str, str]) -> None:
    """Each line begins with its own line break: one that a crash has cut in two then spoils no other."""
    with path.open("a") as file:
        file.writelines(f"\n{json.dumps([child, run_id])}" for child, run_id in run_ids.items())
        file.flush()
        os.fsync(file.fileno())


def _run_ids(folder: Path) -> dict[str, str]:
    """The newest run id of each child. Raises OSError, but not where no child ever began."""
    try:
        lines = (folder / _CHILDREN).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    found = {}
    for line in lines:
        try:
            child, run_id = json.loads(line)
        except (ValueError, TypeError):  # cut by a crash, before anything relied on it
            continue
        found[str(child)] = str(run_id)
    return found
