"""From the spec's `model` section to a torch module. Imports: torch; torchvision through its own module."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch import nn

from orchestrator.errors import OrchestratorError, UsageError, UserCodeError
from orchestrator.imports import load_object
from orchestrator.models import networks

if TYPE_CHECKING:
    from orchestrator.spec.model import ModelSection

_BUILDERS = {"linear": networks.linear, "mlp": networks.mlp, "cnn": networks.cnn}


def build_model(section: ModelSection, input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """The network that the section names, on the CPU, with torch's current random state.

    `input_shape` is one sample's, (C, H, W) or (d,); the network gives (n, num_outputs).
    Raises UsageError for arguments that the builder does not take, UserCodeError where user code raises.
    """
    if ":" in section.name:
        return _build_user_model(section, input_shape, num_outputs)
    if section.name.startswith("torchvision/"):
        from orchestrator.models.torchvision_models import build_torchvision

        builder: Any = build_torchvision
        args: tuple[Any, ...] = (section.name.removeprefix("torchvision/"), num_outputs, input_shape)
    else:
        builder, args = _BUILDERS[section.name], (input_shape, num_outputs)
    try:
        model: nn.Module = builder(*args, **section.args)
    except OrchestratorError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"model '{section.name}' cannot be built with args {section.args}: {error}", "change model.args"
        ) from error
    return model


def _build_user_model(section: ModelSection, input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    target = load_object(section.name)
    if isinstance(target, nn.Module):
        return target
    if not callable(target):
        raise UsageError(
            f"model.name '{section.name}' is a {type(target).__name__}, not a class or a function"
        )
    offered = {"input_shape": input_shape, "num_outputs": num_outputs}
    wanted = inspect.signature(target).parameters
    args = {name: value for name, value in offered.items() if name in wanted} | section.args
    try:
        model = target(**args)
    except Exception as error:
        raise UserCodeError(
            f"'{section.name}' raised {type(error).__name__} while it was built with {args}: {error}",
            "mend it, or change model.args",
        ) from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"'{section.name}' returned a {type(model).__name__}, not a torch.nn.Module")
    return model
