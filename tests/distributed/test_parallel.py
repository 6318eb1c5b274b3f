"""DDP, FSDP, compression and state over gloo, in groups of two and four processes, against one process."""

from __future__ import annotations

import copy
import functools
import io
import math
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import nn

from orchestrator.checkpoints.shard_files import pieces_of, read_rows
from orchestrator.checkpoints.sharded import dump_rows, whole
from orchestrator.data.prepared.order import rank_slice
from orchestrator.engine import collectives
from orchestrator.engine.device.precision import Precision
from orchestrator.engine.link import WorkerLink
from orchestrator.engine.parallel.compression import TrafficMeter, compress_gradients
from orchestrator.engine.parallel.gradients import clip_gradients, gradient_norm
from orchestrator.engine.parallel.shards import take_apart
from orchestrator.engine.parallel.state import (
    load_model_state,
    load_optimizer_state,
    model_state,
    saved_state,
)
from orchestrator.engine.parallel.wrap import no_sync, parallelize
from orchestrator.spec.train import Parallel
from orchestrator.storage import Folder

STEPS = 4
BATCH = 10
EARLY, LATE = range(2), range(2, STEPS)
MAX_NORM = 0.5
STRATEGIES = ("ddp", "fsdp")
FP32 = Precision("fp32", "cpu")


class Blocks(nn.Module):
    """Sizes that no number of workers divides, and a weight whose memory is not in order.

    No bias before BatchNorm, which takes it out: Adam would blow up its gradient, which is rounding errors.
    """

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 7)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(7, 11, bias=not norm),
                *([nn.BatchNorm1d(11)] if norm else []),
                nn.Tanh(),
                nn.Linear(11, 7),
            )
            for _ in range(2)
        )
        self.head = nn.Linear(7, 5, bias=False)
        self.head.weight = nn.Parameter(self.embed.weight.detach().clone().t())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(inputs)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        outputs: torch.Tensor = self.head(hidden)
        return outputs


class Norms(Blocks):
    def __init__(self) -> None:
        super().__init__(norm=True)


