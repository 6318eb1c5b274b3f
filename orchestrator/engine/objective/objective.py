"""What a task asks of the outputs: losses and weights per sample, and what shapes and targets fit.

The loss of a step is (sum of `losses`) / (sum of `weights`) over the *global* batch; the loop does the
dividing, so that microbatches and ranks add up to exactly the loss of the whole. Imports: torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from orchestrator.engine.objective import losses
from orchestrator.engine.objective.losses import (
    FITTING_TASKS,
    IGNORED,
    MIXABLE,
    SETTINGS,
    ClassWeights,
    LossFunction,
    WeightFunction,
)
from orchestrator.errors import DataError, UsageError, UserCodeError
from orchestrator.imports import load_object

if TYPE_CHECKING:
    from orchestrator.spec.train import Loss

_BY_TASK = {
    "multiclass": "cross_entropy",
    "binary": "bce",
    "multilabel": "bce",
    "regression": "mse",
    "language_modeling": "cross_entropy",
}


@dataclass(frozen=True)
class Objective:
    """A task with its loss. Outputs are logits: (n, classes), (n, labels), (n, length, vocabulary) for a
    language model, or (n,) for binary and regression."""

    task: str
    loss: LossFunction
    weigh: WeightFunction | None = None
    """Targets → weights per sample; None where every sample weighs 1."""
    num_outputs: int | None = None
    takes_soft_targets: bool = False
    """Whether targets of mixed samples are taken: shares of the classes, answers between 0 and 1, any number."""

    def soft_targets(self, targets: torch.Tensor) -> torch.Tensor:
        """Targets as floats that can be mixed: classes become (n, classes) of 0 and 1, all others keep their
        shape."""
        if self.task == "multiclass":
            assert self.num_outputs is not None
            targets = torch.nn.functional.one_hot(targets, self.num_outputs)
        return targets.float()

    def check_augment(self, kinds: Sequence[str]) -> None:
        """Raise UsageError where a step of these kinds mixes targets, and the task or its loss takes no mixed
        ones."""
        for kind in kinds:
            if kind == "cutmix" and self.task == "regression":
                raise UsageError(
                    "data.augment (cutmix) mixes classes, and the task is a regression",
                    "write mixup, or leave it out",
                )
            if kind in ("mixup", "cutmix") and not self.takes_soft_targets:
                text = self.task == "language_modeling"
                raise UsageError(
                    f"data.augment ({kind}) mixes targets, which "
                    + ("a language model" if text else "train.loss")
                    + " cannot take",
                    "leave it out" + ("" if text else f", or set train.loss: {_BY_TASK[self.task]}"),
                )

    def shape_outputs(self, outputs: torch.Tensor) -> torch.Tensor:
        """(n, 1) → (n,) where the task has one output per sample."""
        single = self.task in ("binary", "regression")
        return outputs.squeeze(1) if single and outputs.ndim == 2 else outputs

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Each sample's loss times its weight, float32 (n,); for a language model summed over its tokens.

        A user's loss that gives a mean counts the same for each sample (each token). Outputs of lower
        precision are computed in float32. Raises UserCodeError for a user's loss of another length.
        """
        if outputs.dtype in (torch.float16, torch.bfloat16):
            outputs = outputs.float()
        values = self.loss(outputs, targets)
        if values.ndim == 0:
            return values.expand(len(targets))
        if len(values) != len(targets):
            raise UserCodeError(
                f"train.loss gave a tensor of shape {tuple(values.shape)} for {len(targets)} samples",
                "return one loss per sample, or their mean",
            )
        return values if values.ndim == 1 else values.flatten(1).mean(1)

    def weights(self, targets: torch.Tensor) -> torch.Tensor | None:
        """What each sample counts, (n,); None where all count 1.

        Weighted multiclass losses: the weight of the sample's class. A language model: its tokens (or their
        weights) but for padding, which may be 0.
        """
        return None if self.weigh is None else self.weigh(targets)

    def check_outputs(
        self, outputs: torch.Tensor, *, num_samples: int, num_outputs: int, length: int | None = None
    ) -> None:
        """Raise UsageError where the network's outputs do not fit the task; `length` is that of the targets
        of a language model."""
        shape = tuple(outputs.shape)
        needed: tuple[int, ...] = (num_samples, num_outputs)
        if self.task == "language_modeling":
            if length is None and len(shape) == 3:
                length = shape[1]
            needed = (num_samples, -1 if length is None else length, num_outputs)
        single = self.task in ("binary", "regression")
        if shape != needed and not (single and shape == (num_samples,)):
            raise UsageError(
                f"the model gives outputs of shape {shape} for {num_samples} samples, but the task "
                f"'{self.task}' needs {str(needed).replace('-1', 'length')}",
                f"make its last layer give {num_outputs} value(s) per "
                + ("token" if self.task == "language_modeling" else "sample"),
            )

    def check_targets(self, targets: torch.Tensor, *, part: str = "train") -> None:
        """Raise DataError, naming the first value that cannot be a target of this task, and its row.

        On a GPU such a label would end in an assertion that names nothing. Targets are those of a whole part.
        """
        top = self.num_outputs or math.inf
        if self.task == "regression":
            wrong, wanted = ~targets.isfinite(), "a finite number"
        elif self.task in ("binary", "multilabel"):
            wrong, wanted = (targets != 0) & (targets != 1), "0 or 1"
        else:
            wrong, wanted = (targets < 0) | (targets >= top), f"0 to {top - 1}, one of the model's outputs"
            if self.task == "language_modeling":
                wrong &= targets != IGNORED
        if not wrong.any():
            return
        position = wrong.nonzero()[0].tolist()
        place = f"row {position[0]}" + (f", position {position[1]}" if len(position) > 1 else "")
        raise DataError(
            f"the target at {place} of the part '{part}' is {targets[tuple(position)].item()}, and the task "
            f"'{self.task}' needs {wanted}",
            "look for wrong values in the target column, or for prepared data of another spec",
        )


