"""From the spec's `model` section to a torch module. Imports: torch; torchvision through its own module."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch import nn

from orchestrator.errors import OrchestratorError, UsageError, UserCodeError
from orchestrator.imports import load_object
from orchestrator.models import networks, recurrent, transformer

if TYPE_CHECKING:
    from orchestrator.spec.model import ModelSection

_BUILDERS = {"linear": networks.linear, "mlp": networks.mlp, "cnn": networks.cnn}
_SEQUENCE_BUILDERS = {
    "lstm": recurrent.lstm,
    "gru": recurrent.gru,
    "transformer": transformer.transformer,
    "gpt": transformer.gpt,
}


def build_model(
    section: ModelSection,
    input_shape: tuple[int, ...],
    num_outputs: int,
    vocab_size: int | None = None,
    per_token: bool = False,
    *,
    download: bool = True,
) -> nn.Module:
    """The network that the section names, on the CPU, with torch's current random state.

    `input_shape` is one sample's, (C, H, W), (d,), or (length,) of tokens, which have a `vocab_size`. The
    network gives (n, num_outputs), or with `per_token` (n, length, num_outputs), as a language model does.
    `download=False` builds a pretrained model with random weights, for who loads others into it.
    `section.freeze` is left to `freeze()`.
    Raises UsageError for arguments that the builder does not take, and for samples that the network cannot
    read; UserCodeError where user code raises.
    """
    if section.pretrained and not section.name.startswith("torchvision/"):
        raise UsageError(
            f"model.pretrained: there are no published weights of '{section.name}'",
            "leave it out; init_from begins with weights of your own",
        )
    if ":" in section.name:
        return _build_user_model(section, input_shape, num_outputs, vocab_size, per_token)
    if vocab_size is not None and section.name not in _SEQUENCE_BUILDERS:
        raise UsageError(
            f"model '{section.name}' cannot read text", f"choose model.name: {', '.join(_SEQUENCE_BUILDERS)}"
        )
    builder: Any
    options: dict[str, Any] = {}
    args: tuple[Any, ...] = (input_shape, num_outputs)
    if section.name.startswith("torchvision/"):
        from orchestrator.models.torchvision_models import build_torchvision

        builder, args = (
            build_torchvision,
            (section.name.removeprefix("torchvision/"), num_outputs, input_shape),
        )
        options = {"pretrained": section.pretrained, "download": download}
    elif section.name in _SEQUENCE_BUILDERS:
        builder = _SEQUENCE_BUILDERS[section.name]
        options = {"vocab_size": vocab_size, "per_token": per_token}
    else:
        builder = _BUILDERS[section.name]
    try:
        model: nn.Module = builder(*args, **options, **section.args)
    except OrchestratorError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"model '{section.name}' cannot be built with args {section.args}: {error}", "change model.args"
        ) from error
    return model


def _build_user_model(
    section: ModelSection,
    input_shape: tuple[int, ...],
    num_outputs: int,
    vocab_size: int | None,
    per_token: bool,
) -> nn.Module:
    target = load_object(section.name)
    if isinstance(target, nn.Module):
        return target
    if not callable(target):
        raise UsageError(
            f"model.name '{section.name}' is a {type(target).__name__}, not a class or a function"
        )
    offered = {"input_shape": input_shape, "num_outputs": num_outputs, "per_token": per_token}
    if vocab_size is not None:
        offered["vocab_size"] = vocab_size
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
