"""Whether a node can be reached over the network, asked past Ray. Imports: the standard library.

Ray gives a node up after a minute or so without an answer, where nobody set it otherwise. Until then a worker that is
silent may only be busy; whether its machine still answers tells the two apart.
"""

from __future__ import annotations

import socket


def reachable(address: str, timeout_s: float = 2.0) -> bool:
    """Whether the machine at `address` (host:port) answers, be it by refusing."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return True
