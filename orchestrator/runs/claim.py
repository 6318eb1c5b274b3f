"""Who drives a run: at most one driver at a time, and a dead one is replaced safely.

A claim is a folder `drivers/<n>/` in the run's folder with `holder.json` in it. Making the folder is the
atomic step, so of two drivers that see the same dead one only one gets number n + 1. The number is also the
fencing token: a driver that finds a higher one than its own has lost the run and must not write to it.
A claim lives while its driver gives signs of life and has not released it.
On object stores, where nothing is atomic, the holder's nonce tells two simultaneous winners apart afterwards.
Imports: runs.folder, psutil, the standard library.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from dataclasses import asdict, dataclass, replace

import psutil

from orchestrator.runs.folder import RunFolder

HOLDER_FILE = "holder.json"
SILENCE_S = 30.0
"""A driver that gave no sign of life for so long is dead."""
_CLOCK_TOLERANCE_S = 2.0  # a process' start, as psutil computes it, moves a little when the clock is set


@dataclass(frozen=True)
class Claim:
    """One driver's hold on a run. Times are seconds since the epoch, `pid_created_s` the process' start."""

    number: int
    host: str
    pid: int
    pid_created_s: float
    since_s: float
    nonce: str
    released: bool = False

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since_s))
        return f"{self.host}, process {self.pid}, since {since}"


def take_claim(run: RunFolder, now_s: float) -> Claim | None:
    """Become the run's driver; None where another one lives, or was faster."""
    newest = newest_claim(run)
    if newest is not None and _lives(run, newest, now_s):
        return None
    number = 1 if newest is None else newest.number + 1
    folder = run.claims / str(number)
    if not folder.create_new():
        return None
    claim = Claim(
        number=number,
        host=socket.gethostname(),
        pid=os.getpid(),
        pid_created_s=psutil.Process().create_time(),
        since_s=now_s,
        nonce=uuid.uuid4().hex,
    )
    folder.write_json(HOLDER_FILE, asdict(claim))
    return claim


def release_claim(run: RunFolder, claim: Claim) -> None:
    """Let others drive the run, at once and from this very process too."""
    (run.claims / str(claim.number)).write_json(HOLDER_FILE, asdict(replace(claim, released=True)))


def holds(run: RunFolder, claim: Claim) -> bool:
    """Whether the claim is still the newest one. Where not, another driver has taken over."""
    newest = newest_claim(run)
    return newest is None or (newest.number, newest.nonce) == (claim.number, claim.nonce)


def live_claim(run: RunFolder, now_s: float) -> Claim | None:
    """The claim of the driver that is at work on the run; None where there is none."""
    newest = newest_claim(run)
    return newest if newest is not None and _lives(run, newest, now_s) else None


def newest_claim(run: RunFolder) -> Claim | None:
    numbers = [int(name) for name in run.claims.names() if name.isdecimal()]
    if not numbers:
        return None
    folder = run.claims / str(max(numbers))
    try:
        return Claim(**folder.read_json(HOLDER_FILE))
    except (TypeError, ValueError, OSError):
        # Its driver is just about to write the file, or died before it could: the folder's age decides.
        info = folder.filesystem.get_file_info(folder.path)
        return Claim(
            max(numbers), "", 0, 0.0, since_s=info.mtime.timestamp() if info.mtime else 0.0, nonce=""
        )


def _lives(run: RunFolder, claim: Claim, now_s: float) -> bool:
    if claim.released:
        return False
    beat = run.read_beat()
    last_sign_s = beat.time_s if beat is not None and beat.claim == claim.number else claim.since_s
    if now_s - last_sign_s >= SILENCE_S:
        return False
    return claim.host != socket.gethostname() or _process_lives(claim.pid, claim.pid_created_s)


def _process_lives(pid: int, created_s: float) -> bool:
    """Whether this very process lives: a process that was given its number later does not count."""
    try:
        process = psutil.Process(pid)
        return (
            abs(process.create_time() - created_s) <= _CLOCK_TOLERANCE_S
            and process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