def build_objective(
    task: str,
    section: Loss,
    *,
    num_outputs: int,
    class_counts: Sequence[int] | None = None,
    num_samples: int | None = None,
) -> Objective:
    """The objective of a resolved task.

    `class_counts`: rows of each class in the training part, in the order of the classes; for multilabel the
    rows that have each label, and `num_samples` all rows. Only `class_weights: balanced` needs them.
    Raises UsageError for a loss that does not fit the task, for settings that the loss does not use, for
    weights that do not fit the classes, and for user code that cannot be called.
    """
    tokens = task == "language_modeling"
    weigh: WeightFunction | None = losses.token_counts if tokens else None
    if ":" in section.name:
        _check_settings(section, section.name)
        loss = _user_loss(section.name, tokens)
        return Objective(task, loss, weigh, num_outputs, takes_soft_targets=_takes_soft_targets(task, ""))
    name = _BY_TASK[task] if section.name == "auto" else section.name
    if task not in FITTING_TASKS[name]:
        fitting = sorted(known for known, tasks in FITTING_TASKS.items() if task in tasks)
        raise UsageError(
            f"train.loss: '{name}' does not fit the task '{task}'",
            f"write one of: auto, {', '.join(fitting)}",
        )
    _check_settings(section, name)
    weights = _class_weights(task, section, num_outputs, class_counts, num_samples)
    if task in ("multiclass", "language_modeling") and weights:
        weigh = losses.class_weight_sums(weights)
    if name == "cross_entropy":
        loss = losses.cross_entropy(section.label_smoothing, weights)
    elif name == "bce":
        loss = losses.binary_cross_entropy(weights)
    elif name == "focal":
        build = losses.softmax_focal if task == "multiclass" else losses.sigmoid_focal
        loss = build(section.gamma, weights)
    else:
        loss = losses.regression_loss(name, section.delta)
    return Objective(task, loss, weigh, num_outputs, takes_soft_targets=_takes_soft_targets(task, name))


def _takes_soft_targets(task: str, loss: str) -> bool:
    # A regression's mixed target is a number like any other, whoever wrote the loss.
    return task == "regression" or (loss in MIXABLE and task != "language_modeling")


