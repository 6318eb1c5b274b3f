"""Storage that fails for a moment: try again with growing pauses. Imports: the standard library."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

PAUSES_S: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Between one try and the next: a storage may be gone for a quarter of a minute in all."""

_FOR_GOOD = frozenset(
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EDQUOT", "EFBIG", "EACCES", "EPERM", "EROFS", "ENOENT", "ENOTDIR", "EISDIR"),
        *("ENAMETOOLONG", "EINVAL", "ENODEV", "ENXIO"),
    )
    if hasattr(errno, name)
)
_REFUSED = (
    "access_denied",
    "access denied",
    "no_such_bucket",
    "nosuchbucket",
    "invalid_access_key",
    "signature",
)
"""What remote filesystems say, which give no error numbers, where trying again does not help."""


def can_pass(error: OSError) -> bool:
    """Whether the same call may succeed later: a connection, a server, a mount that comes back."""
    text = str(error).lower()
    if error.errno == errno.EROFS and "hdfs" in text:
        return True  # its NameNode was just started, and lets nobody write yet
    if error.errno in _FOR_GOOD or isinstance(error, FileNotFoundError | PermissionError):
        return False
    return not any(sign in text for sign in _REFUSED)


def room_may_come(error: OSError) -> bool:
    """As `can_pass`, or the disk is full, and somebody may make room: for what is worth waiting for."""
    return can_pass(error) or error.errno in (errno.ENOSPC, errno.EDQUOT)


def patiently(
    action: Callable[[], _T],
    what: str,
    pauses_s: Sequence[float] = PAUSES_S,
    *,
    passes: Callable[[OSError], bool] = can_pass,
    pause: Callable[[float], object] = time.sleep,
) -> _T:
    """The action's result; it is done again after each of the pauses while an error that passes stops it."""
    for seconds in pauses_s:
        try:
            return action()
        except OSError as error:
            if not passes(error):
                raise
            _log.warning("%s failed and is tried again in %g s: %s", what, seconds, error)
        pause(seconds)
    return action()
