"""Before the first step: does the model fit its task and the memory, and are DDP's buckets settled? Imports: torch.

All of it happens on a little real data, before any state is loaded, and leaves nothing behind: random states are
seeded afterwards, buffers (batch statistics) are put back, gradients dropped.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import traceback
from collections.abc import Callable, Iterator

import numpy as np
import torch

from orchestrator.data.prepared.order import rank_slice
from orchestrator.engine import collectives
from orchestrator.engine.causes import is_out_of_memory
from orchestrator.engine.device.flops import forward_flops
from orchestrator.engine.device.memory import num_optimizer_states
from orchestrator.engine.device.precision import Precision
from orchestrator.engine.link import WorkerLink
from orchestrator.engine.parallel.compression import TrafficMeter
from orchestrator.engine.parallel.gradients import local
from orchestrator.engine.parallel.wrap import alone
from orchestrator.engine.recipe import Placement, Recipe, training_batch
from orchestrator.engine.trouble import dead_parameters
from orchestrator.errors import OrchestratorError, OutOfMemory, UserCodeError

_SETTLING_PASSES = 2
_ROWS_AT_ONCE = 1 << 16


def check_targets(recipe: Recipe, rank: int, world_size: int) -> None:
    """Raise DataError for a target that the task does not know, before any time is spent; each rank its share.
    Of streamed data only the first rows: to see all would be to fetch all."""
    part = recipe.train_part
    num_rows = min(part.num_rows, _ROWS_AT_ONCE) if part.streaming else part.num_rows
    mine = rank_slice(num_rows, rank, world_size)
    for start in range(mine.start, mine.stop, _ROWS_AT_ONCE):
        rows = np.arange(start, min(start + _ROWS_AT_ONCE, mine.stop))
        recipe.objective.check_targets(part.gather_targets(rows))


def try_out(recipe: Recipe, model: torch.nn.Module, placement: Placement, *, count: bool) -> float:
    """One small forward pass, before any time is spent: do the outputs fit the task?

    Gives the FLOPs of a sample's forward pass, or 0 unless `count`ed. Raises UsageError where the outputs do
    not fit, UserCodeError where the model raises.
    """
    num_samples = min(2, recipe.train_part.num_rows)
    inputs, targets = training_batch(recipe, placement, np.arange(num_samples), epoch=0)
    model.eval()
    try:
        with torch.no_grad():
            outputs = model(inputs)
        flops = forward_flops(model, inputs) / num_samples if count else 0.0
    except OrchestratorError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise too_large(1) from error
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise UserCodeError(
            f"the model raised {type(error).__name__} on an input of shape {tuple(inputs.shape)}: {error}",
            f"see {frame.filename}:{frame.lineno}; where it is the shape, change data.image.size, data.features "
            "or model.args",
        ) from error
    finally:
        model.train()
    if not isinstance(outputs, torch.Tensor):
        raise UserCodeError(f"the model returned {type(outputs).__name__}, not a tensor of outputs")
    recipe.objective.check_outputs(
        outputs,
        num_samples=num_samples,
        num_outputs=recipe.num_outputs,
        length=targets.shape[1] if targets.ndim == 2 else None,
    )
    return flops


def probe_microbatch(
    recipe: Recipe,
    models: Callable[[], torch.nn.Module],
    placement: Placement,
    precision: Precision,
    link: WorkerLink,
    limit: int | None,
    meter: TrafficMeter | None = None,
) -> tuple[int, torch.nn.Module]:
    """How many samples this run's workers compute at once: the spec's number or a worker's whole share, halved
    until a forward and backward pass fits into the memory of every rank. And the model on which it was tried last.

    Collective, but no try is: a rank that runs out of memory leaves no other waiting. `models` gives the model to
    try, first and after each error: the bare network, or a sharded one, which is made anew each time. It keeps
    none itself, so that the memory is free for the next. `limit` is what an earlier attempt that ran out of memory
    left. Raises OutOfMemory where one sample does not fit.
    """
    batch_size = min(recipe.train.global_batch_size, recipe.train_part.num_rows)
    whole = rank_slice(batch_size, 0, link.world_size)
    share = whole.stop - whole.start
    wanted = size = min(recipe.train.microbatch_size or share, limit or share, share)
    fault: BaseException | None = None
    dead: list[str] = []
    reserved: torch.Tensor | None = None
    model = models()
    while True:
        try:
            reserved = _kept_beside(recipe, model, placement.device)
            with alone(model, meter), _without_traces(model):
                _pass(recipe, model, placement, precision, size)
                dead = dead_parameters(model)
            del reserved
            break
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            fault = _without_frames(error)
        reserved = None
        size //= 2
        if not size:
            break
        del model
        gc.collect()
        if placement.device.type == "cuda":
            torch.cuda.empty_cache()
        model = models()
    found = collectives.gather_objects((size, dead))
    agreed: int = min(fits for fits, _ in found)
    if not agreed:
        raise too_large(wanted) from fault
    if agreed < wanted:
        link.notice(
            f"{wanted} samples at once do not fit into a worker's memory: it computes {agreed} and accumulates "
            "gradients (the global batch stays)"
        )
    # Of a sharded parameter a rank sees its own part.
    dead = [name for name in dead if all(name in others for _, others in found)]
    if dead and link.rank == 0:
        shown = ", ".join(dead[:5]) + (", …" if len(dead) > 5 else "")
        link.notice(f"no gradient reaches {len(dead)} of the trained parameters: {shown}")
    return agreed, model


def _kept_beside(recipe: Recipe, model: torch.nn.Module, device: torch.device) -> torch.Tensor | None:
    """As much of a GPU's memory as the optimizer and the averaged weights will take."""
    if device.type != "cuda":
        return None
    copies = num_optimizer_states(recipe.train.optimizer) + (recipe.train.ema is not None)
    trained = sum(local(one).nbytes for one in model.parameters() if one.requires_grad)
    return torch.empty(copies * trained, dtype=torch.uint8, device=device)


