"""Who drives a run: at most one driver at a time, and a dead one is replaced safely.

A claim is a folder `drivers/<n>/` in the run's folder with `holder.json` in it. Making the folder is the
atomic step, so of two drivers that see the same dead one only one gets number n + 1. The number is also the
fencing token: a driver that finds a higher one than its own has lost the run and must not write to it.

A claim lives until it is released or its driver dies. On the driver's own machine its process tells. Elsewhere
its beats do: a fresh one, or one that comes while we watch. No difference between two machines' clocks decides
that a driver is dead, as a clock may be wrong, or be set: it only tells whether watching is needed.
On object stores, where nothing is atomic, the holder's nonce tells two simultaneous winners apart afterwards.
Imports: runs.folder, runs.process, the standard library.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from orchestrator.runs.folder import RunFolder
from orchestrator.runs.process import process_lives, process_space, process_start

_log = logging.getLogger(__name__)

HOLDER_FILE = "holder.json"
SILENCE_S = 30.0
"""A driver whose last sign of life is no older lives."""
WATCH_S = 8.0
"""So long a driver is watched that gave no fresh sign of life: the time of four beats. Then it is dead."""
_LOOK_S = 0.5
_HELD: set[str] = set()
"""Nonces of the claims that this process holds."""


@dataclass(frozen=True)
class Claim:
    """One driver's hold on a run. `since_s` is in seconds since the epoch; `space` and `start` are the marks of
    its process (see `runs.process`)."""

    number: int
    host: str
    pid: int
    space: str
    start: str
    since_s: float
    nonce: str
    released: bool = False

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since_s))
        return f"{self.host}, process {self.pid}, since {since}"


def take_claim(
    run: RunFolder, now_s: float, *, watched: bool = False, sleep: Callable[[float], None] = time.sleep
) -> Claim | None:
    """Become the run's driver; None where another one lives, or was faster.

    May take `WATCH_S` seconds, unless the caller has `watched` the run and found it silent. Raises OSError
    where the storage does not answer.
    """
    newest = newest_claim(run)
    if newest is not None:
        alive = lives(run, newest, now_s)
        if alive is None and not watched:
            _log.info("watching %s for a sign of life of its driver (%s)", run.label, newest)
            alive = not silent([run], sleep)
        if alive:
            return None
    number = 1 if newest is None else newest.number + 1
    folder = run.claims / str(number)
    if not folder.create_new():
        return None
    claim = Claim(
        number=number,
        host=socket.gethostname(),
        pid=os.getpid(),
        space=process_space(),
        start=process_start(os.getpid()) or "",
        since_s=now_s,
        nonce=uuid.uuid4().hex,
    )
    try:
        folder.write_json(HOLDER_FILE, asdict(claim))
    except OSError:
        with contextlib.suppress(OSError):  # else it looks like that of a driver just starting, for a while
            folder.remove()
        raise
    _HELD.add(claim.nonce)
    return claim


def release_claim(run: RunFolder, claim: Claim) -> None:
    """Let others drive the run, at once and from this very process too. Raises OSError."""
    _HELD.discard(claim.nonce)
    (run.claims / str(claim.number)).write_json(HOLDER_FILE, asdict(replace(claim, released=True)))


def holds(run: RunFolder, claim: Claim) -> bool:
    """Whether the claim is still the newest one. Where not, another driver has taken over."""
    newest = newest_claim(run)
    if newest is None:
        return True
    # No nonce: its file cannot be read just now, which says nothing about whose it is.
    return newest.number == claim.number and newest.nonce in (claim.nonce, "")


def newest_claim(run: RunFolder) -> Claim | None:
    numbers = [int(name) for name in run.claims.names() if name.isdecimal()]
    if not numbers:
        return None
    folder = run.claims / str(max(numbers))
    try:
        return Claim(**folder.read_json(HOLDER_FILE))
    except (TypeError, ValueError, OSError):
        # Its driver is just about to write the file, or died before it could: the folder's age decides.
        info = folder.info()
        since_s = info.mtime.timestamp() if info.mtime else 0.0
        return Claim(max(numbers), host="", pid=0, space="", start="", since_s=since_s, nonce="")


def lives(run: RunFolder, claim: Claim, now_s: float) -> bool | None:
    """Whether the driver of a claim lives, as far as one look tells; None where it must be watched."""
    if claim.released:
        return False
    if (claim.host, claim.space) == (socket.gethostname(), process_space()):
        if claim.pid == os.getpid():
            return claim.nonce in _HELD
        return process_lives(claim.pid, claim.start)
    beat = run.read_beat()
    last_sign_s = beat.time_s if beat is not None and beat.claim == claim.number else claim.since_s
    return True if abs(now_s - last_sign_s) < SILENCE_S else None


def live_claim(run: RunFolder, now_s: float) -> Claim | None:
    """The claim of the driver that is at work on the run; None where there is none, or no sign of one."""
    newest = newest_claim(run)
    return newest if newest is not None and lives(run, newest, now_s) else None


def silent(runs: Sequence[RunFolder], sleep: Callable[[float], None] = time.sleep) -> list[RunFolder]:
    """Those of the runs whose drivers give no sign of life within `WATCH_S` seconds. All are watched at once."""
    seen = [(run, signs(run)) for run in runs]
    for _ in range(round(WATCH_S / _LOOK_S)):
        if not seen:
            break
        sleep(_LOOK_S)
        seen = [(run, before) for run, before in seen if signs(run) == before]
    return [run for run, _ in seen]


def signs(run: RunFolder) -> object:
    """What changes as long as a driver lives."""
    beat = run.read_beat()
    return newest_claim(run), beat and (beat.claim, beat.count, beat.time_s)