class Tied(nn.Module):
    """No `blocks`; two of the children share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.middle = nn.LSTM(5, 5, batch_first=True)
        self.last = nn.Linear(5, 5)
        self.last.weight = self.first.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.middle(self.first(inputs).unsqueeze(1))
        outputs: torch.Tensor = self.last(hidden.squeeze(1))
        return outputs


class Unused(Blocks):
    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Linear(2, 2)


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 2, bias=False)
        self.norm = nn.BatchNorm2d(4, momentum=None)
        self.classifier = nn.Linear(4 * 4, 5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        pixels = (inputs @ torch.linspace(-1, 1, 45).view(5, 9)).view(-1, 1, 3, 3)
        outputs: torch.Tensor = self.classifier(self.norm(self.conv(pixels)).relu().flatten(1))
        return outputs


def link_of(rank: int, world_size: int) -> WorkerLink:
    return WorkerLink(rank=rank, world_size=world_size)


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(BATCH, 5, generator=generator), torch.randn(BATCH, 5, generator=generator)


def fit(
    rank: int,
    world_size: int,
    section: dict[str, Any],
    *,
    build: Callable[[], nn.Module] = Blocks,
    steps: range = range(STEPS),
    microbatches: int = 1,
    start: dict[str, Any] | None = None,
    precision: str = "fp32",
) -> dict[str, Any]:
    """Train as this rank; the losses of the global batches, norms, bytes by step and the state at the end."""
    torch.manual_seed(0)
    meter = TrafficMeter()
    numbers = Precision(precision, "cpu")  # type: ignore[arg-type]
    parallel = parallelize(build(), Parallel(**section), link_of(rank, world_size), numbers, meter)
    buffers = {name: buffer.clone() for name, buffer in parallel.named_buffers()}
    for _ in range(2):  # the warm-up of an attempt
        with numbers.autocast():
            outputs = parallel(batch(0)[0][:2])
        (outputs * 0.0).sum().backward()
    parallel.zero_grad(set_to_none=True)
    for name, buffer in parallel.named_buffers():
        buffer.copy_(buffers[name])
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=0.02, fused=True)
    if start:
        start = copy.deepcopy(start)  # torch goes on in the tensors that it loads
        load_model_state(parallel, start["model"])
        load_optimizer_state(parallel, optimizer, start["optimizer"])
    meter.take()
    facts: dict[str, Any] = {"losses": [], "norms": [], "bytes": []}
    for step in steps:
        inputs, targets = batch(step)
        mine = rank_slice(BATCH, rank, world_size)
        rows = torch.arange(BATCH)[mine].tensor_split(microbatches)
        loss_sum = torch.zeros(())
        optimizer.zero_grad(set_to_none=True)
        for number, part in enumerate(rows):
            with no_sync(parallel, number + 1 < len(rows)):
                with numbers.autocast():
                    outputs = parallel(inputs[part])
                loss = (outputs - targets[part]).square().sum()
                (loss * world_size / BATCH).backward()
            loss_sum += loss.detach()
        facts["norms"].append(float(gradient_norm(parallel.parameters())))
        clip_gradients(parallel.parameters(), max_norm=MAX_NORM)
        optimizer.step()
        facts["bytes"].append(meter.take())
        if world_size > 1:
            torch.distributed.all_reduce(loss_sum)
        facts["losses"].append(float(loss_sum) / BATCH)
    return {**facts, **state_of(parallel, optimizer), "gathered": model_state(parallel)}


def state_of(parallel: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """All state in whole tensors, by way of each rank's file."""
    outline, shards = take_apart(saved_state(parallel, optimizer, None))
    file = io.BytesIO()
    dump_rows(shards)({name: shard.rows for name, shard in shards.items()}, file)
    files = collectives.gather_objects(file.getvalue())
    with tempfile.TemporaryDirectory() as place:
        folder = Folder.at(place)
        for rank, content in enumerate(files):
            folder.write_bytes(f"rank-{rank}", content)
        pieces = pieces_of(folder, folder.names())
        state: dict[str, Any] = whole(outline, functools.partial(read_rows, folder, pieces))
    return state