def _check_settings(section: Loss, name: str) -> None:
    # By value, since a spec that was written out and read again sets every field.
    for field, about in type(section).model_fields.items():
        unused = field != "name" and field not in SETTINGS.get(name, ())
        if unused and getattr(section, field) != about.default:
            using = [known for known, fields in SETTINGS.items() if field in fields]
            raise UsageError(
                f"train.loss.{field}: the loss '{name}' does not use it",
                f"leave it out, or choose {' or '.join(using)} where it fits the task",
            )


def _class_weights(
    task: str,
    section: Loss,
    num_outputs: int,
    class_counts: Sequence[int] | None,
    num_samples: int | None,
) -> ClassWeights | None:
    """One weight per output: of the class, or for binary and multilabel of the positive answers."""
    given = section.class_weights
    if given is None:
        return None
    if given == "balanced":
        return ClassWeights(_balanced(task, class_counts, num_samples))
    if len(given) != num_outputs or not all(0 < weight < math.inf for weight in given):
        of = "the positive answers" if task in ("binary", "multilabel") else "each class"
        raise UsageError(
            f"train.loss.class_weights: {given} does not fit the task '{task}' with {num_outputs} output(s)",
            f"write {num_outputs} finite number(s) above 0, the weight of {of}, or 'balanced'",
        )
    return ClassWeights(given)


def _balanced(task: str, class_counts: Sequence[int] | None, num_samples: int | None) -> list[float]:
    """Multiclass: `n / (classes · n_class)`, so that every class weighs the same in total (King and Zeng
    2001). Binary and multilabel: negative rows / positive rows, the ratio of those weights."""
    if task == "binary" and class_counts is not None:
        num_samples, class_counts = sum(class_counts), class_counts[1:]
    if class_counts is None or (task == "multilabel" and num_samples is None):
        raise UsageError(
            f"train.loss.class_weights: for the task '{task}' there are no counts to balance by",
            "write the weights as a list, or leave them out",
        )
    total = sum(class_counts) if num_samples is None else num_samples
    multiclass = task == "multiclass"
    for index, count in enumerate(class_counts):
        if not 0 < count < total:
            rows = "no row" if count == 0 else "every row"
            raise UsageError(
                f"train.loss.class_weights: {rows} of the training part is of class {index} "
                "(from 0, in the order of the classes), which cannot be balanced",
                "write the weights as a list, or split the data otherwise (data.split.kind: stratified)",
            )
    if multiclass:
        return [total / (len(class_counts) * count) for count in class_counts]
    return [(total - count) / count for count in class_counts]


def _user_loss(path: str, tokens: bool) -> LossFunction:
    """The user's function, or a class that takes no arguments, called as `loss(outputs, targets)`.

    For a language model (`tokens`) it gives a loss per token, or means over the tokens that count: one per
    sample or one of all.
    """
    target = load_object(path)
    if isinstance(target, type):
        try:
            target = target()
        except TypeError as error:
            raise UserCodeError(
                f"train.loss: '{path}' cannot be made without arguments: {error}",
                "name a function, an object, or a class that takes none",
            ) from error
    if not callable(target):
        raise UsageError(f"train.loss: '{path}' is a {type(target).__name__}, which cannot be called")

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if isinstance(target, torch.nn.Module):  # it may hold tensors, such as weights
            target.to(outputs.device)
        result = target(outputs, targets)
        if not isinstance(result, torch.Tensor):
            raise UserCodeError(f"train.loss: '{path}' returned {type(result).__name__}, not a tensor")
        return _summed_over_tokens(result, targets) if tokens else result

    return loss


def _summed_over_tokens(values: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sums per sample, (n,), from losses per token or means over tokens; other shapes are left to `losses`."""
    if values.numel() == targets.numel():
        return torch.where(targets == IGNORED, 0.0, values.view_as(targets)).sum(1)
    if values.shape in ((), (len(targets),)):
        return values * losses.token_counts(targets)
    return values
