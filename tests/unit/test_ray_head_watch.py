"""A head that does not answer is given up before Ray ends the driver for it."""

from __future__ import annotations

import threading

import pytest

from orchestrator.runners.ray_workers import head_watch
from orchestrator.runners.ray_workers.head_watch import HeadLost, HeadWatch, head_given_up, head_patience_s

SETTING = "RAY_gcs_rpc_server_reconnect_timeout_s"


@pytest.mark.parametrize(("setting", "nodes_s"), [(None, 60), ("20", 20), ("600", 600), ("soon", 60)])
def test_the_driver_waits_less_than_the_nodes(
    monkeypatch: pytest.MonkeyPatch, setting: str | None, nodes_s: float
) -> None:
    if setting is None:
        monkeypatch.delenv(SETTING, raising=False)
    else:
        monkeypatch.setenv(SETTING, setting)
    head_watch._nodes_patience_s.cache_clear()
    try:
        assert nodes_s / 2 < head_patience_s() < nodes_s
    finally:
        head_watch._nodes_patience_s.cache_clear()


def test_a_silent_head_is_given_up_and_it_is_said_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_watch, "_given_up", threading.Event())
    told: list[HeadLost] = []
    HeadWatch(3600, told.append).check()
    assert not head_given_up()
    watch = HeadWatch(-1, told.append)
    for _ in range(2):
        with pytest.raises(HeadLost, match="run the same command again") as caught:
            watch.check()
    assert (caught.value.cause, caught.value.exit_code) == ("control plane", 75)
    assert head_given_up()
    assert len(told) == 1
