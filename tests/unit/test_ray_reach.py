"""Whether a node can be reached."""

from __future__ import annotations

import socket

from orchestrator.runners.ray_workers.reach import reachable


def test_a_machine_answers_by_taking_a_connection_or_by_refusing_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert reachable(address)
    assert reachable(address)  # nobody listens any more
    assert not reachable("no-such-host.invalid:1", timeout_s=1.0)
