"""What stopping bad trials early costs and saves: ASHA against training every configuration to its end.

    python tests/benchmarks/bench_asha.py [--samples 200] [--seed 0]

The same random configurations of an MLP on scikit-learn's digits are searched twice, by `orchestrator run`: once all
are trained in full, which tells the truth about each; once ASHA decides which go on. The learning rate is constant, so
that the first epochs of a trial are the same in both. ASHA's winner, as good as it is when it is trained in full, is
compared with the true best; the epochs that it took to find it with those of all.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.bench_tune import SPEC, Searched, search
from tests.benchmarks.machine import describe_machine

MAX_EPOCHS = 16
TARGET_LOSS = 1.02
"""Of the true best's loss, at most."""
TARGET_EPOCHS = 0.25
"""Of all epochs, at most."""
SCHEDULERS: dict[str, dict[str, Any]] = {
    "fifo": {"kind": "fifo"},
    "asha": {"kind": "asha", "grace_period": 1, "reduction_factor": 4},
}
PARAM_SPACE = {
    "train.optimizer.lr": {"loguniform": [1.0e-5, 1.0e-1]},
    "train.optimizer.weight_decay": {"loguniform": [1.0e-5, 1.0]},
    "train.global_batch_size": {"choice": [32, 64, 128, 256]},
    "model.args.hidden": {"choice": [[16], [64], [256], [64, 64], [128, 128]]},
}


def spec(scheduler: Mapping[str, Any], samples: int, seed: int) -> dict[str, Any]:
    # Half of the rows validate: where they are few, chance decides which configuration is best.
    data = SPEC["data"] | {"split": {"kind": "stratified", "train": 0.4, "val": 0.5, "test": 0.1}}
    return SPEC | {
        "data": data,
        "train": SPEC["train"] | {"max_epochs": MAX_EPOCHS, "schedule": {"kind": "constant"}},
        "tune": {
            "param_space": PARAM_SPACE,
            "metric": "val/loss",
            "mode": "min",
            "num_samples": samples,
            "seed": seed,
            "search_alg": {"kind": "random"},
            "scheduler": dict(scheduler),
            "then": "nothing",
        },
    }


def trials_of(summary: Mapping[str, Any], samples: int) -> dict[str, dict[str, Any]]:
    """The trials of a search by id. Ends the benchmark where one is missing or has failed."""
    trials: dict[str, dict[str, Any]] = {trial["id"]: trial for trial in summary["trials"]}
    bad = [name for name, trial in trials.items() if trial["state"] not in ("COMPLETED", "PRUNED")]
    if len(trials) != samples or bad:
        raise SystemExit(f"{len(trials)} of {samples} trials, of which neither completed nor pruned: {bad}")
    return trials


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(describe_machine("ray", "torch"), flush=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    found: dict[str, Searched] = {}
    try:
        for name, scheduler in SCHEDULERS.items():
            found[name] = search(spec(scheduler, arguments.samples, arguments.seed), folder / name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    full, short = (trials_of(done.summary, arguments.samples) for done in found.values())
    others = [name for name in full if full[name]["params"] != short[name]["params"]]
    if others:
        raise SystemExit(f"the searches did not try the same: {others[:5]} differ")
    epochs = {name: sum(trial["epoch"] for trial in done.summary["trials"]) for name, done in found.items()}
    losses = {name: float(trial["score"]) for name, trial in full.items()}
    in_order = sorted(losses, key=lambda name: losses[name])
    winners = {name: str(done.summary["best"]) for name, done in found.items()}
    ratio, share = losses[winners["asha"]] / losses[in_order[0]], epochs["asha"] / epochs["fifo"]
    for name, winner in winners.items():
        rank = in_order.index(winner) + 1
        print(
            f"{name} {epochs[name]:6d} epochs {found[name].seconds:7.1f} s   {winner}: loss {losses[winner]:.4f} "
            f"in full, rank {rank} of {len(full)}"
        )
    print(f"ASHA ended {sum(trial['state'] == 'PRUNED' for trial in short.values())} trials early")
    for what, value, target in (("loss", ratio, TARGET_LOSS), ("epochs", share, TARGET_EPOCHS)):
        verdict = "met" if value <= target else "MISSED"
        print(f"{what} of ASHA over that of all in full: {value:.3f} (target at most {target}): {verdict}")
    return 0 if ratio <= TARGET_LOSS and share <= TARGET_EPOCHS else 1


if __name__ == "__main__":
    sys.exit(main())