def gradients(rank: int, world_size: int, compression: str, steps: int = 1) -> dict[str, Any]:
    """DDP's gradients in the last of some equal steps, those that each rank has on its own, and the bytes.

    One sample per rank, so the mean gradient of a linear layer has the rank `world_size`.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 20))
    inputs = torch.randn(world_size, 40, generator=torch.Generator().manual_seed(1))[rank : rank + 1]
    model(inputs).square().sum().backward()
    own = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad(set_to_none=True)
    meter = TrafficMeter()
    marks: list[int] = []
    meter.on_last_bucket = lambda: marks.append(meter.take())
    parallel = nn.parallel.DistributedDataParallel(model, bucket_cap_mb=0.001, gradient_as_bucket_view=True)
    section = Parallel.model_validate({"gradient_compression": compression, "powersgd_rank": world_size})
    compress_gradients(parallel, section, meter, exact_steps=3)
    for _ in range(steps):
        parallel.zero_grad(set_to_none=True)
        parallel(inputs).square().sum().backward()
    every: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(every, own)
    return {"own": every, "mean": [parameter.grad for parameter in model.parameters()], "bytes": marks}


def stale(rank: int, world_size: int) -> list[float]:
    """Evaluate, halve the weights, and evaluate again: under FSDP, then in one process."""
    values = []
    for workers in (world_size, 1):
        torch.manual_seed(0)
        model = parallelize(Blocks(), Parallel(strategy="fsdp"), link_of(rank, workers), FP32)
        for _ in range(2):
            with torch.no_grad():
                values.append(float(model(batch(0)[0]).sum()))
                for parameter in model.parameters():
                    parameter.mul_(0.5)
    return values


def scaled(rank: int, world_size: int) -> dict[str, Any]:
    """Two scaled steps under FSDP; in the first, the gradients of one rank overflow."""
    torch.manual_seed(0)
    numbers = Precision("fp16", "cpu")
    model = parallelize(Blocks(), Parallel(strategy="fsdp"), link_of(rank, world_size), numbers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    facts: dict[str, Any] = {"scales": [], "states": [], "dtypes": []}
    for step in range(2):
        optimizer.zero_grad(set_to_none=True)
        with numbers.autocast():
            outputs = model(batch(0)[0])
        scaler.scale(outputs.sum() * (math.inf if step == 0 and rank == 1 else 1.0)).backward()
        scaler.unscale_(optimizer)
        clip_gradients(model.parameters(), max_norm=1.0)
        scaler.step(optimizer)
        scaler.update()
        facts["scales"].append(scaler.get_scale())
        facts["states"].append(model_state(model))
        facts["dtypes"].append(str(outputs.dtype))
    return facts


def worker(rank: int, _: int, folder: Path) -> None:
    """One of four processes, which do all runs of this file one after the other: starting them is dear."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    start = torch.load(folder / "start.pt", weights_only=True)
    for world_size in (4, 2):
        if rank >= world_size:
            return
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/rendezvous-{world_size}", rank=rank, world_size=world_size
        )
        results: dict[str, Any] = {}
        for strategy in STRATEGIES:
            section = {"strategy": strategy}
            synced = {**section, "sync_batch_norm": True}
            runs: dict[str, dict[str, Any]] = {"plain": {}, "second half": {"steps": LATE, "start": start}}
            if world_size == 4:
                runs |= {
                    "microbatches": {"microbatches": 2},
                    "recomputed": {"section": {**section, "activation_checkpointing": True}},
                    "tied": {"build": Tied},
                    "norms": {"section": synced, "build": Norms},
                    "norms recomputed": {
                        "section": {**synced, "activation_checkpointing": True},
                        "build": Norms,
                    },
                    "images": {"section": synced, "build": Images},
                    "first half": {"steps": EARLY},
                }
            for run, changes in runs.items():
                results[f"{strategy} {run}"] = fit(rank, world_size, **{"section": section, **changes})
        for compression in ("none", "fp16", "bf16", "powersgd"):
            results[compression] = gradients(rank, world_size, compression, steps=6)
        if world_size == 4:
            results["static"] = fit(rank, world_size, {"static_graph": True}, microbatches=2)
            results["unused"] = fit(rank, world_size, {"find_unused_parameters": True}, build=Unused)
            for build in (Norms, Images):
                results[f"bf16 {build.__name__}"] = fit(
                    rank, world_size, synced, build=build, precision="bf16"
                )
            results["stale"] = stale(rank, world_size)
            results["scaled"] = scaled(rank, world_size)
        if rank == 0:
            torch.save(results, folder / f"results-{world_size}.pt")
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """What rank 0 saw, by the number of workers; `start` was saved by one process in the middle."""
    folder = tmp_path_factory.mktemp("parallel")
    torch.set_num_threads(1)
    torch.save(fit(0, 1, {}, steps=EARLY), folder / "start.pt")
    torch.multiprocessing.start_processes(worker, (4, folder), nprocs=4, start_method="spawn")
    return {size: torch.load(folder / f"results-{size}.pt", weights_only=True) for size in (2, 4)}


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    torch.set_num_threads(1)
    return fit(0, 1, {})


Results = dict[int, dict[str, Any]]
BOTH = pytest.mark.parametrize("strategy", STRATEGIES)
SIZES = pytest.mark.parametrize("size", [2, 4])


def assert_same(facts: dict[str, Any], reference: dict[str, Any], part: slice = slice(None)) -> None:
    assert facts["losses"] == pytest.approx(reference["losses"][part], rel=1e-5)
    assert facts["norms"] == pytest.approx(reference["norms"][part], rel=1e-5)
    assert list(facts["model"]) == list(reference["model"])
    for name, value in reference["model"].items():
        torch.testing.assert_close(facts["model"][name], value, rtol=1e-4, atol=1e-5)


