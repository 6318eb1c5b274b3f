"""A small job on the local cluster, disturbed and compared with an undisturbed one; and what may be left of it."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import psutil
from mlflow import MlflowClient

from orchestrator.local_cluster import processes
from orchestrator.local_cluster.cluster import LocalCluster
from orchestrator.records import Verdict
from orchestrator.runs.folder import RunFolder, RunRecord, list_runs
from orchestrator.storage import Folder

NAME = "case"
STEPS = 78
STEP_S = 0.15
"""How long a step takes at least, until told to hurry."""
SPEC = f"""
name: {NAME}
seed: 3
data: {{source: {{kind: sklearn, name: digits}}, target: label, transforms: [{{kind: standardize}}]}}
model: {{name: "slow_net:Net", args: {{control: CONTROL}}}}
train: {{max_epochs: 6, max_steps: {STEPS}, global_batch_size: 100, optimizer: {{kind: adamw, lr: 0.01}}}}
resources: {{num_workers: 2, placement_strategy: SPREAD, start_timeout: 90s}}
checkpoint: {{every_n_steps: 5}}
failure: {{stop_grace: 20s, hang_timeout: 30s}}
"""
DAWDLE_S = 2.0
NET = f'''
import os
import socket
import time
from pathlib import Path

import torch


class Net(torch.nn.Module):
    """Takes its time in training until told to hurry, raises when told to, and tells where each rank is."""

    def __init__(self, num_outputs, control):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, num_outputs))
        self.control = Path(control)
        (self.control / ("rank-" + os.environ.get("RANK", "none"))).write_text(socket.gethostname())

    def forward(self, images):
        if self.training and not (self.control / "hurry").exists():
            time.sleep({DAWDLE_S} if (self.control / "dawdle").exists() else {STEP_S})
            if (self.control / "raise").exists():
                raise ValueError("told to raise")
        return self.layers(images)
'''
COMPARED = ("train/loss", "val/loss", "val/accuracy", "test/loss", "test/accuracy")
FURNITURE = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::DashboardHead")
"""Ray's own processes that carry its mark, and workers with nothing to do."""
_GONE_TIMEOUT_S = 90.0
_STATE_SCRIPT = """
import json, sys
from ray._private.services import _get_gcs_client_options
from ray._private.state import GlobalState
state = GlobalState()
state._initialize_global_state(_get_gcs_client_options(sys.argv[1]))
groups = [group["state"] for group in state.placement_group_table().values() if group["state"] != "REMOVED"]
actors = [actor["ClassName"] for actor in state.actor_table(None).values() if actor["State"] != "DEAD"]
print(json.dumps({"placement groups": groups, "actors": actors}))
"""


@functools.cache
def empty_store() -> bytes:
    """The file of an MLflow store with no run in it."""
    with tempfile.TemporaryDirectory() as folder:
        MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
        return Path(folder, "mlflow.db").read_bytes()


class Driver:
    """An `orchestrator run` that goes on somewhere on the cluster."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self.process = process
        self._log = log

    def wait(self, timeout_s: float = 300) -> int:
        """Its exit code. Fails after the time, with the end of what it printed."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"the driver goes on after {timeout_s:g} s:\n{self.output()[-4000:]}"
            ) from None

    def output(self) -> str:
        return Path(self._log.name).read_text(errors="replace")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._log.close()


