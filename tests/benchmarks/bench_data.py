"""How fast batches come: against torch's DataLoader, Ray Data, a bare gather and a scan of Parquet files.

    python tests/benchmarks/bench_data.py [--runs 5] [--only batches,resume,streaming] [--parquet-gb 4] [--threads 1]

`batches` are 28×28 images and a table of 100 columns, standardized, in random order (Ray Data: in the order of the
rows, which is all that it does without a price). Contestants take turns, a ratio is the median of those within the
rounds. All compute with one thread: a batch is too small to be shared out, and the training step wants the cores.
`streaming` writes Parquet files (without dictionaries, which these numbers would only make larger) and prepared
shards of the same rows into a temporary folder (twice `--parquet-gb` of disk, in pieces), and reads each in a
process of its own, the scan with all cores: `warm` from the page cache, `cold` after
the files were dropped from it. Peak memory is the process's resident set, mapped pages included.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, TensorDataset

from orchestrator.data.features.pipeline import Pipeline
from orchestrator.data.prepared.cache import LocalStore
from orchestrator.data.prepared.feed import Wanted, feed
from orchestrator.data.prepared.manifest import Shard
from orchestrator.data.prepared.order import EpochOrder, MappedOrder, StreamingOrder, num_batches
from orchestrator.data.prepared.part import Part
from orchestrator.data.prepared.shards import write_shard
from orchestrator.data.preparing.prepare import prepare
from orchestrator.spec.data import DataSection
from orchestrator.storage import Folder
from orchestrator.worker.host import keep_freed_memory
from tests.benchmarks.machine import describe_machine

BATCH_SIZE = 64
LEAST_S = 0.5
"""Each contestant goes through as many epochs as it takes to be timed for so long."""
STREAM_BATCH = 1024
STREAM_COLUMNS = 100
STREAM_FILE_ROWS = 125_000
WINDOW_BYTES = 150_000_000
MEMORY_LIMIT = 1_000_000_000
AGAINST = {"per sample": 10.0, "TensorDataset": 3.0, "Ray Data": 3.0, "bare gather": 0.7, "scan": 0.8}
"""Targets: times as many batches or rows per second."""


def images(num_rows: int) -> dict[str, NDArray[Any]]:
    """A source of kind `python`: noise; how it looks does not matter here."""
    rng = np.random.default_rng(0)
    return {
        "x": rng.integers(0, 256, (num_rows, 28, 28, 1), np.uint8),
        "y": rng.integers(0, 10, num_rows),
    }


def table(num_rows: int) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    columns = {f"c{i}": rng.random(num_rows, dtype=np.float32) for i in range(100)}
    return {**columns, "y": rng.integers(0, 10, num_rows)}


class PerSample(Dataset[tuple[torch.Tensor, int]]):
    """What tutorials write: every sample is transformed on its own."""

    def __init__(self, features: torch.Tensor, targets: torch.Tensor, transform: Callable[..., Any]) -> None:
        self.features, self.targets, self.transform = features, targets, transform

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.features[index]), int(self.targets[index])


@dataclass
class Stage:
    """The same rows for all contestants."""

    part: Part
    pipeline: Pipeline
    epoch: int = 0

    def __post_init__(self) -> None:
        whole = self.part.gather(np.arange(self.part.num_rows))
        self.features, self.targets = whole.features.clone(), whole.targets.clone()
        inputs = self.pipeline.transform(self.features)
        one = self.pipeline.transform(self.features[:1])
        assert one.shape[1:] == inputs.shape[1:]
        self.mean, self.deviation = self._fitted()

    def _fitted(self) -> tuple[torch.Tensor, torch.Tensor]:
        fitted = self.pipeline.transforms[0]
        return torch.as_tensor(fitted.shift, dtype=torch.float32), torch.as_tensor(
            fitted.divide, dtype=torch.float32
        )

    def plain(self, rows: torch.Tensor) -> torch.Tensor:
        """The same transform by hand, for a batch or a sample."""
        numbers = rows.float()
        if numbers.ndim >= 3:
            numbers = numbers.movedim(-1, -3)
            return (numbers - self.mean.view(-1, 1, 1)) / self.deviation.view(-1, 1, 1)
        return (numbers - self.mean) / self.deviation


def ours(stage: Stage, *, transformed: bool = True) -> Iterator[object]:
    stage.epoch += 1
    order = MappedOrder(stage.part.num_rows, BATCH_SIZE, seed=0, epoch=stage.epoch)
    for item in fed(stage.part, order, BATCH_SIZE):
        (batch,) = item.batches
        if transformed:
            yield stage.pipeline.transform(batch.features), stage.pipeline.transform_targets(batch.targets)
        else:
            yield batch


def fed(part: Part, order: EpochOrder, batch_size: int) -> Iterator[Any]:
    count = num_batches(part.num_rows, batch_size)

    def wanted(k: int) -> Wanted:
        rows = order.batch(k)
        return Wanted(rows, [rows])

    with feed(part, wanted, 0, count, rows_per_item=batch_size, order=order) as items:
        yield from items


def bare_gather(stage: Stage) -> Iterator[object]:
    for rows in torch.randperm(len(stage.features)).split(BATCH_SIZE):
        yield stage.features.index_select(0, rows), stage.targets.index_select(0, rows)


def per_sample(stage: Stage, num_workers: int) -> DataLoader[Any]:
    data = PerSample(stage.features, stage.targets, stage.plain)
    return DataLoader(
        data, BATCH_SIZE, shuffle=True, num_workers=num_workers, persistent_workers=num_workers > 0
    )


def tensor_dataset(stage: Stage, loader: DataLoader[Any]) -> Iterator[object]:
    for features, targets in loader:
        yield stage.plain(features), targets


def ray_batches(stage: Stage, data: Any) -> Iterator[object]:
    for batch in data.iter_torch_batches(batch_size=BATCH_SIZE):
        yield stage.plain(batch["features"]), batch["targets"]


def batches_per_s(epoch: Callable[[], Any]) -> float:
    gc.collect()
    count, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < LEAST_S:
        for _ in epoch():
            count += 1
    return count / passed


def bench_batches(name: str, runs: int, num_rows: int) -> bool:
    import ray.data

    section = DataSection.model_validate(
        {
            "source": {
                "kind": "python",
                "function": f"tests.benchmarks.bench_data:{name}",
                "args": {"num_rows": num_rows},
            },
            "target": "y",
            "transforms": [{"kind": "standardize"}],
        }
    )
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        prepared = prepare(section, task="auto", seed=0, storage=Folder.at(folder), fingerprint=name)
        stage = Stage(prepared.part("train"), prepared.pipeline)
        torch.testing.assert_close(
            stage.plain(stage.features[:9]),
            stage.pipeline.transform(stage.features[:9]),
            rtol=1e-4,
            atol=1e-4,
        )
        data = ray.data.from_arrow(_arrow(stage)).materialize()
        loaders = {f"per sample, {count} workers": per_sample(stage, count) for count in (0, 2)}
        tensors = DataLoader(TensorDataset(stage.features, stage.targets), BATCH_SIZE, shuffle=True)
        ways: dict[str, Callable[[], Any]] = {
            "ours": lambda: ours(stage),
            "ours, gathered only": lambda: ours(stage, transformed=False),
            "bare gather": lambda: bare_gather(stage),
            **{way: partial(iter, loader) for way, loader in loaders.items()},
            "TensorDataset": lambda: tensor_dataset(stage, tensors),
            "Ray Data": lambda: ray_batches(stage, data),
        }
        for epoch in ways.values():  # first calls import, start workers, fill caches
            for _ in epoch():
                pass
        speeds: dict[str, list[float]] = {way: [] for way in ways}
        order = list(ways)
        for _ in range(runs):
            for way in order:
                speeds[way].append(batches_per_s(ways[way]))
            order = order[1:] + order[:1]
        del loaders
    print(f"\n{name}: {stage.part.num_rows} rows of {stage.part.row_bytes:.0f} bytes, batch {BATCH_SIZE}")
    _table("batches/s", speeds)
    best = max(
        (way for way in speeds if way.startswith("per sample")),
        key=lambda way: statistics.median(speeds[way]),
    )
    good = [
        _verdict(name, "ours", speeds["ours"], best, speeds[best], AGAINST["per sample"]),
        *(
            _verdict(name, "ours", speeds["ours"], way, speeds[way], AGAINST[way])
            for way in ("TensorDataset", "Ray Data")
        ),
        _verdict(
            name,
            "gathered only",
            speeds["ours, gathered only"],
            "bare gather",
            speeds["bare gather"],
            AGAINST["bare gather"],
        ),
    ]
    return all(good)


def _arrow(stage: Stage) -> pa.Table:
    from ray.data.extensions import ArrowTensorArray

    return pa.table(
        {
            "features": ArrowTensorArray.from_numpy(stage.features.numpy()),
            "targets": stage.targets.numpy(),
        }
    )


def bench_resume(runs: int) -> bool:
    """The first batch of a long epoch against its last but one: from nothing to the rows' numbers."""
    num_rows, shard_rows = 20_000_000, 50_000
    shards = [shard_rows] * (num_rows // shard_rows)
    orders: dict[str, Callable[[], EpochOrder]] = {
        "mapped": lambda: MappedOrder(num_rows, BATCH_SIZE, seed=0, epoch=0),
        "streaming": lambda: StreamingOrder(
            shards, [400 * n for n in shards], WINDOW_BYTES, BATCH_SIZE, seed=0, epoch=0
        ),
    }
    print(f"\nresume: {num_rows} rows, batch {BATCH_SIZE}")
    good = True
    for name, make in orders.items():
        times: dict[str, list[float]] = {"first": [], "late": []}
        for _ in range(runs + 1):
            for place, k in (("first", 0), ("late", num_rows // BATCH_SIZE - 2)):
                began = time.perf_counter()
                make().batch(k)
                times[place].append(time.perf_counter() - began)
        first, late = (statistics.median(values[1:]) for values in times.values())
        good &= late < 1.5 * first
        print(
            f"{name}: first batch {first * 1e3:.1f} ms, last but one {late * 1e3:.1f} ms: {late / first:.2f}"
        )
    return good


def bench_streaming(runs: int, parquet_gb: float, place: Path | None) -> bool:
    with tempfile.TemporaryDirectory(prefix="bench-", dir=place) as name:
        folder = Path(name)
        num_bytes, num_rows = _generate(folder, int(parquet_gb * 1e9))
        print(
            f"\nstreaming: {num_bytes / 1e9:.2f} GB of Parquet, {num_rows} rows of {STREAM_COLUMNS} float32 and a "
            f"target, {len(list(folder.glob('*.parquet')))} files and as many shards, windows of "
            f"{WINDOW_BYTES / 1e6:.0f} MB, batch {STREAM_BATCH}"
        )
        good = True
        for state in ("warm", "cold"):
            speeds: dict[str, list[float]] = {"ours": [], "scan": []}
            peaks: dict[str, list[float]] = {"ours": [], "scan": []}
            for turn in range(runs + (state == "warm")):
                for way in ("ours", "scan"):
                    files = folder.glob("*.arrow" if way == "ours" else "*.parquet")
                    if state == "cold":
                        _drop_from_cache(files)
                    facts = _child(way, folder)
                    assert facts["rows"] == num_rows, facts
                    if turn or state == "cold":  # the first round warms up
                        speeds[way].append(num_rows / facts["seconds"])
                        peaks[way].append(facts["peak"])
            _table(f"rows/s, {state}", speeds)
            good &= _verdict(
                f"streaming, {state}", "ours", speeds["ours"], "scan", speeds["scan"], AGAINST["scan"]
            )
            peak = max(peaks["ours"])
            good &= peak <= MEMORY_LIMIT
            print(
                f"streaming, {state}: peak memory {peak / 1e6:.0f} MB (limit {MEMORY_LIMIT / 1e6:.0f}): "
                f"{'met' if peak <= MEMORY_LIMIT else 'MISSED'}; of the scan {max(peaks['scan']) / 1e6:.0f} MB"
            )
    return good


def _generate(folder: Path, wanted_bytes: int) -> tuple[int, int]:
    """Parquet files, and a shard of the same rows for each, a file at a time; bytes of Parquet, and rows."""
    shards: list[list[Any]] = []
    rng, total = np.random.default_rng(0), 0
    while total < wanted_bytes:
        values = rng.random((STREAM_FILE_ROWS, STREAM_COLUMNS), dtype=np.float32)
        targets = rng.random(STREAM_FILE_ROWS, dtype=np.float32)
        columns = {f"c{i}": values[:, i] for i in range(STREAM_COLUMNS)}
        index = len(shards)
        file = folder / f"{index:05d}.parquet"
        pq.write_table(pa.table({**columns, "y": targets}), file, use_dictionary=False)
        total += file.stat().st_size
        rows = np.arange(index * STREAM_FILE_ROWS, (index + 1) * STREAM_FILE_ROWS)
        written = write_shard(folder, "train", index, values, targets, rows)
        shards.append(
            [written.file, written.rows, *(written.facts[key] for key in ("bytes", "sha256", "mtime_ns"))]
        )
    (folder / "shards.json").write_text(json.dumps(shards))
    os.sync()  # what is not on the disk cannot be dropped from the cache
    return total, len(shards) * STREAM_FILE_ROWS


def _drop_from_cache(files: Iterator[Path]) -> None:
    for file in files:
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _child(way: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", way, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    facts: dict[str, float] = json.loads(done.stdout)
    return facts


def read_in_this_process(way: str, folder: Path) -> dict[str, float]:
    rows = 0
    if way == "scan":
        began = time.perf_counter()
        files = sorted(str(file) for file in folder.glob("*.parquet"))
        for batch in pads.dataset(files).to_batches():
            rows += batch.num_rows
    else:
        shards = [Shard(*entry) for entry in json.loads((folder / "shards.json").read_text())]
        began = time.perf_counter()
        part = Part(LocalStore(folder, checked=True), shards, (STREAM_COLUMNS,), WINDOW_BYTES)
        order = StreamingOrder(
            [shard.rows for shard in shards], [shard.bytes for shard in shards], WINDOW_BYTES, STREAM_BATCH,
            seed=0, epoch=0,
        )  # fmt: skip
        for item in fed(part, order, STREAM_BATCH):
            rows += len(item.batches[0].features)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"rows": rows, "seconds": seconds, "peak": peak if sys.platform == "darwin" else peak * 1024}


def _table(unit: str, speeds: dict[str, list[float]]) -> None:
    print(f"{unit:<26} {'median':>10} {'lowest':>10} {'highest':>10}")
    for way, values in speeds.items():
        print(f"{way:<26} {statistics.median(values):10.0f} {min(values):10.0f} {max(values):10.0f}")


def _verdict(
    name: str, one: str, speeds: Sequence[float], other: str, others: Sequence[float], target: float
) -> bool:
    value = statistics.median(a / b for a, b in zip(speeds, others, strict=True))
    met = value >= target
    print(f"{name}: {one} / {other}: {value:.2f} (target at least {target:g}): {'met' if met else 'MISSED'}")
    return met


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default="batches,resume,streaming")
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--threads", type=int, default=1, help="of torch, for `batches`")
    parser.add_argument("--parquet-gb", type=float, default=4)
    parser.add_argument(
        "--folder", type=Path, help="where streaming writes its files, instead of the default"
    )
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        keep_freed_memory()
        print(json.dumps(read_in_this_process(arguments.child[0], Path(arguments.child[1]))))
        return 0
    warnings.simplefilter("ignore")
    print(describe_machine("torch", "numpy", "pyarrow", "ray"), flush=True)
    only, good = arguments.only.split(","), True
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as our workers do; here for all contestants
    if "batches" in only:
        import ray

        ray.init(
            address="local",
            num_cpus=os.cpu_count(),
            include_dashboard=False,
            logging_level="error",
            log_to_driver=False,
        )
        ray.data.DataContext.get_current().enable_progress_bars = False
        try:
            for name in ("images", "table"):
                good &= bench_batches(name, arguments.runs, arguments.rows)
        finally:
            ray.shutdown()
    if "resume" in only:
        good &= bench_resume(arguments.runs)
    if "streaming" in only:
        good &= bench_streaming(arguments.runs, arguments.parquet_gb, arguments.folder)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
