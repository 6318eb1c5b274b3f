"""The worker in the caller's own process: no Ray, one rank, open to a debugger. Imports: no ray."""

from __future__ import annotations

import torch

from orchestrator.engine.link import WorkerLink
from orchestrator.errors import UsageError
from orchestrator.runners.desk import Desk
from orchestrator.worker import WorkerTask, train_worker


def run_inline(task: WorkerTask, desk: Desk) -> str:
    """Train here, as one worker with one worker's CPUs; 'completed' or 'stopped'."""
    device = torch.device("cpu")
    if task.spec.resources.use_gpu:
        if not torch.cuda.is_available():
            raise UsageError("resources.use_gpu is set, but torch sees no CUDA device here")
        device = torch.device("cuda", 0)
    threads = torch.get_num_threads()
    try:
        return train_worker(task, WorkerLink(device=device, channel=desk), keep_prints=False)
    finally:
        torch.set_num_threads(threads)
