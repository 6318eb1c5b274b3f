"""The isolated network by itself, with no Ray on it: links that are cut and healed, and nothing left of it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from orchestrator.local_cluster import network, processes, store
from orchestrator.local_cluster.plan import MARK, Plan, with_node

ANSWER = """
import socket
with socket.create_server(("", 7000)) as server:
    print("listening", flush=True)
    while True:
        server.accept()[0].close()
"""


@pytest.fixture
def plan(namespaces: None) -> Iterator[Plan]:
    """Two hosts on a bridge."""
    plan = store.reserve(lambda number: with_node(with_node(Plan(number, isolated=True), {}), {}))
    try:
        network.make_bridge(plan)
        for node in plan.nodes:
            network.make_namespace(plan, node)
        yield plan
    finally:
        store.remove(plan.label)


def reach(plan: Plan, timeout_s: float = 0.5) -> bool:
    try:
        socket.create_connection((plan.node("w1").address, 7000), timeout=timeout_s).close()
    except OSError:
        return False
    return True


def test_a_link_is_cut_and_healed_and_nothing_is_left(plan: Plan) -> None:
    command = ["ip", "netns", "exec", plan.host_name("w1"), sys.executable, "-c", ANSWER]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        assert reach(plan, timeout_s=10)
        cuts: dict[network.Cut, str] = {"link": "down", "packets": "loses packets"}
        for how, state in cuts.items():
            network.cut_link(plan, "w1", how)
            assert network.link_state(plan, "w1") == state
            assert not reach(plan)
            network.heal_link(plan, "w1")
            assert network.link_state(plan, "w1") == "up"
            assert reach(plan, timeout_s=10)
        assert network.processes_in(plan.host_name("w1")) == [server.pid]
        store.remove(plan.label)
    assert server.returncode == -signal.SIGKILL
    assert not network.namespaces(f"{plan.label}-")
    assert not network.links(f"{plan.label}-")
    assert not plan.folder.exists()


def test_the_other_hosts_reach_the_machine_whichever_is_cut_off(plan: Plan) -> None:
    """A head keeps what it knows in a Redis there."""
    with socket.create_server((plan.host_address, 0)) as server:
        ask = f"import socket; socket.create_connection({server.getsockname()!r}, timeout=5)"
        for name, other in (("head", "w1"), ("w1", "head")):
            command = ["ip", "netns", "exec", plan.host_name(other), sys.executable, "-c", ask]
            subprocess.run(command, check=True, timeout=60)
            network.cut_link(plan, name, "packets")
            subprocess.run(command, check=True, timeout=60)
            network.heal_link(plan, name)
            subprocess.run(command, check=True, timeout=60)


def test_a_command_on_a_node_gets_signals_and_gives_its_code(plan: Plan) -> None:
    boot = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
    command = ["ip", "netns", "exec", plan.host_name("w1"), *boot, "sh", "-c", "echo up; read _; sleep 60"]
    marked = {**os.environ, MARK: f"{plan.label}/w1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=marked) as node:
        assert node.stdout is not None
        node.stdout.readline()
        first = processes.first_process(plan, "w1")
        assert first is not None
        enter = [sys.executable, "-m", "orchestrator.local_cluster.enter", str(first)]
        seen = subprocess.run([*enter, "sh", "-c", "ps -e | wc -l; exit 3"], capture_output=True, text=True,
                              check=False)  # fmt: skip
        assert (seen.returncode, int(seen.stdout) < 10) == (3, True)
        with subprocess.Popen([*enter, "sh", "-c", "trap 'exit 5' TERM; echo up; while :; do sleep 0.1; done"],
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as told:  # fmt: skip
            assert told.stdout is not None
            told.stdout.readline()
            told.terminate()
            assert told.wait(60) == 5
        with subprocess.Popen([*enter, "sleep", "60"], stdin=subprocess.DEVNULL) as killed:
            while len(network.processes_in(plan.host_name("w1"))) < 4:
                time.sleep(0.05)
            killed.kill()
        os.kill(first, signal.SIGKILL)
    # What was entered has died with the one that entered.
    assert processes.node_processes(plan, "w1") == []


@pytest.mark.skipif(shutil.which("ip") is None, reason="iproute2 is not installed")
def test_the_machine_has_addresses() -> None:
    assert "127.0.0.1" in network.addresses()