def _without_frames(error: BaseException) -> BaseException:
    """The error without what its traceback, and those of the errors behind it, hold on to: the pass's tensors."""
    behind: BaseException | None = error
    while behind is not None:
        if behind.__traceback__ is not None:
            traceback.clear_frames(behind.__traceback__)
            behind.__traceback__ = None
        behind = behind.__cause__ or behind.__context__
    return error


def settle(
    recipe: Recipe,
    parallel: torch.nn.Module,
    placement: Placement,
    precision: Precision,
    model: torch.nn.Module,
    microbatch_size: int,
) -> None:
    """Let DDP rebuild its gradient buckets, which it does after the first pass. Collective.

    Without this, three or more ranks reduce in another order after a resume, and the bits differ.
    """
    with _without_traces(model):
        for _ in range(_SETTLING_PASSES):
            _pass(recipe, parallel, placement, precision, min(2, microbatch_size))
    parallel.zero_grad(set_to_none=True)


def too_large(tried: int) -> OutOfMemory:
    return OutOfMemory(
        f"a worker's memory does not hold the training step of one sample (tried {tried} and fewer)",
        "set train.parallel.activation_checkpointing: true, train.parallel.strategy: fsdp with more workers, or "
        "train.precision: bf16; or give the workers more memory, or the model fewer parameters",
    )


def _pass(
    recipe: Recipe, model: torch.nn.Module, placement: Placement, precision: Precision, num_samples: int
) -> None:
    inputs, targets = training_batch(recipe, placement, np.arange(num_samples), epoch=0)
    with precision.autocast():
        outputs = model(inputs)
    recipe.objective.losses(recipe.objective.shape_outputs(outputs.float()), targets).sum().backward()


@contextlib.contextmanager
def _without_traces(model: torch.nn.Module) -> Iterator[None]:
    """Put buffers back, and drop gradients."""
    buffers = {name: copy.deepcopy(buffer.detach()) for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
