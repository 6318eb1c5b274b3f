"""A small case of each task, and its loss as plain torch writes it, for the parity tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

WORDS = ("ant", "bee", "cat", "dog", "elk", "fox")


def multilabel_rows() -> dict[str, Any]:
    """Points, labelled by the signs of their coordinates."""
    points = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    labels = [[name for name, value in zip("xyz", point, strict=True) if value > 0] for point in points]
    return {"a": points[:, 0], "b": points[:, 1], "c": points[:, 2], "labels": labels}


def sentence_rows() -> dict[str, Any]:
    """Sentences of 2 to 6 words; the class is the first word's."""
    draw = np.random.default_rng(1)
    drawn = [draw.choice(WORDS, size=draw.integers(2, 7)) for _ in range(200)]
    return {"text": [" ".join(words) for words in drawn], "first": [str(words[0]) for words in drawn]}


def story_rows() -> dict[str, Any]:
    """Thirty texts to model token by token."""
    draw = np.random.default_rng(2)
    return {"text": [" ".join(draw.choice(WORDS, size=60)) for _ in range(30)]}


def _python(function: str) -> dict[str, str]:
    return {"kind": "python", "function": f"tests.unit.engine_tasks:{function}"}


def _next_token(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def _bce(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(outputs.squeeze(1), targets.float())


@dataclass(frozen=True)
class Task:
    """`loss` takes the model's raw outputs and the targets as the pipeline gives them: the mean of a batch."""

    data: dict[str, Any]
    model: dict[str, Any]
    loss: Loss
    task: str = "auto"

    def sections(self, **train: Any) -> dict[str, Any]:
        section = {"task": self.task, "max_epochs": 2, "global_batch_size": 32, **train}
        return {"name": "task", "seed": 3, "data": self.data, "model": self.model, "train": section}


_STANDARD = [{"kind": "standardize"}]
_TEXT = {"tokenizer": "word", "length": 8}

TASKS = {
    "multiclass": Task(
        {"source": {"kind": "sklearn", "name": "iris"}, "target": "target", "transforms": _STANDARD},
        {"name": "mlp", "args": {"hidden": [8]}},
        F.cross_entropy,
    ),
    "binary": Task(
        {"source": {"kind": "sklearn", "name": "breast_cancer"}, "target": "target", "transforms": _STANDARD},
        {"name": "linear"},
        _bce,
    ),
    "regression": Task(
        {
            "source": {"kind": "sklearn", "name": "diabetes"},
            "target": "target",
            "transforms": _STANDARD,
            "target_transform": "standardize",
        },
        {"name": "mlp", "args": {"hidden": [8]}},
        lambda outputs, targets: F.mse_loss(outputs.squeeze(1), targets),
    ),
    "multilabel": Task(
        {"source": _python("multilabel_rows"), "target": "labels"},
        {"name": "mlp", "args": {"hidden": [8]}},
        F.binary_cross_entropy_with_logits,
        "multilabel",
    ),
    "sequence": Task(
        {"source": _python("sentence_rows"), "features": ["text"], "target": "first", "text": _TEXT},
        {"name": "lstm", "args": {"embedding": 8, "hidden": 8}},
        F.cross_entropy,
    ),
    "language_modeling": Task(
        {"source": _python("story_rows"), "features": ["text"], "text": _TEXT},
        {"name": "gpt", "args": {"width": 16, "layers": 1, "heads": 2, "dropout": 0.0}},
        _next_token,
        "language_modeling",
    ),
}
