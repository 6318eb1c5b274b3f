"""Which checkpoints are kept: the newest, the best and the milestones, as one pure decision.

Imports: the manifest, spec.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.checkpoints.manifest import Manifest
from orchestrator.spec.checkpoint import CheckpointSection


@dataclass(frozen=True)
class Retention:
    """What to keep; what any of the rules wants stays.

    The newest `last`, the best `best` by a metric, and for each multiple of `every_n_epochs` and `every_n_steps`
    the first checkpoint at or after it.
    """

    last: int = 2
    best: int = 1
    every_n_epochs: int | None = None
    every_n_steps: int | None = None
    score_attribute: str = "val/loss"
    score_order: Literal["min", "max"] = "min"


def retention_of(section: CheckpointSection) -> Retention:
    """What a spec wants kept."""
    return Retention(
        last=section.num_to_keep,
        best=section.num_best_to_keep,
        every_n_epochs=section.keep_every_n_epochs,
        every_n_steps=section.keep_every_n_steps,
        score_attribute=section.checkpoint_score_attribute,
        score_order=section.checkpoint_score_order,
    )


def ranked(manifests: Sequence[Manifest], retention: Retention) -> list[Manifest]:
    """Those that have been scored, the best first; of equal ones the older first."""
    sign = 1 if retention.score_order == "min" else -1
    scored = [
        (sign * value, manifest.step, manifest)
        for manifest in manifests
        if (value := manifest.metrics.get(retention.score_attribute)) is not None and not math.isnan(value)
    ]
    return [manifest for _, _, manifest in sorted(scored, key=lambda entry: entry[:2])]


def kept(manifests: Sequence[Manifest], retention: Retention) -> set[str]:
    """The names of those that stay. What is removed by it would not be wanted later either: more checkpoints
    only ever push others out."""
    ordered = sorted(manifests, key=lambda manifest: manifest.step)
    names = {manifest.name for manifest in ordered[max(0, len(ordered) - retention.last) :]}
    names |= {manifest.name for manifest in ranked(ordered, retention)[: retention.best]}
    for every, counts in (
        (retention.every_n_epochs, [manifest.epoch for manifest in ordered]),
        (retention.every_n_steps, [manifest.step for manifest in ordered]),
    ):
        if every is not None:
            first: dict[int, str] = {}
            for count, manifest in zip(counts, ordered, strict=True):
                first.setdefault(count // every, manifest.name)
            names |= {name for multiple, name in first.items() if multiple > 0}
    return names
