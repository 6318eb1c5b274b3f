"""Calls to Ray's head that must not hang. Imports: ray, inside functions, since it takes a second.

While the head is away, Ray's calls to it neither return nor raise, and no signal handler runs in a thread that waits in
one. After `gcs_rpc_server_reconnect_timeout_s` (60 s unless set) Ray ends the whole process, without a last word.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

Answer = TypeVar("Answer")


def answer_within(timeout_s: float, call: Callable[[], Answer]) -> Answer:
    """What `call` returns or raises; Ray's GetTimeoutError where it takes longer than `timeout_s`.

    It runs in a thread of its own, which a call that hangs keeps until the head answers again.
    """
    answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put((call(), None))
        except BaseException as error:  # noqa: BLE001 - raised again where the answer is waited for
            answers.put((None, error))

    threading.Thread(target=ask, name="ask-head", daemon=True).start()
    try:
        answer, error = answers.get(timeout=timeout_s)
    except queue.Empty:
        from ray.exceptions import GetTimeoutError

        raise GetTimeoutError(f"Ray's head has not answered for {timeout_s:g} s") from None
    if error is not None:
        raise error
    return answer  # type: ignore[no-any-return]
