"""Weights to begin with: read from a file and put into a model. Imports: torch, safetensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor, nn

from orchestrator.errors import UsageError
from orchestrator.storage import Folder

_STATE_KEYS = ("model", "state_dict")
_SHOWN = 6


def load_initial(
    model: nn.Module,
    file: Path,
    *,
    head: Literal["auto", "keep", "replace"] = "auto",
    strict: bool = True,
) -> list[str]:
    """Put the weights in a file into the model, in place; returns what was left out, a line each, with reasons.

    The head is the model's last layer with parameters (and what is tied to it): `replace` leaves it as it is,
    freshly initialised; `auto` does so where one of its entries is missing in the file or of another shape;
    `keep` wants all of it. Of all other entries, `strict` wants each to be there with the same shape, and none
    to be left over; without it, what fits is taken.
    Raises UsageError for a file that holds no weights, and where they do not fit.
    """
    given = read_weights(file)
    own: dict[str, Tensor] = model.state_dict()
    path, last = last_layer(model)
    tied = _tied(model)
    in_head = {same for name in last.state_dict() for same in tied.get(f"{path}.{name}".lstrip("."), ())}
    # What is tied to a loaded entry is loaded with it, and old files have no count of batches.
    missing = [
        name
        for name in own
        if not given.keys() & tied.get(name, {name}) and not name.endswith("num_batches_tracked")
    ]
    other_shape = [name for name in own if name in given and given[name].shape != own[name].shape]
    faulty = dict.fromkeys(missing, "is missing in the file") | {
        name: f"has shape {_shape(own[name])} in the model and {_shape(given[name])} in the file"
        for name in other_shape
    }
    fresh: set[str] = set()
    if head == "replace" or (head == "auto" and in_head & faulty.keys()):
        fresh = in_head
    loose = {
        name: "is left over: the model has no such entry"
        for name in given.keys() - own.keys()
        if not (head != "keep" and name.startswith(f"{path}."))
    }
    faults = {name: why for name, why in (faulty | loose).items() if name not in fresh}
    wanted = {name: why for name, why in faults.items() if strict or (head == "keep" and name in in_head)}
    if wanted:
        raise UsageError(_told(file, wanted), _mend(head, wanted.keys() & in_head))
    taken = {name: given[name] for name in own if name in given and name not in fresh | faulty.keys()}
    if not taken:
        raise UsageError(
            f"init_from: nothing in {file} fits the model: it holds {_few(sorted(given))}, and the model "
            f"{_few(list(own))}",
            "choose weights of the same network",
        )
    model.load_state_dict(taken, strict=False)
    replaced = {name: "is initialised afresh" for name in own if name in fresh}
    return [f"{name} {why}" for name, why in (replaced | faults).items()]


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors in a `.safetensors` or `.pt` file by name: a state dict, or a checkpoint that holds one.

    Raises UsageError where it is none; code in it is never run.
    """
    try:
        if file.suffix == ".safetensors":
            content: Any = safetensors.torch.load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UsageError(f"init_from: there is no file {file}") from error
    except Exception as error:  # there are many ways to be no file of weights
        raise UsageError(
            f"init_from: {file} cannot be read as weights: {type(error).__name__}: {str(error).partition(chr(10))[0]}",
            "save model.state_dict() with torch.save or safetensors.torch.save_file",
        ) from error
    for key in _STATE_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if isinstance(content, Mapping):
        weights = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if any(value.is_meta for value in weights.values()):
            raise UsageError(
                f"init_from: {file} has no weights in it: they are spread over the rank-*.safetensors beside it",
                "write them into one file with: orchestrator checkpoint export",
            )
        if weights:
            return weights
    holds = f"a mapping with {_few([str(key) for key in content])}" if isinstance(content, Mapping) else ""
    raise UsageError(
        f"init_from: {file} holds no weights, but {holds or type(content).__name__}",
        "save model.state_dict(), or a dict that has it under 'model'",
    )


def last_layer(model: nn.Module) -> tuple[str, nn.Module]:
    """Path and module of the last layer that has parameters of its own, in the order of registration."""
    layers = [
        (path, module)
        for path, module in model.named_modules(remove_duplicate=False)
        if next(module.parameters(recurse=False), None) is not None
    ]
    if not layers:
        raise UsageError(f"the model ({type(model).__name__}) has no parameters")
    return layers[-1]


def placed_weights(folder: Folder, local: Path) -> Path:
    """The file of initial weights that the driver has put into a run's `init` folder, on this machine.

    Where the storage is remote, it is downloaded into `local`. Raises UsageError where there is none.
    """
    name = next((name for name in folder.names() if name.startswith("weights-")), None)
    if name is None:
        raise UsageError(f"init_from: there are no weights in {folder.uri}", "start a new run with --fresh")
    if folder.is_local:
        return folder.local_path() / name
    copy = Folder.at(local)
    if not copy.exists(name):  # a hash of the content is in the name
        copy.write_bytes(name, folder.read_bytes(name))
    return local / name


def _tied(model: nn.Module) -> dict[str, set[str]]:
    """For each name of a parameter or buffer, all names of the same tensor."""
    names: dict[int, set[str]] = {}
    tensors = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    for name, tensor in tensors:
        names.setdefault(id(tensor), set()).add(name)
    return {name: names[id(tensor)] for name, tensor in tensors}


def _told(file: Path, faults: Mapping[str, str]) -> str:
    lines = [f"{name} {why}" for name, why in list(faults.items())[:_SHOWN]]
    more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    return f"init_from: the weights in {file} do not fit the model: {'; '.join(lines)}{more}"


def _mend(head: str, head_faults: Iterable[str]) -> str:
    if head == "keep" and list(head_faults):
        return "set init_from.head: auto, or build the model with the same outputs"
    return "set init_from.strict: false to take what fits, or choose weights of the same network"


def _few(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f", … ({len(names)} in all)" if len(names) > _SHOWN else "")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
