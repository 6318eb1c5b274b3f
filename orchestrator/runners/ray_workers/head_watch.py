"""Notice in time that Ray's head is away for good. Imports: errors; ray inside functions, since it takes a second.

Without its head a cluster ends by itself: after `gcs_rpc_server_reconnect_timeout_s` (60 s unless set) each node ends,
and each driver on it with it, without a last word. A driver that gives the head up somewhat earlier can still say so.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from orchestrator.errors import OrchestratorError

_log = logging.getLogger(__name__)
EVERY_S = 2.0
_SETTING = "RAY_gcs_rpc_server_reconnect_timeout_s"
_RAYS_OWN_S = 60.0
_SHARE = 2 / 3
"""The part of the nodes' patience that we wait: the rest is for the verdict and for MLflow."""
_LAST_SHARE = 0.92
"""When we leave, whatever is not done yet: the next driver sends MLflow what it has missed."""
_DRIVERS_OWN_S = 600.0
_GAP_S = 10.0
"""The longest that a call to a head that is away may take between two checks."""
_given_up = threading.Event()


class HeadLost(OrchestratorError):
    cause = "control plane"
    exit_code = 75


@functools.cache
def _nodes_patience_s() -> float:
    """How long the nodes wait for the head: by their environment, which this process is taken to share."""
    try:
        return float(os.environ.get(_SETTING, _RAYS_OWN_S))
    except ValueError:
        return _RAYS_OWN_S


def head_patience_s() -> float:
    """How long we wait for the head: less than the nodes do."""
    return _nodes_patience_s() * _SHARE


def outlive_head() -> None:
    """Let this process live on while the head is away. Call before Ray is initialised, which reads it then."""
    os.environ[_SETTING] = str(round(max(_DRIVERS_OWN_S, 2 * _nodes_patience_s())))


def head_given_up() -> bool:
    """Whether this process has given its cluster up: what Ray would do to leave it in peace would hang."""
    return _given_up.is_set()


def leave_in_time(error: HeadLost) -> None:
    """End this process shortly before Ray would, if it has not ended by itself: the exit code still tells."""

    def leave() -> None:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)

    timer = threading.Timer(_nodes_patience_s() * (_LAST_SHARE - _SHARE), leave)
    timer.daemon = True
    timer.start()


class HeadWatch:
    """Asks the connected cluster's head for a sign of life, from a thread of its own, within a `with` block.

    While the head is away the thread waits for it within Ray; so others judge by how long they have heard nothing.
    `on_lost` is called once, when the head is given up.
    """

    def __init__(self, patience_s: float, on_lost: Callable[[HeadLost], None]) -> None:
        self._patience_s, self._on_lost = patience_s, on_lost
        self._heard = False
        self._silent_s, self._checked_s = 0.0, time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="head-watch", daemon=True)

    def __enter__(self) -> HeadWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()  # nobody waits for the thread: it may be waiting for the head

    def check(self) -> None:
        """Raise HeadLost where the head has been silent for too long. Calls nothing of Ray's."""
        now_s = time.monotonic()
        # While this process stood still (Ctrl-Z, a frozen container), nobody listened.
        self._silent_s = 0.0 if self._heard else self._silent_s + min(now_s - self._checked_s, _GAP_S)
        self._heard, self._checked_s = False, now_s
        if self._silent_s > self._patience_s:
            error = HeadLost(
                f"Ray's head has not answered for {self._silent_s:.0f} s, and without it the cluster ends",
                "run the same command again when the cluster, or a new one, is up: it goes on from the last "
                "checkpoint. A head that keeps what it knows in a Redis may be away for longer where all nodes and "
                f"the driver have {_SETTING} in their environment",
            )
            if not _given_up.is_set():
                _given_up.set()
                self._on_lost(error)
            raise error

    def _watch(self) -> None:
        import ray
        from ray.experimental.internal_kv import _internal_kv_exists

        while not self._over.is_set():
            try:
                _internal_kv_exists(b"orchestrator", namespace=b"orchestrator")
                self._heard = True
            except ray.exceptions.RayError as error:  # no answer, which is what is watched for
                _log.info("Ray's head does not answer: %s", error)
            except Exception as error:  # noqa: BLE001 - what is wrong with the question must not end a run
                _log.warning("Ray's head cannot be watched: %s", error)
                self._patience_s = math.inf
                return
            self._over.wait(EVERY_S)
