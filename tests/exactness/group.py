"""A group of workers on this machine, talking over gloo, without Ray: started within a second, and killed at will.

The processes are forked from one that has imported all that they need, also what the engine imports late.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path

import torch
import torch._inductor.config
import torch.distributed

from orchestrator.engine.link import WorkerLink
from orchestrator.records import Letter, Reply
from orchestrator.runners.desk import Desk
from orchestrator.vision import prepare_torchvision
from orchestrator.worker import WorkerTask, train_worker
from tests.exactness import cases

prepare_torchvision()
import torchmetrics.classification  # noqa: E402
import torchmetrics.regression  # noqa: E402, F401

_PATIENCE_S = 120.0
_COURIER_S = 0.02  # so that a desk learns soon what a killed worker did


class _PipeChannel:
    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def exchange(self, letter: Letter) -> Reply:
        self._pipe.send(letter)
        reply: Reply = self._pipe.recv()
        return reply


def _work(rank: int, world_size: int, folder: Path, task: WorkerTask, attempt: int, pipe: Connection) -> None:
    """One worker, from its start to its end."""
    output = os.open(folder / f"rank-{rank}.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(output, sys.stdout.fileno())
    os.dup2(output, sys.stderr.fileno())
    torch.set_num_threads(1)
    cases.note_steps(folder / f"rows-{rank}.txt")
    if world_size > 1:
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=_PATIENCE_S),
        )
    link = WorkerLink(
        rank=rank, world_size=world_size, local_rank=rank, channel=_PipeChannel(pipe), interval_s=_COURIER_S
    )
    train_worker(task, link, attempt=attempt, keep_prints=False)
    if world_size > 1:
        torch.distributed.destroy_process_group()


@functools.cache
def _forking() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def warm_up() -> None:
    """Start the process to fork from, which takes some seconds the first time."""
    process = _forking().Process(target=int)
    process.start()
    process.join()


class Group:
    """The workers of one attempt. What they print, and their meeting point, are in `folder`."""

    def __init__(self, task: WorkerTask, attempt: int, world_size: int, folder: Path, desk: Desk) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        pipes = [multiprocessing.Pipe() for _ in range(world_size)]
        self._processes = [
            _forking().Process(
                target=_work, args=(rank, world_size, folder, task, attempt, theirs), daemon=True
            )
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for process in self._processes:
            process.start()
        for _, theirs in pipes:
            theirs.close()
        self._postman = threading.Thread(target=_serve, args=([ours for ours, _ in pipes], desk), daemon=True)
        self._postman.start()

    def running(self) -> bool:
        return any(process.exitcode is None for process in self._processes)

    def completed(self) -> bool:
        return all(process.exitcode == 0 for process in self._processes)

    def ended(self) -> bool:
        """Whether a worker has ended, of itself or by a fault."""
        return any(process.exitcode is not None for process in self._processes)

    def kill(self, rank: int) -> None:
        pid = self._processes[rank].pid
        assert pid is not None
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(pid, signal.SIGKILL)
        self._processes[rank].join()

    def freeze(self, frozen: bool) -> None:
        """Hold all workers where they are, or let them go on: to others they are gone, as on a machine that is cut
        off, and come back."""
        for process in self._processes:
            if process.exitcode is None and process.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGSTOP if frozen else signal.SIGCONT)

    def kill_all(self) -> None:
        """As a runner does where a worker is lost. What they had told by then has been received."""
        for rank in range(len(self._processes)):
            self.kill(rank)
        self._postman.join()

    def printed(self) -> str:
        """What the workers have printed: why they failed."""
        return "\n".join(
            f"{file.name}:\n{file.read_text()[-3000:]}" for file in self.folder.glob("rank-*.txt")
        )


def wait(group: Group, until: Callable[[], bool] = lambda: False) -> bool:
    """Wait until the condition holds: True; or until all workers have ended, or one failed: False."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        if until():
            return True
        if not group.running() or (group.ended() and not _all_well(group)):
            return False
        time.sleep(0.0005)
    raise AssertionError(f"nothing happened for {_PATIENCE_S:.0f} s\n{group.printed()}")


def _all_well(group: Group) -> bool:
    return all(process.exitcode in (None, 0) for process in group._processes)


def _serve(pipes: list[Connection], desk: Desk) -> None:
    """Answer letters until all workers have ended."""
    while pipes:
        for pipe in _ready(pipes):
            try:
                pipe.send(desk.exchange(pipe.recv()))
            except (EOFError, OSError):
                pipes.remove(pipe)
                pipe.close()


def _ready(pipes: list[Connection]) -> Iterator[Connection]:
    for pipe in multiprocessing.connection.wait(pipes):
        assert isinstance(pipe, Connection)
        yield pipe
