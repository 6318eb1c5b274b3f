"""What a run leaves, down to the last bit, in a form that can be compared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from orchestrator.records import Point
from orchestrator.tracking.journal import Journal
from orchestrator.tracking.ops import LogMetrics
from orchestrator.worker import checkpoint_store
from tests.exactness.course import Course

_OF_THE_CLOCK = ("points", "position.seconds")
_FIGURES = ("train/loss", "val/", "epoch")
"""Metrics that no clock has a say in: throughput and times differ from run to run, and so do the steps at which
what is said once per window is said."""


def remains(course: Course) -> dict[str, Any]:
    """All that must not depend on what happened to the workers: the state of the last checkpoint (model, optimizer,
    schedule, averages, stopper, position, the random states of every rank), the figures of each step as the journal
    and the tracking server have them, the result, and the model's weights."""
    store = checkpoint_store(course.spec, course.run)
    newest = store.manifests()[-1]
    assert newest.step == course.total_steps
    left = {
        f"state.{name}": leaf
        for name, leaf in _leaves(store.load(newest))
        if not name.startswith(_OF_THE_CLOCK)
    }
    journal = Journal(course.folder / "tracking")
    recorded = [point for op in journal.operations() if isinstance(op, LogMetrics) for point in op.points]
    journal.close()
    left |= {f"journal.{key}": values for key, values in _history(recorded).items()}
    (run,) = course.sink.runs.values()
    left |= {f"server.{key}": values for key, values in _history(run.points.values()).items()}
    result = course.run.read_result()
    assert result is not None
    left |= {f"result.{name}": leaf for name, leaf in _leaves(result["metrics"])}
    for file in sorted(course.run.model.local_path().iterdir()):
        left[f"model.{file.name}"] = file.read_bytes()
    assert "model.model.safetensors" in left
    return left


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Where two runs differ, a line each."""
    return [
        f"{name}: {_shown(one.get(name))} and {_shown(other.get(name))}"
        for name in sorted(one.keys() | other.keys())
        if one.get(name) != other.get(name)
    ]


def losses(course: Course) -> dict[int, float]:
    """The training loss of each step, as it was recorded."""
    (run,) = course.sink.runs.values()
    return {step: float.fromhex(value) for step, value in _history(run.points.values())["train/loss"]}


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
        yield name, (str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes())
    else:
        yield name, repr(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 200 else f"{text[:200]}…"
