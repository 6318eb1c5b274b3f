"""The plan of a local cluster, its place on disk, and what its verbs refuse; no Ray and no namespaces."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.cli.cluster import cluster as cli
from orchestrator.errors import OrchestratorError, UsageError
from orchestrator.local_cluster import processes, starting, store
from orchestrator.local_cluster.plan import (
    MARK,
    Plan,
    driver_environment,
    environment,
    hosts_file,
    node_script,
    plan_from_dict,
    port_names,
    ray_start,
    with_node,
)


def plan_of(nodes: int = 3, number: int = 7, **settings: object) -> Plan:
    plan = Plan(number=number, isolated=True, **settings)
    for _ in range(nodes):
        names = port_names(plan, head=not plan.nodes)
        plan = with_node(plan, dict(zip(names, range(40000, 40100), strict=False)))
    return plan


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place of its own for the clusters' folders."""
    monkeypatch.setattr(store, "BASE", tmp_path)
    monkeypatch.setattr("orchestrator.local_cluster.plan.BASE", tmp_path)
    return tmp_path


def test_a_plan_survives_its_file() -> None:
    plan = plan_of(tuned=True, storage_bytes=5)
    assert plan_from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_the_first_node_is_the_head_and_no_two_share_an_address() -> None:
    plan = plan_of(5)
    assert [node.name for node in plan.nodes] == ["head", "w1", "w2", "w3", "w4"]
    assert len({node.address for node in plan.nodes} | {plan.host_address}) == 6
    assert plan.gcs == "10.231.7.10:6379"
    other = plan_of(5, number=8)
    assert not {node.address for node in plan.nodes} & {node.address for node in other.nodes}


def test_names_fit_into_the_15_characters_of_a_network_device() -> None:
    plan = plan_of(200, number=254)
    assert max(len(plan.host_name(node.name)) for node in plan.nodes) <= 15
    assert len(plan.bridge) <= 15


def test_plain_nodes_on_one_machine_get_ports_of_their_own() -> None:
    plan = Plan(number=1, isolated=False)
    head = with_node(plan, dict.fromkeys(port_names(plan, head=True), 1)).head
    command = ray_start(plan, head)
    assert f"--node-ip-address={head.address}" in command
    for name in port_names(plan, head=True):
        assert f"--{name}=1" in command
    assert port_names(plan_of(), head=True) == ()


def test_a_node_gets_no_settings_of_another_ray_and_says_its_mode_outright() -> None:
    plan = plan_of(tuned=True, redis=True)
    base = {"RAY_ADDRESS": "elsewhere", "RAY_AUTH_MODE": "token", "MLFLOW_TRACKING_URI": "x", "HOME": "/root"}
    found = environment(plan, plan.node("w1"), base)
    assert "RAY_ADDRESS" not in found
    assert "MLFLOW_TRACKING_URI" not in found
    assert (found["HOME"], found["RAY_AUTH_MODE"], found[MARK]) == ("/root", "disabled", "oc7/w1")
    assert found["RAY_health_check_failure_threshold"] == "3"
    assert found["RAY_REDIS_ADDRESS"] == "10.231.7.1:6380"
    driver = driver_environment(plan, plan.node("w1"), base)
    assert (driver["RAY_ADDRESS"], driver["MLFLOW_TRACKING_URI"]) == ("10.231.7.10:6379", "x")


def test_a_script_that_the_shell_understands_and_that_starts_ray_again() -> None:
    plan = plan_of()
    script = node_script(plan, plan.node("w1"))
    assert subprocess.run(["sh", "-n", "-c", script], check=False).returncode == 0
    assert "while :; do" in script
    assert "10.231.7.11 oc7-w1\n" in hosts_file(plan)


def test_two_clusters_at_once_get_different_numbers(base: Path) -> None:
    def make(number: int) -> Plan:
        return with_node(Plan(number, isolated=False), {})

    first, second = store.reserve(make), store.reserve(make)
    assert first.number != second.number
    assert store.read_plan(first.label) == first
    assert store.labels() == sorted([first.label, second.label])
    for plan in (first, second, second):  # twice is as good as once
        store.remove(plan.label)
    assert store.labels() == []
    assert list(base.iterdir()) == []


def test_an_unknown_and_a_damaged_cluster_are_told(base: Path) -> None:
    with pytest.raises(UsageError, match=r"no local cluster is named 'oc9'.*cluster up"):
        store.read_plan("oc9")
    (base / "oc9").mkdir()
    (base / "oc9" / "cluster.json").write_text('{"number": 9')
    with pytest.raises(OrchestratorError, match=r"cannot be read.*cluster down oc9"):
        store.read_plan("oc9")


def test_processes_are_found_by_their_mark_with_their_children() -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'], env={})"
    process = subprocess.Popen(
        [sys.executable, "-c", child], env={**os.environ, MARK: "oc99999/w1"}, stdin=subprocess.PIPE
    )
    try:
        while len(psutil.Process(process.pid).children()) != 1:
            time.sleep(0.05)
        plan = Plan(99999, isolated=False)
        assert len(processes.node_processes(plan, "w1")) == 2
        assert processes.node_processes(plan, "w") == []
        assert processes.kill_all(lambda: processes.cluster_processes("oc99999")) == []
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"nodes": 0}, "1 to 200 worker nodes, not 0"),
        ({"nodes": 1, "redis": True}, "redis-server is not installed"),
        ({"nodes": 1, "isolated": True}, "root|not installed|does not allow"),
        ({"nodes": 1, "isolated": False, "storage_bytes": 1}, "needs root"),
    ],
)
def test_what_is_missing_here_is_told_before_anything_starts(
    base: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], said: str
) -> None:
    monkeypatch.setenv("PATH", str(base))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UsageError, match=said):
        starting.start_cluster(**{"isolated": False, **settings})
    assert list(base.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["status", "oc9"], "no local cluster is named 'oc9'"),
        (["kill", "w1"], "there are no local clusters"),
        (["drain", "w1", "--deadline", "soon"], "--deadline: 'soon' is not a duration"),
        (["up", "--storage-size", "much"], "--storage-size: 'much' is not a size"),
        (["down", "oc1", "--all"], "--all ends every cluster"),
    ],
)
def test_the_verbs_refuse_what_they_cannot_do(base: Path, arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["cluster", *arguments])
    assert isinstance(result.exception, UsageError)
    assert said in str(result.exception)


def test_down_is_harmless_where_nothing_is(base: Path) -> None:
    assert CliRunner().invoke(app, ["cluster", "down"]).exit_code == 0
    assert CliRunner().invoke(app, ["cluster", "down", "--all"]).exit_code == 0
    assert json.loads(CliRunner().invoke(app, ["cluster", "status", "-o", "json"]).output) == []


def test_every_verb_has_an_example() -> None:
    for command in cli.registered_commands:
        assert command.callback is not None
        verb = command.name or command.callback.__name__
        assert re.search(rf"Example: orchestrator cluster {verb}", command.callback.__doc__ or ""), verb
