"""Layers that are not trained, by patterns of their parameters' names. Imports: torch."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from types import MethodType

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from orchestrator.errors import UsageError


def freeze(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Take the parameters whose names match from the training (`requires_grad`); returns their names.

    `*` matches anything, dots too. A BatchNorm that is frozen stays in eval mode whatever `train()` says: its
    statistics would drift otherwise, and with them what the frozen layers compute. (Its `train` is replaced by
    one that does nothing. A conversion to SyncBatchNorm makes new modules: freeze after it, and before DDP.)
    Raises UsageError for a pattern that matches nothing, and where nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            modules = [f"{path}.*" for path, _ in model.named_modules() if path]
            close = difflib.get_close_matches(pattern, [*modules, *names], n=3, cutoff=0.4)
            raise UsageError(
                f"model.freeze: no parameter matches '{pattern}'",
                f"did you mean {' or '.join(close or names[:3])}?",
            )
    frozen = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    if patterns and not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError(
            f"model.freeze: {', '.join(patterns)} leave nothing to train",
            "leave the last layer out, at least",
        )
    for path, module in model.named_modules():
        if isinstance(module, _BatchNorm) and _is_frozen(path, module, patterns):
            module.train = MethodType(_stay_in_eval_mode, module)  # type: ignore[method-assign]
            module.eval()
    return frozen


def _is_frozen(path: str, module: nn.Module, patterns: Sequence[str]) -> bool:
    """Whether all parameters of a BatchNorm are; where it has none, its statistics' name decides."""
    parameters = list(module.parameters())
    if parameters:
        return not any(parameter.requires_grad for parameter in parameters)
    return any(fnmatchcase(f"{path}.running_mean", pattern) for pattern in patterns)


def _stay_in_eval_mode(module: nn.Module, mode: bool = True) -> nn.Module:  # noqa: ARG001 - train()'s signature
    module.training = False
    return module
