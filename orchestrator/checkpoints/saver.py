"""Saving beside the training: copy the state to host memory, and let a thread write it while training goes on.

Every rank has a `Saver` and calls it at the same steps. Imports: the store; `tensors` inside functions.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from orchestrator.checkpoints.announce import announce, announced, forget
from orchestrator.checkpoints.files import Sink
from orchestrator.checkpoints.manifest import FileFacts, Manifest, checkpoint_name
from orchestrator.checkpoints.patience import patiently
from orchestrator.checkpoints.store import CheckpointStore, Fenced
from orchestrator.errors import CheckpointError

if TYPE_CHECKING:
    from orchestrator.checkpoints.tensors import HostCopies

_log = logging.getLogger(__name__)

MAX_FAILURES = 3
"""Saves that may fail in a row before the run ends: more work than that is not put at risk."""
ANNOUNCEMENT_TIMEOUT_S = 600.0
_NICENESS = 5
"""The writer yields to the training where both want a processor. It is not starved: now and then it holds the
interpreter's lock, for which the training would wait."""


@dataclass(frozen=True)
class Part:
    """One file of a checkpoint: its content, a tree of dicts, lists, tensors and plain values, and its writer."""

    name: str
    content: Any
    dump: Callable[[Any, Sink], None]


@dataclass(frozen=True)
class Saved:
    """What a committed checkpoint cost. `seconds` from its begin to its commit; for `stall_s` of them training
    waited; `busy_s` of processor time its writer took."""

    step: int
    seconds: float
    stall_s: float
    busy_s: float
    size_bytes: int


@dataclass
class _Task:
    """One save of this rank."""

    manifest: Manifest
    """Without files."""
    number: int
    parts: Sequence[Part]
    others: Sequence[int]
    began_s: float
    stall_s: float = 0.0
    error: BaseException | None = None


class _GivenUp(CheckpointError):
    """The process is about to end."""


