"""One worker's process: an actor that works in a thread of its own, and answers the driver meanwhile.

Its answers never wait for the work, not even for a collective that hangs. The process can take one piece of work
after the other. Imports: ray and torch, inside functions: the driver reads this file without them.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from orchestrator.records import Failure, Letter, Pulse, Reply
from orchestrator.runners.ray_workers.seats import Facts, Seat

if TYPE_CHECKING:
    from orchestrator.engine.link import WorkerLink
    from orchestrator.worker.pristine import Pristine

_TELL_S, _SEND_S = 5.0, 0.4
"""For how long a process that ends itself waits to be asked how it ended, and until the answer is on its way."""
Work = Callable[["WorkerLink"], Any]
"""What a group does: called on each of its processes, with the process group set up. Its result travels pickled."""


@dataclass(frozen=True)
class Ended:
    """How a process's work came to its end: by a result, or by a failure."""

    result: Any = None
    failure: Failure | None = None
    memory_bytes: int = 0
    """What the process takes now, with the work's own memory given back."""


@dataclass(frozen=True)
class Report:
    """A process's answer to a poll."""

    pulse: Pulse
    letter: Letter | None = None
    ended: Ended | None = None


@dataclass(frozen=True)
class Stacks:
    """All threads of a process as text, and the innermost frame of the working one."""

    text: str
    frame: str


class WorkerProcess:
    """The actor. Its methods are short; only `begin`'s thread works."""

    def __init__(self, modules: tuple[str, ...] = ()) -> None:
        for name in modules:  # what takes seconds to import, before there is work
            importlib.import_module(name)
        self._thread: threading.Thread | None = None
        self._link: WorkerLink | None = None
        self._ended: Ended | None = None
        self._store: Any = None
        self._address = ("", 0)
        """Where the ranks found each other."""
        self._group: contextlib.ExitStack | None = None
        """Leaves torch's process group, where it was kept for the next piece of work."""
        self._pristine = _pristine()
        self._told = threading.Event()
        """The driver has fetched how the work ended."""
        _before_exit(self._exits)

    def facts(self) -> Facts:
        import ray

        context = ray.get_runtime_context()
        gpus = context.get_accelerator_ids().get("GPU", [])
        return Facts(
            node=context.get_node_id(),
            host=socket.gethostname(),
            ip=ray.util.get_node_ip_address(),
            pid=os.getpid(),
            gpus=tuple(str(gpu) for gpu in gpus),
        )

    def open_store(self, timeout_s: float) -> tuple[str, int]:
        """Rank 0: where the ranks of the next piece of work find each other; address and port."""
        from orchestrator.runners.ray_workers.rendezvous import open_store

        self._leave_group()  # before its store is replaced
        self._store, address = open_store(timeout_s)
        return address

    def begin(
        self,
        work: Work,
        seat: Seat,
        address: tuple[str, int] | None,
        timeout_s: float,
        *,
        keep_group: bool = False,
        forget: tuple[str, ...] = (),
    ) -> None:
        """Start to work as the rank of `seat`, in a process as if it were new. `timeout_s` is that of collectives.

        Without an address the process group of the work before is used again; one is there to be kept only after
        `keep_group`. `forget`: the folders of user code that is loaded anew.
        """
        from orchestrator.engine.link import WorkerLink
        from orchestrator.runners.ray_workers.rendezvous import choose_device

        assert self._thread is None or self._ended is not None, "the last piece of work has not ended"
        if self._thread is not None:
            self._pristine.restore(forget)
        if address is not None:
            self._leave_group()
            self._address = address
        self._ended = None
        self._told.clear()
        self._link = WorkerLink(
            rank=seat.rank,
            world_size=seat.world_size,
            local_rank=seat.local_rank,
            device=choose_device(seat),
            fetched=True,
        )
        self._thread = threading.Thread(
            target=self._work,
            args=(work, self._link, seat, timeout_s, address is None, keep_group),
            name="work",
            daemon=True,
        )
        self._thread.start()

    def poll(self, reply: Reply | None, wait_s: float = 0.0) -> Report:
        """Take the driver's answer to the last letter; how the work stands. Waits so long for news."""
        if wait_s and self._link is not None and self._ended is None:
            if reply is not None:
                self._link.accept(reply)
            self._link.news.wait(wait_s)
            self._link.news.clear()
        ended, link = self._ended, self._link  # in this order: a letter is never newer than the end
        if link is None:
            return Report(Pulse(), None, ended)
        if ended is not None:
            self._told.set()
        if reply is not None:
            link.accept(reply)
        return Report(link.pulse, link.letter(), ended)

    def stacks(self) -> Stacks:
        """What all threads are at."""
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        parts, last = [], "no work"
        for ident, frame in sys._current_frames().items():
            stack = traceback.extract_stack(frame)
            parts.append(f"thread {names.get(ident, ident)}\n{''.join(traceback.format_list(stack))}")
            if self._thread is not None and ident == self._thread.ident:
                last = f"{stack[-1].filename}:{stack[-1].lineno} in {stack[-1].name}"
        return Stacks("\n".join(parts), last)

    def _exits(self, code: int) -> None:
        """User code is ending this process: tell the exit code, which nobody else will know."""
        link = self._link
        if link is None or self._ended is not None:
            return
        self._ended = Ended(
            failure=Failure(
                rank=link.rank,
                attempt=link.attempt,
                time_s=time.time(),
                error=f"the worker process ended itself with exit code {code}",
                cause="user error",
                traceback="".join(traceback.format_stack()),
                host=socket.gethostname(),
                process_exit=code,
            )
        )
        if self._told.wait(_TELL_S):
            time.sleep(_SEND_S)

    def _work(
        self,
        work: Work,
        link: WorkerLink,
        seat: Seat,
        timeout_s: float,
        kept_group: bool,
        keep_group: bool,
    ) -> None:
        from orchestrator.engine.causes import failure_of
        from orchestrator.runners.ray_workers.rendezvous import joined, take_seat

        try:
            with contextlib.ExitStack() as stack:
                take_seat(seat, link.device, self._address)
                if not kept_group:
                    stack.enter_context(joined(seat, link.device, self._address, self._store, timeout_s))
                elif self._group is not None:
                    stack.push(self._group)
                    self._group = None
                result = work(link)
                if keep_group:
                    self._group = stack.pop_all()
            ended = Ended(result)
        except BaseException as error:  # noqa: BLE001 - whatever ends the work is told to the driver
            failure = link.failure or failure_of(error, rank=link.rank, attempt=link.attempt)
            ended = Ended(failure=failure)
        gc.collect()  # the next piece of work finds the memory free
        if not gc.get_freeze_count():
            gc.freeze()  # what was imported up to now stays, and need not be looked through each time
        self._ended = replace(ended, memory_bytes=_memory_bytes())
        link.news.set()

    def _leave_group(self) -> None:
        group, self._group = self._group, None
        if group is not None:
            group.close()


def _pristine() -> Pristine:
    from orchestrator.worker.pristine import Pristine

    return Pristine.taken()


def _memory_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def _before_exit(tell: Callable[[int], None]) -> None:
    """Call `tell` before `os._exit` ends this process; not in processes that are forked from it."""
    end, process = os._exit, os.getpid()

    def told(code: int) -> None:
        if os.getpid() == process:
            tell(code)
        end(code)

    os._exit = told  # type: ignore[assignment]
