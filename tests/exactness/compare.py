"""What a run leaves, down to the last bit, in a form that can be compared."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import safetensors.torch
import torch

from orchestrator.checkpoints.manifest import STATE
from orchestrator.checkpoints.tensors import parse_state
from orchestrator.records import Point
from orchestrator.runs.folder import RunFolder
from orchestrator.spec import JobSpec
from orchestrator.tracking.journal import Journal
from orchestrator.tracking.ops import LogMetrics
from orchestrator.worker import checkpoint_store
from tests.exactness.course import Course

_OF_THE_CLOCK = ("points", "position.seconds")
_FIGURES = ("train/loss", "val/", "epoch")
"""Metrics that no clock has a say in: throughput and times differ from run to run, and so do the steps at which
what is said once per window is said."""


def final_state(spec: JobSpec, run: RunFolder) -> dict[str, Any]:
    """What of the last checkpoint and of the model must not depend on what happened to the workers: `saved_state`, the
    result, and the model's files."""
    left = saved_state(spec, run)
    result = run.read_result()
    assert result is not None
    left |= {f"result.{name}": leaf for name, leaf in _leaves(result["metrics"])}
    for file in sorted(run.model.local_path().iterdir()):
        left[f"model.{file.name}"] = file.read_bytes()
    assert "model.model.safetensors" in left
    return left


def saved_state(spec: JobSpec, run: RunFolder) -> dict[str, Any]:
    """The last checkpoint: weights, optimizer, schedule, averages, stopper, position, the random states of every rank,
    metrics. What only tells the time is left out."""
    store = checkpoint_store(spec, run)
    newest = store.manifests()[-1]
    left = {
        f"state.{name}": leaf
        for name, leaf in _leaves(store.load(newest))
        if not name.startswith(_OF_THE_CLOCK)
    }
    for name in newest.files.keys() - {STATE}:  # what a rank has for itself
        data = store.read(newest, name)
        part = safetensors.torch.load(data) if name.endswith(".safetensors") else parse_state(data)
        left |= {f"{name}.{key}": leaf for key, leaf in _leaves(part)}
    return left | {"step": newest.step, "metrics": dict(newest.metrics)}


def remains(course: Course) -> dict[str, Any]:
    """The final state, and the figures of each step as the journal and the tracking server have them."""
    left = final_state(course.spec, course.run)
    journal = Journal(course.folder / "tracking")
    recorded = [point for op in journal.operations() if isinstance(op, LogMetrics) for point in op.points]
    journal.close()
    left |= {f"journal.{key}": values for key, values in _history(recorded).items()}
    (run,) = course.sink.runs.values()
    left |= {f"server.{key}": values for key, values in _history(run.points.values()).items()}
    return left


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Where two runs differ, a line each."""
    return [
        f"{name}: {_shown(one.get(name))} and {_shown(other.get(name))}"
        for name in sorted(one.keys() | other.keys())
        if one.get(name) != other.get(name)
    ]


def deviations(one: Course, other: Course, *, rows: int, tolerance: float = 1e-4) -> list[str]:
    """Where a run of other numbers of workers departs from `one`, a line each: in the rows of a step, in an epoch
    that does not have each of the `rows` rows once, or in a loss, by more than the (relative) tolerance."""
    steps_one, steps_other = rows_of_steps(one), rows_of_steps(other)
    per_epoch = one.total_steps // one.spec.train.max_epochs
    found = [
        f"step {step}: other rows than in the undisturbed run"
        for step in range(1, one.total_steps + 1)
        if steps_one.get(step) != steps_other.get(step)
    ]
    for first in range(1, one.total_steps + 1, per_epoch):
        used = Counter(row for step in range(first, first + per_epoch) for row in steps_other.get(step, []))
        if len(used) != rows or set(used.values()) != {1}:
            found.append(
                f"epoch from step {first}: {len(used)} rows, used {sorted(set(used.values()))} times"
            )
    curve, other_curve = (_figures(course) for course in (one, other))
    if curve.keys() != other_curve.keys():
        found.append(f"figures of other steps: {sorted(curve.keys() ^ other_curve.keys())}")
    found += [
        f"{key} at step {step}: {value} and {other_curve[key, step]}"
        for (key, step), value in curve.items()
        if (key, step) in other_curve and not math.isclose(value, other_curve[key, step], rel_tol=tolerance)
    ]
    return found


def _figures(course: Course) -> dict[tuple[str, int], float]:
    (run,) = course.sink.runs.values()
    histories = _history(run.points.values())
    return {(key, step): float.fromhex(value) for key, values in histories.items() for step, value in values}


def rows_of_steps(course: Course) -> dict[int, list[int]]:
    """The rows that each step was made of, by their numbers, ascending: a step that was taken again after a
    resume counts as it was taken last."""
    found: dict[int, list[int]] = {}
    for number in range(1, len(course.world_sizes) + 1):
        steps: dict[int, list[int]] = defaultdict(list)
        for file in (course.folder / "attempts" / str(number)).glob("rows-*.txt"):
            for line in file.read_text().splitlines():
                step, _, rows = line.partition(": ")
                steps[int(step)] += map(int, rows.split())
        found |= steps
    return {step: sorted(rows) for step, rows in sorted(found.items())}


def _history(points: Iterable[Point]) -> dict[str, list[tuple[int, str]]]:
    """Steps and exact values by key, in the order of steps; one that was recorded twice stands there twice."""
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for point in points:
        if point.key.startswith(_FIGURES):
            found[point.key].append((point.step, float(point.value).hex()))
    return {key: sorted(values) for key, values in found.items()}


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Nested state as dotted names and plain values; tensors as type, shape and bytes, numbers as their digits."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{name}.{index}")
    elif isinstance(value, torch.Tensor):
        # Without content where it stands for shards that are elsewhere.
        data = None if value.is_meta else value.contiguous().numpy().tobytes()
        yield name, (str(value.dtype), tuple(value.shape), data)
    else:
        yield name, repr(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 200 else f"{text[:200]}…"
