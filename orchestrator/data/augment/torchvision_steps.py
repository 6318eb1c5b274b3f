"""Any transform of torchvision.transforms.v2, image by image. Imports: torch; torchvision in functions.

Slow, since it is a loop; what the other steps can do, they do many times faster.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.errors import OrchestratorError, UsageError, UserCodeError
from orchestrator.spec.data import TorchvisionStep
from orchestrator.vision import import_torchvision

Transform = Callable[[Tensor], Any]


def apply_transform(images: Tensor, step: TorchvisionStep, seeds: NDArray[np.uint64]) -> Tensor:
    """Images (n, C, H, W) with values from 0 to 1, each after the transform under its own seed, (n,).

    Torch's random state is that of before afterwards; nothing else may draw meanwhile, in no thread.
    Raises UserCodeError where the transform does.
    """
    transform = build_transform(step)
    changed = []
    with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        for image, seed in zip(images, seeds.tolist(), strict=True):
            torch.manual_seed(seed)
            try:
                changed.append(transform(image))
            except Exception as error:
                raise UserCodeError(
                    f"data.augment: torchvision's {step.name} raised {type(error).__name__}: {error}",
                    "change its args, or leave it out",
                ) from error
    return torch.stack(changed)


def check_transform(step: TorchvisionStep, input_shape: tuple[int, ...], *, field: str) -> None:
    """Raise UsageError where torchvision has no such transform, or it refuses its args or such images, or gives
    images of another shape. `field` is the step's place in the spec."""
    try:
        transform = build_transform(step)
        with torch.random.fork_rng(devices=[]):
            given = transform(torch.rand(input_shape))
    except OrchestratorError as error:
        raise type(error)(f"{field}: {error.reason}", error.mend) from error
    except Exception as error:
        raise UsageError(
            f"{field}: torchvision's {step.name} raised {type(error).__name__} on an image of shape "
            f"{input_shape}: {error}",
            "change its args; it must work on one image without its label",
        ) from error
    if not isinstance(given, Tensor) or given.shape != input_shape or given.dtype != torch.float32:
        what = f"{given.dtype} {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise UsageError(
            f"{field}: torchvision's {step.name} gave {what} for a float32 image of shape {input_shape}",
            "choose a transform and args that keep shape and type; data.image.size sets the size",
        )


def build_transform(step: TorchvisionStep) -> Transform:
    """The transform, made once per process. Raises UsageError for a name or args that torchvision refuses."""
    return _built(step.name, json.dumps(step.args, sort_keys=True, default=str))


@functools.lru_cache(maxsize=32)
def _built(name: str, args: str) -> Transform:
    import_torchvision()  # also where its compiled operators do not load
    v2: Any = importlib.import_module("torchvision.transforms.v2")
    known = {
        key for key, value in vars(v2).items() if isinstance(value, type) and issubclass(value, v2.Transform)
    }
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3) or [
            key for key in sorted(known) if name.lower() in key.lower()
        ]
        hint = f"did you mean {' or '.join(close)}?" if close else f"it has: {', '.join(sorted(known))}"
        raise UsageError(f"torchvision.transforms.v2 has no transform named '{name}'", hint)
    arguments = json.loads(args)
    try:
        if isinstance(arguments.get("interpolation"), str):
            arguments["interpolation"] = v2.InterpolationMode(arguments["interpolation"])
        transform: Transform = getattr(v2, name)(**arguments)
    except Exception as error:
        raise UsageError(
            f"torchvision's {name} cannot be made with {arguments}: {error}", "change its args"
        ) from error
    return transform
