"""Finding a Ray cluster, where there is none."""

from __future__ import annotations

import socket
import time

import pytest

from orchestrator.runners.ray_workers.start import NoCluster, connected_nodes


def test_an_address_where_nothing_listens_is_told_at_once() -> None:
    with socket.socket() as listener:  # bound, not listening: nobody else takes the port
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        began_s = time.monotonic()
        with pytest.raises(NoCluster, match=f"no Ray cluster answers at '{address}'"):
            connected_nodes(address)
    assert time.monotonic() - began_s < 60  # Ray's own wait is minutes
