"""Put a process back to how it was before its first piece of work, so that the next one is as in a fresh process.

What a model may change for the whole process: torch's settings, hooks on all modules, the environment, the search
path, the working directory, warnings, logging, NumPy's error handling, its own modules' variables. What belongs to a
thread (gradients on or off, autocast) goes with the thread that worked. Imports: numpy, torch, the standard library.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import os
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

_MODULE_HOOKS = (
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
    "_global_forward_hooks",
    "_global_forward_hooks_always_called",
    "_global_forward_hooks_with_kwargs",
    "_global_forward_pre_hooks",
    "_global_forward_pre_hooks_with_kwargs",
    "_global_buffer_registration_hooks",
    "_global_module_registration_hooks",
    "_global_parameter_registration_hooks",
)
_OPTIMIZER_HOOKS = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")
_FLAGS = (
    (torch.backends.cudnn, ("enabled", "benchmark", "deterministic", "allow_tf32")),
    (torch.backends.cuda.matmul, ("allow_tf32", "allow_fp16_reduced_precision_reduction")),
    (torch.backends.mkldnn, ("enabled", "deterministic")),
    # Which of two kinds of hook there is, so that the other one is refused.
    (torch.nn.modules.module, ("_global_is_full_backward_hook",)),
)
_INSTALLED = tuple(
    f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "platstdlib", "purelib", "platlib")
)


@dataclass(frozen=True)
class Pristine:
    """How a process was. `restore` may be called any number of times."""

    environment: Mapping[str, str]
    search_path: tuple[str, ...]
    folder: str
    settings: tuple[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]], ...]
    """What is set by a call."""
    hooks: tuple[tuple[dict[Any, Any], dict[Any, Any]], ...]
    """Those on all modules and all optimizers: where they are kept, and what was there."""
    flags: tuple[tuple[Any, str, Any], ...]
    warnings: tuple[Any, ...]
    levels: Mapping[str, int]
    handlers: tuple[logging.Handler, ...]
    numpy_errors: Mapping[str, Any]
    recursion_limit: int
    modules: frozenset[str]

    @classmethod
    def taken(cls) -> Pristine:
        """The process as it is now."""
        return cls(
            environment=dict(os.environ),
            search_path=tuple(sys.path),
            folder=str(Path.cwd()),
            settings=(
                (torch.set_default_dtype, (torch.get_default_dtype(),), {}),
                (torch.set_default_device, (None,), {}),
                (torch.set_float32_matmul_precision, (torch.get_float32_matmul_precision(),), {}),
                (
                    torch.use_deterministic_algorithms,
                    (torch.are_deterministic_algorithms_enabled(),),
                    {"warn_only": torch.is_deterministic_algorithms_warn_only_enabled()},
                ),
                (torch.autograd.set_detect_anomaly, (torch.is_anomaly_enabled(),), {}),
                (logging.disable, (logging.root.manager.disable,), {}),
            ),
            hooks=tuple((place, dict(place)) for place in _hooks()),
            flags=tuple((place, name, getattr(place, name)) for place, names in _FLAGS for name in names),
            warnings=tuple(warnings.filters),
            levels={"": logging.root.level, **_levels()},
            handlers=tuple(logging.root.handlers),
            numpy_errors=np.geterr(),
            recursion_limit=sys.getrecursionlimit(),
            modules=frozenset(sys.modules),
        )

    def restore(self, search_paths: Iterable[str] = ()) -> None:
        """Put everything back, and forget the user's modules, found in these folders, whose variables may have changed.

        Random states are not touched: whoever trains seeds them.
        """
        if dict(os.environ) != self.environment:
            os.environ.clear()
            os.environ.update(self.environment)
        with contextlib.suppress(OSError):  # a folder that is gone cannot be worked in
            os.chdir(self.folder)
        self._forget_modules(search_paths)
        sys.path[:] = self.search_path
        for setting, values, named in self.settings:
            setting(*values, **named)
        for place, name, value in self.flags:
            if getattr(place, name) != value:
                setattr(place, name, value)
        for place, kept in self.hooks:
            place.clear()
            place.update(kept)
        warnings.simplefilter("default")  # whoever keeps what was decided by the filters looks again
        warnings.filters[:] = self.warnings  # type: ignore[index]
        for name, level in {"": logging.root.level, **_levels()}.items():
            if level != self.levels.get(name, logging.NOTSET):  # setting one makes all others look anew
                logging.getLogger(name or None).setLevel(self.levels.get(name, logging.NOTSET))
        logging.root.handlers[:] = self.handlers
        np.seterr(**self.numpy_errors)
        sys.setrecursionlimit(self.recursion_limit)
        gc.enable()

    def _forget_modules(self, folders: Iterable[str]) -> None:
        """All that was loaded since from these folders, but for what is installed there, and this package."""
        homes = tuple(f"{Path(folder).resolve()}{os.sep}" for folder in folders)
        for name, module in list(sys.modules.items()):
            if name in self.modules or name.partition(".")[0] == "orchestrator":
                continue
            file = getattr(module, "__file__", None)  # below the search path's folder, as that is written
            if not file or not file.startswith(homes) or _is_installed(file):
                continue
            del sys.modules[name]
            package, _, last = name.rpartition(".")  # one without a file stays, and would give the old one
            if getattr(sys.modules.get(package), last, None) is module:
                delattr(sys.modules[package], last)


def _is_installed(file: str) -> bool:
    """Also in an environment that lies among the user's own files."""
    return f"{os.sep}site-packages{os.sep}" in file or file.startswith(_INSTALLED)


def _hooks() -> list[dict[Any, Any]]:
    optimizers = importlib.import_module("torch.optim.optimizer")  # torch.optim hides it
    places = [(torch.nn.modules.module, name) for name in _MODULE_HOOKS]
    places += [(optimizers, name) for name in _OPTIMIZER_HOOKS]
    return [getattr(home, name) for home, name in places if hasattr(home, name)]


def _levels() -> dict[str, int]:
    known = logging.Logger.manager.loggerDict
    return {name: logger.level for name, logger in known.items() if isinstance(logger, logging.Logger)}