class Case:
    """One job of its own, with its code, storage and tracking, on the shared folder of a cluster."""

    def __init__(self, cluster: LocalCluster, root: Path) -> None:
        self.cluster = cluster
        self.root = root
        self.project, self.control = root / "project", root / "control"
        for folder in (self.project, self.control):
            folder.mkdir(parents=True)
        (self.project / "job.yaml").write_text(SPEC.replace("CONTROL", str(self.control)))
        (self.project / "slow_net.py").write_text(NET)
        (root / "mlflow.db").write_bytes(empty_store())  # or each first driver would spend long on making one
        self._drivers: list[Driver] = []

    @property
    def storage(self) -> Path:
        return self.root / "runs"

    def start(self, *overrides: str, on: str = "head") -> Driver:
        """Start the job's driver on a node; `overrides` as on the command line."""
        command = [
            sys.executable,
            "-m",
            "orchestrator",
            "run",
            "job.yaml",
            f"storage={self.storage}",
            *overrides,
        ]
        log = (self.root / f"driver-{len(self._drivers) + 1}.log").open("wb")
        process = subprocess.Popen(
            self.cluster.command_on(on, command),
            cwd=self.project,
            env=self.cluster.environment_on(on) | {"PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        self._drivers.append(Driver(process, log))
        return self._drivers[-1]

    def node_of(self, rank: int) -> str:
        """Where a rank of the newest attempt is at work."""
        return (self.control / f"rank-{rank}").read_text().removeprefix(f"{self.cluster.label}-")

    def dawdle(self) -> None:
        """From now on each step takes seconds, so that the run does not end before what is to come."""
        (self.control / "dawdle").touch()

    def hurry(self) -> None:
        """From now on the steps take no time."""
        (self.control / "hurry").touch()

    def wait_for_step(self, step: int, timeout_s: float = 300) -> None:
        """Wait until the driver has recorded so many steps."""
        self.wait_until(lambda: max(self.steps(), default=0) >= step, timeout_s, f"step {step}")

    def wait_for_attempt(self, attempt: int, timeout_s: float = 300) -> None:
        """Wait until the run's so-manieth attempt has made a step."""

        def made() -> bool:
            beat = self.run.read_beat() if self.storage.exists() and self.has_run() else None
            return beat is not None and beat.attempt >= attempt and bool(beat.progress and beat.progress.step)

        self.wait_until(made, timeout_s, f"a step of attempt {attempt}")

    def wait_until(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            ended = self._drivers and self._drivers[-1].process.poll() is not None
            if (ended and not condition()) or time.monotonic() > deadline_s:
                told = self._drivers[-1].output()[-4000:] if self._drivers else ""
                raise AssertionError(f"no {what}{', the driver has ended' if ended else ''}:\n{told}")
            time.sleep(0.1)

    def has_run(self) -> bool:
        return bool(list_runs(Folder.at(self.storage), NAME))

    @property
    def run(self) -> RunFolder:
        """The only run there is: a resumed one is the same run."""
        (run,) = list_runs(Folder.at(self.storage), NAME)
        return run

    @property
    def record(self) -> RunRecord:
        record = self.run.read_record()
        assert record is not None
        return record

    @property
    def verdict(self) -> Verdict:
        verdict = self.run.read_verdict()
        assert verdict is not None
        return verdict

    def steps(self) -> dict[int, int]:
        """Milliseconds since the epoch of the optimizer steps in the journal; of a repeated one the last."""
        found: dict[int, int] = {}
        for file in self.storage.glob(f"{NAME}-*/tracking/journal.jsonl"):
            for line in file.read_text(errors="replace").splitlines():
                try:
                    points = json.loads(line).get("points", [])
                except ValueError:  # the line that is being written
                    continue
                found.update({step: time_ms for key, _, step, time_ms in points if key == "train/loss"})
        return found

    def step_times_ms(self) -> list[int]:
        """When the steps were made, in this order; what was repeated, as it was made last."""
        return sorted(self.steps().values())

    def result(self) -> dict[str, Any]:
        """What must be equal to an undisturbed run's: the model's bits, and the metrics of every step."""
        client = MlflowClient(self.tracking_uri)
        run_id = self.record.mlflow_run_id
        assert run_id is not None
        history = {
            key: sorted((point.step, point.value) for point in client.get_metric_history(run_id, key))
            for key in COMPARED
        }
        model = (self.storage / self.run.label / "model" / "model.safetensors").read_bytes()
        return {"model": hashlib.sha256(model).hexdigest(), **history}

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.root}/mlflow.db"

    def mlflow_statuses(self) -> list[str]:
        client = MlflowClient(self.tracking_uri)
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        return [run.info.status for run in client.search_runs(experiments)]

    def close(self) -> None:
        for driver in self._drivers:
            driver.close()

    def check_nothing_is_left(self) -> None:
        """No driver, worker, actor or placement group; no temporary file; no run that MLflow believes to go on."""
        self.wait_until_gone()
        temporary = [
            path for path in self.storage.rglob("*") if path.name.startswith(".") or ".tmp" in path.name
        ]
        assert not temporary, temporary
        assert "RUNNING" not in self.mlflow_statuses()

    def wait_until_gone(self) -> None:
        """Wait until nothing of the job lives on the cluster any more."""
        assert all(driver.process.poll() is not None for driver in self._drivers)
        deadline_s = time.monotonic() + _GONE_TIMEOUT_S
        while (left := self._left()) and time.monotonic() < deadline_s:
            time.sleep(0.5)
        assert not left, left

    def _left(self) -> dict[str, Any]:
        plan = self.cluster.plan
        workers = [
            f"{node.name}: {command}"
            for node in plan.nodes
            for process in processes.node_processes(plan, node.name)
            if (command := command_of(process)).startswith("ray::") and command.split()[0] not in FURNITURE
        ]
        done = subprocess.run(
            [sys.executable, "-c", _STATE_SCRIPT, plan.gcs],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        found = {"workers": workers, **json.loads(done.stdout.splitlines()[-1])}
        return {what: items for what, items in found.items() if items}


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def worker_processes(cluster: LocalCluster) -> dict[int, str]:
    """The training processes that run on the nodes, and where: process number to node."""
    plan = cluster.plan
    return {
        process.pid: node.name
        for node in plan.workers
        for process in processes.node_processes(plan, node.name)
        if re.match(r"ray::\w*Worker", command_of(process))
    }
