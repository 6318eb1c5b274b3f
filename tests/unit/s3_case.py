"""A real S3 server on this machine (moto's), for tests of what lies in buckets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import pytest

ACCOUNT: Mapping[str, str] = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "hidden-key",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""Variables that name an account; the server takes any."""


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Serve, and give the address as HOST:PORT; skips where moto is not installed."""
    moto_server = pytest.importorskip("moto.server", reason="moto[s3] is not installed")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"{host}:{port}"
    finally:
        server.stop()
