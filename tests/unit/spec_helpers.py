"""A small valid job, and what is wrong with its variations."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from orchestrator.errors import Fault, SpecError
from orchestrator.spec import load_spec

MINIMAL: dict[str, Any] = {
    "name": "digits",
    "data": {"source": {"kind": "sklearn", "name": "digits"}, "target": "label"},
    "model": {"name": "cnn"},
}

FULL_YAML = """\
name: full
description: "All sections: one line each"
tags: {team: vision, when: 2026-11-01}
seed: 7
data:
  source:
    kind: parquet
    path: data/*.parquet
  target: label
  features: [image]
  clean:
    - kind: drop_nulls
      columns: [label]
    - {kind: drop_outliers, z: 3.5}
    - {kind: fill_nulls, value: 0}
  image:
    size: [28, 28]
    mode: grayscale
  split: {kind: stratified, train: 0.8, val: 0.1, test: 0.1}
  transforms:
    - kind: standardize
    - {kind: scale, by: 255}
model:
  name: mlp
  args: {hidden: [64, 64]}
train:
  task: multiclass
  loss: my_loss:focal
  metrics: [accuracy, f1]
  max_epochs: 3
  global_batch_size: 32
  microbatch_size: 16
  optimizer: {kind: adamw, lr: 1e-3, betas: [0.9, 0.99]}
  schedule: {kind: cosine, warmup_steps: 0.1}
  early_stopping: {metric: val/loss, patience: 2}
resources:
  num_workers: 2
  resources_per_worker: {CPU: 2}
  start_timeout: 5m
runtime_env:
  pip: [einops]
  env_vars: {OMP_NUM_THREADS: "2"}
secrets:
  TOKEN: correct horse
checkpoint: {num_to_keep: 3}
failure: {stop_grace: 1m30s}
mlflow: {registered_model_name: full}
storage: s3://bucket/runs
"""


def minimal(**sections: Any) -> dict[str, Any]:
    return copy.deepcopy(MINIMAL) | sections


def faults_of(source: Any, *overrides: str) -> dict[str, Fault]:
    """The faults of a spec that must be refused, by field."""
    with pytest.raises(SpecError) as caught:
        load_spec(source, overrides)
    assert caught.value.exit_code == 2
    faults = {fault.field: fault for fault in caught.value.faults}
    assert len(faults) == len(caught.value.faults), "two faults for one field"
    return faults
