"""The model as it is before anything is loaded: on its device, laid out, compiled, sharded. Imports: torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from orchestrator.engine.device.precision import Precision
from orchestrator.engine.device.tiny_maps import speed_up_tiny_maps
from orchestrator.engine.link import WorkerLink
from orchestrator.engine.parallel.compression import TrafficMeter
from orchestrator.engine.parallel.wrap import parallelize
from orchestrator.engine.recipe import Placement, Recipe
from orchestrator.engine.seed import seed_everything
from orchestrator.engine.warmup import try_out
from orchestrator.spec.train import TrainSection

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def fresh_model(recipe: Recipe, link: WorkerLink) -> tuple[torch.nn.Module, Placement]:
    """The network with its first weights on this worker's device, and how its inputs lie there."""
    seed_everything(recipe.seed)
    model = recipe.build()
    placement = Placement(link.device, _memory_format(recipe.train, model))
    model = model.to(link.device)
    if placement.memory_format == torch.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model, placement


def speed_up(recipe: Recipe, model: torch.nn.Module, placement: Placement, link: WorkerLink) -> None:
    if recipe.train.compile:
        _compile(model, link, lambda: try_out(recipe, model, placement, count=False))
    elif link.device.type == "cpu":
        speed_up_tiny_maps(model)


def sharded_models(
    first: list[torch.nn.Module], recipe: Recipe, link: WorkerLink, precision: Precision, meter: TrafficMeter
) -> Callable[[], torch.nn.Module]:
    """What gives the model in `first` sharded, and later fresh ones. Collective only the first time."""
    mesh: DeviceMesh | None = None

    def sharded_model() -> torch.nn.Module:
        nonlocal mesh
        from orchestrator.engine.parallel.fsdp import mesh_of

        if first:
            model = first.pop()
        else:
            model, placement = fresh_model(recipe, link)
            speed_up(recipe, model, placement, link)
        parallel = parallelize(model, recipe.train.parallel, link, precision, meter, mesh)
        mesh = mesh_of(parallel)
        return parallel

    return sharded_model


def _memory_format(train: TrainSection, model: torch.nn.Module) -> torch.memory_format:
    """Channels-last lets convolutions run without changing layouts; what else there is does not mind."""
    convolutions = any(isinstance(module, torch.nn.Conv2d) for module in model.modules())
    wanted = convolutions if train.channels_last is None else train.channels_last
    return torch.channels_last if wanted else torch.contiguous_format


def _compile(model: torch.nn.Module, link: WorkerLink, try_compiled: Callable[[], object]) -> None:
    """Compile in place (names stay as they are); where that fails, the model runs as it is."""
    plain = model.forward

    def forward(*inputs: torch.Tensor) -> Any:  # a frame of ours: torch passes over those of its own modules
        return plain(*inputs)

    try:
        model.forward = torch.compile(forward)
        try_compiled()
    except Exception as error:  # noqa: BLE001 - compilers fail in many ways
        cause = error.__cause__ or error
        model.forward = plain
        torch._dynamo.reset()
        link.notice(
            f"train.compile: the model could not be compiled and runs as it is: {type(cause).__name__}: "
            f"{' '.join(str(cause).split())[:300]}"
        )
