"""The first training losses of the ready jobs, in one process and fp32: what `losses.json` holds, and how it is made.

    PYTHONPATH=. python tests/golden/losses.py           # prints what is otherwise
    PYTHONPATH=. python tests/golden/losses.py --write   # renews losses.json, after a meant change of numbers

Jobs on data of the user's own learn from pictures that are made here. `char_lm` learns from other text than its own,
since the standard library's changes with each Python.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.golden.made import SMALL_VGG, VARIABLES, made_data

JOBS = Path(__file__).parents[2] / "jobs"


def searches(job: Path) -> bool:
    """Whether the job is a search, which trains many times, and on Ray."""
    return "\ntune:" in job.read_text(encoding="utf-8")


FILE = Path(__file__).with_name("losses.json")
STEPS = 10
FEWER_STEPS = {"cats_dogs_vgg16": 2, "image_folder": 3}
"""Of networks with BatchNorm on few samples, which widen a difference of rounding tenfold with each step."""
TOLERANCE = 1e-3
"""Relative. Other processors and versions of torch add in another order, and ten steps do not blow that up."""
RESIZED_TOLERANCE = 5e-3
"""Of jobs whose pictures are resized, which gives some pixels another level on other processors."""
NAMES = sorted(path.stem for path in JOBS.glob("*.yaml") if not searches(path))
_SENTENCES = str(JOBS / "sentences.csv")
_OVERRIDES: dict[str, dict[str, Any]] = {
    "cats_dogs_vgg16": SMALL_VGG,
    "char_lm": {
        "data.source": {"kind": "csv", "path": _SENTENCES},
        "data.features": ["text"],
        "data.text.length": 32,
    },
    "sentiment_lstm": {"data.source.path": _SENTENCES},
}


def first_losses(name: str, storage: Path, own_data: dict[str, Path]) -> list[float]:
    """The losses of the job's first steps, each over a whole global batch. Prepared data goes to `storage`.

    `own_data`: where the data is of a job that ships none, as `made_data` tells.

    On one thread and without early stopping; the user's own code stays in `sys.path`.
    """
    import torch

    from orchestrator.data.preparing.prepare import prepare
    from orchestrator.engine.attempt import start_attempt
    from orchestrator.engine.link import WorkerLink
    from orchestrator.engine.loop import train
    from orchestrator.imports import add_search_paths
    from orchestrator.runs.folder import RunFolder
    from orchestrator.spec import load_spec
    from orchestrator.storage import Folder
    from orchestrator.worker import build_recipe, checkpoint_store

    fixed = {"train.precision": "fp32", "train.max_steps": STEPS, "train.log_every_n_steps": 1}
    source = {"data.source.path": str(own_data[name])} if name in own_data else {}
    loaded = load_spec(JOBS / f"{name}.yaml", overrides_dict=source | _OVERRIDES.get(name, {}) | fixed)
    spec, folder = loaded.spec, Folder.at(storage)
    add_search_paths(loaded.search_paths)
    prepared = prepare(spec.data, task=spec.train.task, seed=spec.seed, storage=folder)
    store = checkpoint_store(spec, RunFolder(folder, name, 1))
    link = WorkerLink(attempt=store.begin_attempt())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(start_attempt(build_recipe(spec, prepared), link, store, spec.checkpoint))
    finally:
        torch.set_num_threads(threads)
    losses = [point.value for point in link.unacknowledged() if point.key == "train/loss"]
    return losses[: steps(name)]


def steps(name: str) -> int:
    """How many of the job's losses are kept."""
    return FEWER_STEPS.get(name, STEPS)


def tolerance(name: str) -> float:
    """How far a loss of the job may be off, relative."""
    return RESIZED_TOLERANCE if name in VARIABLES else TOLERANCE


def kept() -> dict[str, list[float]]:
    """What `losses.json` holds, by job."""
    found: dict[str, list[float]] = json.loads(FILE.read_text())
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="the first training losses of the ready jobs")
    parser.add_argument("--write", action="store_true", help=f"renew {FILE.name}")
    write = parser.parse_args().write
    with tempfile.TemporaryDirectory() as storage:
        own_data = made_data(Path(storage))
        found = {name: first_losses(name, Path(storage) / name, own_data) for name in NAMES}
    if write:
        rows = [f' "{name}": [{", ".join(f"{loss:.7g}" for loss in found[name])}]' for name in NAMES]
        FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n")
        return 0
    worst = {
        name: max(abs(new / old - 1) for new, old in zip(found[name], losses, strict=True))
        for name, losses in kept().items()
    }
    for name, share in worst.items():
        print(f"{name}: off by {share:.1e}{'' if share <= tolerance(name) else ', which is too much'}")
    return int(any(share > tolerance(name) for name, share in worst.items()))


if __name__ == "__main__":
    sys.exit(main())
