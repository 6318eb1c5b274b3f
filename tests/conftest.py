"""What holds for all tests: a clean environment, no leftovers, fixed seeds, one local Ray for who asks."""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import psutil
import pytest

# Before anything is imported that reads them; child processes inherit them.
for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "ORCHESTRATOR_STORAGE", "RAY_ADDRESS"):
    os.environ.pop(name, None)
os.environ |= {
    "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MPLBACKEND": "agg",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
}

# A loaded machine must not fail a test, and what CI tries must not depend on luck.
hypothesis.settings.register_profile(
    "ours",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize="CI" in os.environ,
)
hypothesis.settings.load_profile("ours")

CLUSTER_FIXTURES = {"fault_cluster", "ray_cluster", "ray_head"}
SET_BY_LIBRARIES = (
    "KMP_",
    "LIBHDFS_OPTS",
    "_MLFLOW_",
    "PYTEST_",
    "PYTHONBREAKPOINT",
    "RAY_CLIENT_MODE",
    "RAY_DEDUP_LOGS",
    "TORCHINDUCTOR_",
)
"""Prefixes of variables that scikit-learn, mlflow, pytest and ray set when they are imported or started, and the
storage for Java."""
HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
"""Processes that Python starts at first use and keeps until it ends."""
GRACE_S = 5.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever asks for a Ray cluster is marked so, and runs after all others: the quick tests speak first."""
    for item in items:
        if CLUSTER_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("cluster")
    items.sort(key=lambda item: item.get_closest_marker("cluster") is not None)


@dataclass(frozen=True)
class Surroundings:
    """What a test must leave as it found it."""

    environment: dict[str, str]
    folder: Path
    threads: frozenset[threading.Thread]
    children: frozenset[psutil.Process]


def surroundings() -> Surroundings:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(SET_BY_LIBRARIES)}
    threads = frozenset(thread for thread in threading.enumerate() if not thread.daemon)
    return Surroundings(environment, Path.cwd(), threads, frozenset(psutil.Process().children()))


def leftovers(before: Surroundings) -> list[str]:
    """What has changed, in words. Threads and processes that are about to end get the time to do so."""
    deadline = time.monotonic() + GRACE_S
    now = surroundings()
    names = sorted({name for name, _ in before.environment.items() ^ now.environment.items()})
    found = [f"environment variable {name}" for name in names]
    if now.folder != before.folder:
        found.append(f"working directory {now.folder}")
    for thread in now.threads - before.threads:
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            found.append(f"thread {thread.name}")
    started = {process: command_of(process) for process in now.children - before.children}
    ours = [process for process, command in started.items() if not any(name in command for name in HELPERS)]
    _, alive = psutil.wait_procs(ours, timeout=max(0.0, deadline - time.monotonic()))
    for process in alive:
        found.append(f"child process {process.pid}: {started[process][:200]}")
        process.kill()
    return found + (["torch.distributed's process group"] if close_process_group() else [])


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""


def close_process_group() -> bool:
    """Whether torch.distributed was still initialised; torch is not imported for this."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    torch.distributed.destroy_process_group()
    return True


@pytest.fixture(autouse=True)
def no_leftovers() -> Iterator[None]:
    """Fails a test that leaves something behind, and clears up what the next tests would trip over."""
    before, search_path = surroundings(), list(sys.path)
    yield
    found = leftovers(before)
    sys.path[:] = search_path
    os.chdir(before.folder)
    for name in surroundings().environment.keys() - before.environment.keys():
        del os.environ[name]
    os.environ.update(before.environment)
    if found:
        pytest.fail(f"the test leaves behind: {'; '.join(found)}", pytrace=False)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """The same random numbers in every test; what is not imported yet starts from its own fixed state."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """One local Ray of 4 CPUs for the session, connected to this process; gives its address for others."""
    import ray

    # Not pytest's own folder: paths of sockets are limited to 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    try:
        context = ray.init(
            num_cpus=4,
            include_dashboard=False,
            object_store_memory=200_000_000,
            log_to_driver=False,
            logging_level="error",
            _temp_dir=str(folder),
        )
        yield context.address_info["gcs_address"]
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
