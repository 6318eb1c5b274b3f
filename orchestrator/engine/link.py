"""The link between a worker and the rest of the world.

A `WorkerLink` knows the worker's rank, world size and device. `log` only appends to a list; what gathered goes to the
driver in letters, and the replies bring back what the driver wants. Either a courier thread carries the letters
through a `Channel`, or the driver fetches them itself (`letter`, `accept`). Nothing that the training calls here
waits, but for `decision`, at the epochs where a search decides on a trial. Imports: torch, records, the standard
library. No ray, no mlflow.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping
from typing import Literal, Protocol

import torch

from orchestrator.records import EpochReport, Failure, Letter, Point, Progress, Pulse, Reply, Wish

_log = logging.getLogger(__name__)


class Channel(Protocol):
    """Carries a letter to the driver and its reply back. May block or raise; only the courier calls it."""

    def exchange(self, letter: Letter) -> Reply: ...


class WorkerLink:
    """One worker's side. Only rank 0 logs; every rank may report a failure.

    `log`, `progress`, `beat` and `wish` never wait. Close it in the end: `close` delivers the rest. `fetched`: the
    driver comes for the letters; else they go through the channel, and without one the link only collects.
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
        fetched: bool = False,
        interval_s: float = 0.5,
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.local_rank = local_rank
        self.device = device or torch.device("cpu")
        self.attempt = attempt
        self.pulse = Pulse()
        self._channel = channel
        self._fetched = fetched
        self._interval_s = interval_s
        self._pending: deque[Point] = deque()
        self._first = 0
        self._progress: Progress | None = None
        self._notices: deque[str] = deque()
        self._first_notice = 0
        self.failure: Failure | None = None
        self.gates: Collection[int] | None = None
        """Of a trial of a search: the epochs, from 1, after which it waits for a decision. None: it is no trial."""
        self.news = threading.Event()
        """Something happened that the driver should not have to wait for."""
        self._reports: deque[EpochReport] = deque()
        self._reported = 0
        self._stop = threading.Event()
        self._leave = threading.Event()
        self._save = threading.Event()
        self._last_wish: Wish = "go on"
        self._wake = threading.Event()
        self._heard = threading.Condition()
        self._started = self._closing = False
        self._sending = threading.Lock()
        self._courier: threading.Thread | None = None

    def start(self) -> WorkerLink:
        """Start the courier, or let the driver fetch from now on: the attempt's number is known."""
        self._started = True
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

    def beat(
        self, phase: Literal["starting", "training", "evaluating", "saving", "finishing"], step: int
    ) -> None:
        """A sign that this rank moves, at each step and batch; where none comes for long, the driver takes the run
        for hung."""
        self.pulse = Pulse(phase, step, self.pulse.beat + 1)

    def notice(self, text: str) -> None:
        """Tell the user something while the run goes on: a warning, a decision taken for them."""
        _log.warning("%s", text)
        if self.rank == 0:
            self._notices.append(text)

    def fail(self, failure: Failure) -> None:
        """Report a failure at once; the worker is about to end, so a channel's delivery is (briefly) waited for."""
        self.failure = failure
        self.news.set()
        self._exchange()

    def report(self, report: EpochReport) -> None:
        """Tell how a trial stands at the end of an epoch."""
        if self.rank == 0:
            self._reports.append(report)
            if report.epoch in (self.gates or ()):
                self.news.set()

    def decision(self, epoch: int) -> Wish:
        """What the driver decides on this trial after an epoch that was reported: waits for the answer. Rank 0 only."""
        with self._heard:
            self._heard.wait_for(
                lambda: self._reported >= epoch or self._stop.is_set() or self._leave.is_set()
            )
        return self.wish()

    def stop_requested(self) -> bool:
        """Whether the driver asked this run to save and end. Meaningful on rank 0; ranks must agree on it."""
        return self._stop.is_set()

    def leave_requested(self) -> bool:
        """Whether the driver wants no more of this trial. Meaningful on rank 0; ranks must agree on it."""
        return self._leave.is_set()

    def wish(self) -> Wish:
        """What the driver wants now: "save" once for each time that it asked. Meaningful on rank 0; ranks must
        agree on it."""
        if self.leave_requested():
            return "leave"
        if self.stop_requested():
            return "stop"
        if self._save.is_set():
            self._save.clear()
            return "save"
        return "go on"

    def request_stop(self) -> None:
        self._stop.set()

    def unacknowledged(self) -> list[Point]:
        """Points that may not have reached the driver's disk yet: they travel in the checkpoint."""
        return list(self._pending)

    def letter(self) -> Letter | None:
        """What there is to tell now; None before the start, unless it is a failure."""
        if not self._started and self.failure is None:
            return None
        points, notices = tuple(self._pending), tuple(self._notices)
        return Letter(
            self.rank,
            self.attempt,
            self._first,
            points,
            self._progress,
            self.failure,
            notices,
            self._first_notice,
            tuple(self._reports),
        )

    def accept(self, reply: Reply) -> None:
        """The driver's answer to an earlier letter."""
        with self._heard:
            while self._pending and self._first < reply.acknowledged:
                self._pending.popleft()
                self._first += 1
            while self._notices and self._first_notice < reply.notices:
                self._notices.popleft()
                self._first_notice += 1
            while self._reports and self._reports[0].epoch <= reply.reported:
                self._reports.popleft()
            self._reported = max(self._reported, reply.reported)
            if reply.wish == "leave":
                self._leave.set()
            elif reply.wish == "stop":
                self._stop.set()
            elif reply.wish == "save" and self._last_wish != "save":  # the same wish comes with every reply
                self._save.set()
            self._last_wish = reply.wish
            self._heard.notify_all()

    def close(self, timeout_s: float = 10.0) -> bool:
        """Deliver what is left; True where all of it was acknowledged."""
        self._closing = True
        self._wake.set()
        self.news.set()
        if self._courier is not None:
            self._courier.join(timeout_s)
        elif self._fetched and self._started:
            with self._heard:
                self._heard.wait_for(lambda: not (self._pending or self._reports), timeout_s)
        return not (self._pending or self._reports)

    def _carry(self) -> None:
        while not self._closing:
            self._wake.wait(self._interval_s)
            self._exchange()
        deadline = time.monotonic() + 8.0
        while (self._pending or self._reports) and time.monotonic() < deadline:
            if not self._exchange():
                time.sleep(0.2)

    def _exchange(self) -> bool:
        if self._channel is None:
            return False
        with self._sending:
            letter = self.letter()
            if letter is None:
                return False
            try:
                reply = self._channel.exchange(letter)
            except Exception as error:  # noqa: BLE001 - the driver may be gone; the points stay for the next try
                _log.debug("a letter to the driver was not delivered: %s", error)
                return False
            self.accept(reply)
            return True