@BOTH
@SIZES
def test_the_numbers_do_not_change_with_the_world_size(
    results: Results, alone: dict[str, Any], strategy: str, size: int
) -> None:
    """Losses, the gradients' norm before clipping, and the weights."""
    assert min(alone["norms"]) > MAX_NORM, "nothing was clipped"
    assert_same(results[size][f"{strategy} plain"], alone)


@BOTH
def test_accumulation_gives_the_same_numbers(results: Results, alone: dict[str, Any], strategy: str) -> None:
    assert_same(results[4][f"{strategy} microbatches"], alone)
    assert_same(results[4]["static"], alone)


@BOTH
@pytest.mark.parametrize(("run", "again"), [("plain", "recomputed"), ("norms", "norms recomputed")])
def test_recomputed_activations_give_the_same_bits(
    results: Results, strategy: str, run: str, again: str
) -> None:
    facts, other = results[4][f"{strategy} {run}"], results[4][f"{strategy} {again}"]
    assert facts["losses"] == other["losses"]
    for name, value in facts["model"].items():
        assert torch.equal(other["model"][name], value), name


@BOTH
@pytest.mark.parametrize("build", [Tied, Norms, Images])
def test_other_networks(results: Results, strategy: str, build: type[nn.Module]) -> None:
    """Tied weights and an LSTM; BatchNorm over all workers, with its running statistics."""
    assert_same(results[4][f"{strategy} {build.__name__.lower()}"], fit(0, 1, {}, build=build))


def test_unused_parameters(results: Results) -> None:
    assert_same(results[4]["unused"], fit(0, 1, {}, build=Unused))


@BOTH
@SIZES
def test_state_of_one_process_goes_on_in_several(
    results: Results, alone: dict[str, Any], strategy: str, size: int
) -> None:
    assert_same(results[size][f"{strategy} second half"], alone, slice(len(EARLY), None))


@BOTH
def test_state_of_several_goes_on_in_one(results: Results, alone: dict[str, Any], strategy: str) -> None:
    assert_same(
        fit(0, 1, {}, steps=LATE, start=results[4][f"{strategy} first half"]),
        alone,
        slice(len(EARLY), None),
    )


def test_both_strategies_save_the_same_things(results: Results) -> None:
    ddp, fsdp = (results[4][f"{strategy} first half"]["optimizer"] for strategy in STRATEGIES)
    assert fsdp["param_groups"] == ddp["param_groups"]
    assert fsdp["state"].keys() == ddp["state"].keys()
    for number, entry in ddp["state"].items():
        assert fsdp["state"][number].keys() == entry.keys()
        for name, value in entry.items():
            assert type(fsdp["state"][number][name]) is torch.Tensor
            torch.testing.assert_close(fsdp["state"][number][name], value, rtol=1e-4, atol=1e-7)


@SIZES
def test_gathered_weights_are_those_of_the_files(results: Results, size: int) -> None:
    facts = results[size]["fsdp plain"]
    assert list(facts["gathered"]) == list(facts["model"])
    for name, value in facts["model"].items():
        assert torch.equal(facts["gathered"][name], value), name