class Saver:
    """One rank's saving, at most one save at a time.

    A save that fails is reported and does not end the training; `MAX_FAILURES` in a row do, and so does the last
    one of a run (`finish`).
    """

    def __init__(
        self,
        store: CheckpointStore,
        *,
        rank: int = 0,
        world_size: int = 1,
        attempt: int = 1,
        asynchronous: bool = True,
        notice: Callable[[str], None] = _log.warning,
    ) -> None:
        self.store = store
        self.stall_s = 0.0
        """Time of this attempt that training waited for its checkpoints."""
        self.saved_step = 0
        """Of the newest committed checkpoint. Rank 0 only."""
        self._rank = rank
        self._world_size = world_size
        self._attempt = attempt
        self._asynchronous = asynchronous
        self._notice = notice
        self._copies: HostCopies | None = None
        self._thread: threading.Thread | None = None
        self._task: _Task | None = None
        self._number = 0
        self._failures = 0
        self._error: CheckpointError | None = None
        self._saved: deque[Saved] = deque()
        self._given_up = threading.Event()
        self._counted_s = 0.0
        """Until this moment waits are in `stall_s`."""

    @property
    def busy(self) -> bool:
        """Whether a save is being written."""
        return self._thread is not None and self._thread.is_alive()

    def reserve(self, parts: Sequence[Part]) -> None:
        """Get the memory for copies of such parts, in the background."""
        if self._asynchronous and parts and self._copies is None:
            copies = self._host_copies()
            contents = [part.content for part in parts]

            def reserve() -> None:
                with contextlib.suppress(MemoryError):  # the first save meets it again, and says so
                    copies.reserve(contents)

            self._start(reserve)

    def wait(self) -> None:
        """Wait for the save that is being written, if any. Rank 0 does so before it tells the others to begin the
        next one.

        Raises CheckpointError where too many have failed, or a newer attempt has begun.
        """
        self._wait(last=False)

    def save(
        self,
        parts: Sequence[Part],
        *,
        step: int,
        epoch: int,
        metrics: Mapping[str, float],
        others: Sequence[int] = (),
        began_s: float | None = None,
    ) -> None:
        """Save this rank's parts; rank 0 then waits for the parts of the ranks `others`, and commits.

        What the parts hold may change as soon as this returns. `began_s`, of `time.perf_counter`, is when
        training began to wait. Raises as `wait`.
        """
        began_s = time.perf_counter() if began_s is None else began_s
        self._settle()
        self._number += 1
        if self._rank == 0 or parts:
            manifest = Manifest(
                name=checkpoint_name(step),
                step=step,
                epoch=epoch,
                attempt=self._attempt,
                time_s=time.time(),
                world_size=self._world_size,
                metrics=dict(metrics),
                files={},
            )
            self._task = task = _Task(manifest, self._number, parts, others, began_s)
            copied = self._copied(parts) if self._asynchronous else None
            if copied is not None:
                task.parts = copied
                task.stall_s = time.perf_counter() - began_s
                self._start(lambda: self._run(task))
            else:
                self._run(task)
                self._settle()
        self._count(began_s)

    def finish(self) -> None:
        """Wait for the last save. Raises CheckpointError where it failed."""
        self._wait(last=True)

    def take_saved(self) -> list[Saved]:
        """What was committed since the last call, oldest first. Rank 0 only."""
        return [self._saved.popleft() for _ in range(len(self._saved))]

    def close(self, timeout_s: float = 5.0) -> None:
        """Training has ended, well or not: let the save that is being written end too, but not for long, since
        others may be waiting to hear of a failure."""
        if self._thread is not None:
            self._thread.join(timeout_s)
            self._given_up.set()
            self._thread.join(timeout_s)

    def _copied(self, parts: Sequence[Part]) -> list[Part] | None:
        """The parts as they are now; None where there is no memory for a copy, and training has to wait."""
        try:
            contents = self._host_copies().take([part.content for part in parts])
        except MemoryError as error:
            self._asynchronous, self._copies = False, None
            self._notice(f"{error}: training waits for each checkpoint (checkpoint.asynchronous)")
            return None
        return [replace(part, content=content) for part, content in zip(parts, contents, strict=True)]

    def _host_copies(self) -> HostCopies:
        from orchestrator.checkpoints.tensors import HostCopies

        if self._copies is None:
            self._copies = HostCopies()
        return self._copies

    def _start(self, action: Callable[[], None]) -> None:
        def run() -> None:
            if sys.platform == "linux":  # where a thread has a priority of its own
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
            action()

        self._thread = threading.Thread(target=run, name="checkpoint-writer", daemon=True)
        self._thread.start()

    def _wait(self, *, last: bool) -> None:
        began_s = time.perf_counter()
        try:
            self._settle(last)
        finally:
            self._count(began_s)

    def _count(self, began_s: float) -> None:
        """Training has waited since then; none of it counts twice."""
        now_s = time.perf_counter()
        self.stall_s += now_s - max(began_s, self._counted_s)
        self._counted_s = now_s

    def _settle(self, last: bool = False) -> None:
        """Wait for the thread, and judge what it did."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        task, self._task = self._task, None
        if task is None:
            if last and self._error is not None:
                raise self._error
            return
        if task.error is None:
            self._failures, self._error = 0, None
            return
        if not isinstance(task.error, OSError | CheckpointError):
            raise task.error
        self._failures += 1
        self._error = self._explained(task, task.error)
        if self._rank != 0:
            _log.error("%s", self._error)  # rank 0 is told, and decides
            self._error = None
        elif last or self._failures >= MAX_FAILURES or isinstance(task.error, Fenced):
            raise self._error
        else:
            self._notice(
                f"{self._error}; training goes on and the next save tries again (failure {self._failures} in a row "
                f"of at most {MAX_FAILURES})"
            )

    def _run(self, task: _Task) -> None:
        """Write a save to its end. What goes wrong is left in the task, for training's own thread."""
        manifest, busy_s = task.manifest, time.thread_time()
        place, save = self.store.folder / manifest.name, (self._attempt, task.number)
        files: dict[str, FileFacts] = {}
        try:
            if self._copies is not None:
                task.stall_s += self._copies.settle()
            if self._rank == 0:
                self.store.withdraw(manifest.name, self._attempt)
            for part in task.parts:
                files[part.name] = self._write(task, part)
            if self._rank != 0:
                patiently(
                    lambda: announce(place, self._rank, save, files),
                    f"announcing the files of {manifest.name}",
                    self.store.pauses_s,
                )
                return
            for rank in task.others:
                files |= announced(place, rank, save, timeout_s=ANNOUNCEMENT_TIMEOUT_S, check=self._go_on)
            manifest = replace(manifest, files=files)
            self.store.commit(manifest)
            self.saved_step = manifest.step
            with contextlib.suppress(OSError):  # it is committed, whatever happens now
                for rank in task.others:
                    forget(place, rank)
        except BaseException as error:  # noqa: BLE001 - see above
            task.error = error
            self._clear_away(task, list(files))
        else:
            _log.info("saved checkpoint %s", manifest.name)
            seconds = time.perf_counter() - task.began_s
            self._saved.append(
                Saved(
                    step=manifest.step,
                    seconds=seconds,
                    stall_s=task.stall_s if self._asynchronous else seconds,
                    busy_s=time.thread_time() - busy_s,
                    size_bytes=manifest.size_bytes,
                )
            )

    def _write(self, task: _Task, part: Part) -> FileFacts:
        return self.store.write(
            task.manifest.name,
            part.name,
            lambda sink: part.dump(part.content, sink),
            attempt=self._attempt,
            check=self._go_on,
        )

    def _go_on(self) -> None:
        if self._given_up.is_set():
            raise _GivenUp("the save was given up, since the worker ends")

    def _clear_away(self, task: _Task, written: Sequence[str]) -> None:
        """Leave nothing half-written behind, and tell rank 0."""
        place = self.store.folder / task.manifest.name
        with contextlib.suppress(OSError):
            if self.store.is_fenced(self._attempt):
                return  # what lies there now may be the newer attempt's
            if self._rank == 0:
                self.store.discard(task.manifest.name)
            else:
                for name in written:
                    place.remove_file(name)
                announce(place, self._rank, (self._attempt, task.number), {}, error=str(task.error))

    def _explained(self, task: _Task, error: OSError | CheckpointError) -> CheckpointError:
        if isinstance(error, CheckpointError):
            return error
        reason = f"checkpoint {task.manifest.name} could not be written: {error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            room = self.store.room()
            free = "" if room is None else f", and {room:,} are free"
            return CheckpointError(
                f"{reason} (it needs some {_needed(task.parts):,} bytes{free})",
                f"make room in {self.store.folder.uri}, lower checkpoint.num_to_keep, or remove checkpoints with "
                "orchestrator checkpoint prune",
            )
        return CheckpointError(reason, f"look after the storage at {self.store.folder.uri}")


def _needed(parts: Sequence[Part]) -> int:
    from orchestrator.checkpoints.tensors import size_bytes

    return sum(size_bytes(part.content) for part in parts)
