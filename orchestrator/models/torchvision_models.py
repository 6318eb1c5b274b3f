"""Any torchvision classification model by its name. Imports: torch; torchvision by `orchestrator.vision`."""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from orchestrator.errors import UsageError
from orchestrator.models.init_from import last_layer
from orchestrator.vision import import_torchvision

_LARGEST_SIDE = 512  # pixels; every torchvision classifier takes images of this size
_WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")
_SET_BY_US = {
    "num_classes": "it follows from the data",
    "weights": "write model.pretrained: true for the newest published ones",
}


def build_torchvision(
    name: str,
    num_outputs: int,
    input_shape: Sequence[int],
    *,
    pretrained: bool = False,
    download: bool = True,
    **args: Any,
) -> nn.Module:
    """The model `torchvision.models.<name>`: (n, *input_shape) → (n, num_outputs).

    `input_shape` is one image's, (C, H, W). Where C is not 3, the first convolution is adapted to it.
    Vision transformers are built for the given image size. `args` go to torchvision's builder. `pretrained`
    begins with torchvision's newest weights and a new last layer; with `download=False` it is the same network
    with random weights.
    Raises UsageError for an unknown name, for arguments that the builder refuses, and for images of a size or
    kind that the model cannot take (it then names the smallest size that works), and where the published
    weights cannot be had.
    """
    models = import_torchvision().models
    known = models.list_models(module=models)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"torchvision has: {', '.join(known)}"
        raise UsageError(f"torchvision has no classification model named '{name}'", hint)
    if len(input_shape) != 3:
        raise UsageError(
            f"torchvision/{name} needs images (channels, height, width), but a sample has shape "
            f"{tuple(input_shape)}",
            "choose model.name: mlp or linear for tables",
        )
    for key, reason in _SET_BY_US.items():
        if args.get(key) is not None:
            raise UsageError(f"model.args.{key} cannot be set for torchvision/{name}: {reason}")
    if args.get("aux_logits"):
        raise UsageError(f"torchvision/{name} with aux_logits gives three outputs", "leave aux_logits out")
    channels = input_shape[0]
    arguments = _defaults(name, input_shape, pretrained=pretrained) | args
    if pretrained and download:
        model = _build_pretrained(models, name, num_outputs, arguments)
    else:
        model = _build(models, name, arguments | {"num_classes": num_outputs})
    if channels != 3:
        _adapt_first_convolution(model, name, channels)
    fault = _forward_fault(model, input_shape, num_outputs)
    if fault is not None:
        raise UsageError(*_refusal(name, model, input_shape, num_outputs, arguments, fault))
    return model


def _defaults(name: str, input_shape: Sequence[int], *, pretrained: bool) -> dict[str, Any]:
    """Arguments without which some families give several outputs, warn, or expect 224 × 224 pixels."""
    channels, height, width = input_shape
    if name in _WITH_AUXILIARY_HEADS:
        # Their published weights want images in another range, which `transform_input` brings them into.
        transform = pretrained and channels == 3
        return {"aux_logits": False, "init_weights": not pretrained, "transform_input": transform}
    if name.startswith("vit_") and height == width:
        return {"image_size": height}
    if name.startswith("maxvit_"):
        return {"input_size": (height, width)}
    return {}


def _build(models: Any, name: str, arguments: Mapping[str, Any]) -> nn.Module:
    try:
        model: nn.Module = models.get_model(name, **{"weights": None, **arguments})
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        said = str(error) or type(error).__name__
        shown = {key: value for key, value in arguments.items() if key not in _SET_BY_US}
        raise UsageError(
            f"torchvision/{name} cannot be built with {shown}: {said}",
            "change model.args, or the images' size (data.image.size)",
        ) from error
    return model