@SIZES
def test_the_bytes_of_a_step(results: Results, size: int) -> None:
    """FSDP pads the rows of a weight to a multiple of the workers. It gathers the weights of a block for the
    forward pass and again for the backward pass, those of the root once, and scatters all gradients."""
    shapes = [(7, 5), (7, 1), (5, 7)], [(11, 7), (11, 1), (7, 11), (7, 1)] * 2
    root, blocks = (sum(-(-rows // size) * size * columns for rows, columns in part) for part in shapes)
    whole = 4 * sum(rows * columns for part in shapes for rows, columns in part)
    gathered, scattered = 4 * (root + 2 * blocks) // size, 4 * (root + blocks)
    found = results[size]
    assert found["ddp plain"]["bytes"] == [whole] * STEPS
    assert found["fsdp plain"]["bytes"] == [gathered + scattered] * STEPS
    if size == 4:
        assert found["ddp microbatches"]["bytes"] == [whole] * STEPS
        assert found["fsdp microbatches"]["bytes"] == [2 * gathered + scattered] * STEPS
        gradients = 4 * sum(value.numel() for value in Images().parameters())
        buffers = sum(value.nbytes for value in Images().buffers())
        assert found["ddp images"]["bytes"] == [gradients + buffers] * STEPS


@SIZES
@pytest.mark.parametrize(("compression", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_halved_gradients_are_the_mean_of_cast_ones(
    results: Results, size: int, compression: str, dtype: torch.dtype
) -> None:
    facts = results[size][compression]
    precision = torch.finfo(dtype).eps
    for number, mean in enumerate(facts["mean"]):
        parts = torch.stack([(own[number].to(dtype) / size).float() for own in facts["own"]])
        error = (mean - parts.sum(0)).abs()
        assert (error <= size * precision * parts.abs().sum(0)).all()
        assert torch.equal(mean, mean.to(dtype).float())


@SIZES
def test_uncompressed_gradients_are_the_mean(results: Results, size: int) -> None:
    facts = results[size]["none"]
    for number, mean in enumerate(facts["mean"]):
        torch.testing.assert_close(mean, torch.stack([own[number] for own in facts["own"]]).mean(0))


@SIZES
def test_powersgd_is_exact_where_the_gradient_has_its_rank(results: Results, size: int) -> None:
    facts = results[size]["powersgd"]
    for number, mean in enumerate(facts["mean"]):
        wanted = torch.stack([own[number] for own in facts["own"]]).mean(0)
        assert (mean - wanted).norm() <= 1e-4 * wanted.norm()


@SIZES
def test_what_compression_saves(results: Results, size: int) -> None:
    """Weights of 30×40 and 20×30, and 50 biases. PowerSGD sends two thin matrices for each of the weights."""
    values = 30 * 40 + 20 * 30 + 50
    found = results[size]
    assert found["none"]["bytes"] == [4 * values] * 6
    assert found["fp16"]["bytes"] == found["bf16"]["bytes"] == [2 * values] * 6
    thin = 4 * (size * (30 + 40 + 20 + 30) + 50)
    assert found["powersgd"]["bytes"] == [4 * values] * 3 + [thin] * 3


@pytest.mark.parametrize("build", [Norms, Images])
def test_sharded_bf16_comes_near_fp32(results: Results, build: type[nn.Module]) -> None:
    facts, whole = results[4][f"bf16 {build.__name__}"], results[4][f"fsdp {build.__name__.lower()}"]
    assert facts["losses"] == pytest.approx(whole["losses"], rel=0.02)
    assert facts["bytes"][0] < whole["bytes"][0]
    assert {name: value.dtype for name, value in facts["model"].items()} == {
        name: value.dtype for name, value in whole["model"].items()
    }


def test_weights_changed_between_evaluations_are_seen(results: Results) -> None:
    sharded_first, sharded_second, first, second = results[4]["stale"]
    assert [sharded_first, sharded_second] == pytest.approx([first, second], rel=1e-5)


def test_an_overflow_on_one_rank_skips_the_step_on_all(results: Results) -> None:
    torch.manual_seed(0)
    model = Blocks()
    facts = results[4]["scaled"]
    assert facts["scales"] == [32.0, 32.0]
    assert facts["dtypes"] == ["torch.float32"] * 2
    for name, value in model.state_dict().items():
        torch.testing.assert_close(facts["states"][0][name], value, rtol=0, atol=0)
    model(batch(0)[0]).sum().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(facts["states"][1][name], value, rtol=1e-2, atol=2e-3)
