"""The link between a worker and the rest of the world.

A `WorkerLink` knows the worker's rank, world size and device. `log` only appends to a list; a courier thread
carries what gathered to the driver through a `Channel` and brings back what the driver wants: please stop.
Nothing that the training calls here waits. Imports: torch, the standard library. No ray, no mlflow.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Protocol

import torch

from orchestrator.records import Failure, Letter, Point, Progress, Reply, Wish

_log = logging.getLogger(__name__)


class Channel(Protocol):
    """Carries a letter to the driver and its reply back. May block or raise; only the courier calls it."""

    def exchange(self, letter: Letter) -> Reply: ...


class WorkerLink:
    """One worker's side. Only rank 0 logs; every rank may report a failure.

    `log`, `progress` and `stop_requested` never wait. Close it in the end: `close` delivers the rest.
    """

    def __init__(
        self,
        *,
        rank: int = 0,
        world_size: int = 1,
        local_rank: int = 0,
        device: torch.device | None = None,
        attempt: int = 1,
        channel: Channel | None = None,
        interval_s: float = 0.5,
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.local_rank = local_rank
        self.device = device or torch.device("cpu")
        self.attempt = attempt
        self._channel = channel
        self._interval_s = interval_s
        self._pending: deque[Point] = deque()
        self._first = 0
        self._progress: Progress | None = None
        self._notices: deque[str] = deque()
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._closing = False
        self._sending = threading.Lock()
        self._courier: threading.Thread | None = None

    def start(self) -> WorkerLink:
        """Start the courier; without a channel the link only collects."""
        if self._channel is not None and self.rank == 0:
            self._courier = threading.Thread(target=self._carry, name="link-courier", daemon=True)
            self._courier.start()
        return self

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Note values of metrics at an optimizer step, stamped with this moment."""
        now_ms = time.time_ns() // 1_000_000
        self.log_points([Point(key, float(value), step, now_ms) for key, value in metrics.items()])

    def log_points(self, points: list[Point]) -> None:
        """Note points that carry their own time stamps."""
        if self.rank == 0:
            self._pending.extend(points)

    def progress(self, progress: Progress) -> None:
        self._progress = progress

    def notice(self, text: str) -> None:
        """Tell the user something while the run goes on: a warning, a decision taken for them."""
        _log.warning("%s", text)
        if self.rank == 0:
            self._notices.append(text)

    def fail(self, failure: Failure) -> None:
        """Report a failure at once; the worker is about to end, so this one waits (briefly) for delivery."""
        self._exchange(failure=failure)

    def stop_requested(self) -> bool:
        """Whether the driver asked this run to save and end. Meaningful on rank 0; ranks must agree on it."""
        return self._stop.is_set()

    def wish(self) -> Wish:
        """What the driver wants now: "save" once for each time that it asked. Meaningful on rank 0; ranks must
        agree on it."""
        return "stop" if self.stop_requested() else "go on"

    def request_stop(self) -> None:
        self._stop.set()

    def unacknowledged(self) -> list[Point]:
        """Points that may not have reached the driver's disk yet: they travel in the checkpoint."""
        return list(self._pending)

    def close(self, timeout_s: float = 10.0) -> bool:
        """Deliver what is left; True where all of it was acknowledged."""
        self._closing = True
        self._wake.set()
        if self._courier is not None:
            self._courier.join(timeout_s)
        return not self._pending

    def _carry(self) -> None:
        while not self._closing:
            self._wake.wait(self._interval_s)
            self._exchange()
        deadline = time.monotonic() + 8.0
        while self._pending and time.monotonic() < deadline:
            if not self._exchange():
                time.sleep(0.2)

    def _exchange(self, failure: Failure | None = None) -> bool:
        if self._channel is None:
            return False
        with self._sending:
            points = tuple(self._pending)
            notices = tuple(self._notices)
            letter = Letter(self.rank, self.attempt, self._first, points, self._progress, failure, notices)
            try:
                reply = self._channel.exchange(letter)
            except Exception as error:  # noqa: BLE001 - the driver may be gone; the points stay for the next try
                _log.debug("a letter to the driver was not delivered: %s", error)
                return False
            while self._pending and self._first < reply.acknowledged:
                self._pending.popleft()
                self._first += 1
            for _ in notices:
                self._notices.popleft()
            if reply.stop:
                self._stop.set()
            return True