def _build_pretrained(models: Any, name: str, num_outputs: int, arguments: Mapping[str, Any]) -> nn.Module:
    """The model with its newest published weights, and a new last layer with `num_outputs` outputs.

    The file is kept in torch hub's folder; processes of one machine that want it wait for the one that loads it.
    """
    weights = models.get_model_weights(name).DEFAULT
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    # torchvision sets these two itself for published weights, and refuses other values.
    kept = {key: value for key, value in arguments.items() if key not in ("aux_logits", "init_weights")}
    try:
        with _alone(file):
            model = _build(models, name, kept | {"weights": weights, "progress": False})
    except OSError as error:  # urllib's errors are of this kind
        raise UsageError(
            f"the published weights of torchvision/{name} cannot be downloaded from {weights.url}: {error}",
            f"put that file into {file.parent} on every node (TORCH_HOME chooses another place), or leave "
            "model.pretrained out",
        ) from error
    if name in _WITH_AUXILIARY_HEADS:
        for attribute, off in {"aux_logits": False, "aux1": None, "aux2": None, "AuxLogits": None}.items():
            if hasattr(model, attribute):
                setattr(model, attribute, off)
    _replace_head(model, name, num_outputs)
    return model


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Hold the lock beside a file that is to be downloaded; none is needed where it is there already."""
    if file.exists():
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(f".{file.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _replace_head(model: nn.Module, name: str, num_outputs: int) -> None:
    """Put a freshly initialised last layer with `num_outputs` outputs in the place of the old one."""
    path, old = last_layer(model)
    bias = old.bias is not None
    new: nn.Module
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, num_outputs, bias=bias)
    elif isinstance(old, nn.Conv2d) and old.kernel_size == (1, 1):
        new = nn.Conv2d(old.in_channels, num_outputs, 1, bias=bias)
    else:
        raise UsageError(
            f"torchvision/{name} ends with a {type(old).__name__}, which cannot be replaced",
            "leave pretrained out",
        )
    parent, _, attribute = path.rpartition(".")
    setattr(model.get_submodule(parent), attribute, new)


def _adapt_first_convolution(model: nn.Module, name: str, channels: int) -> None:
    """Put a convolution over `channels` channels in the place of the first one, which takes 3.

    Its weights are those of the old one, channel by channel in turn, scaled so that the outputs vary as much
    as before.
    """
    found = next(((path, part) for path, part in model.named_modules() if isinstance(part, nn.Conv2d)), None)
    if found is None or found[1].in_channels != 3 or found[1].groups != 1:
        raise UsageError(
            f"torchvision/{name} cannot be adapted from 3 to {channels} channels",
            "set data.image.mode: rgb, or choose another model",
        )
    path, old = found
    options: dict[str, Any] = {
        key: getattr(old, key) for key in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    }
    new = nn.Conv2d(channels, old.out_channels, bias=old.bias is not None, **options, device="meta")
    turns = torch.arange(channels) % 3
    new.weight = nn.Parameter(old.weight.detach()[:, turns] * math.sqrt(3 / channels))
    new.bias = old.bias
    parent, _, attribute = path.rpartition(".")
    setattr(model.get_submodule(parent), attribute, new)


def _forward_fault(model: nn.Module, input_shape: Sequence[int], num_outputs: int) -> str | None:
    """Why the model cannot take two images of this shape; None where it can. Computes shapes only."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {key: tensor.to("meta") for key, tensor in state.items()}
    training = model.training
    model.eval()
    try:
        images = torch.empty((2, *input_shape), device="meta")
        with torch.no_grad():
            outputs = torch.func.functional_call(model, shapes, (images,))
    except (RuntimeError, ValueError, AssertionError, IndexError, ZeroDivisionError) as error:
        return str(error) or type(error).__name__
    finally:
        model.train(training)
    if not isinstance(outputs, torch.Tensor) or outputs.shape != (2, num_outputs):
        return f"it gives {getattr(outputs, 'shape', type(outputs).__name__)} instead of (2, {num_outputs})"
    return None


def _refusal(
    name: str,
    model: nn.Module,
    input_shape: Sequence[int],
    num_outputs: int,
    arguments: Mapping[str, Any],
    fault: str,
) -> tuple[str, str]:
    """Reason and mend for images that the model cannot take: by search, the smallest side that it can."""
    channels, height, width = input_shape
    reason = f"torchvision/{name} cannot take images of {height} × {width} pixels: {fault}"
    too_small, enough = min(height, width), _LARGEST_SIDE
    if "image_size" in arguments or "input_size" in arguments:
        return (
            reason,
            "set model.args to the images' size, or the images' size (data.image.size) to the model's",
        )
    if _forward_fault(model, (channels, enough, enough), num_outputs) is not None:
        return reason, "choose another model, or change model.args"
    while enough - too_small > 1:
        side = (too_small + enough) // 2
        if _forward_fault(model, (channels, side, side), num_outputs) is None:
            enough = side
        else:
            too_small = side
    return reason, f"it needs at least {enough} × {enough} pixels: set data.image.size: [{enough}, {enough}]"
