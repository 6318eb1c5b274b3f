"""The bundle of a failed attempt tells who failed and in which surroundings, and no secret."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import __version__
from orchestrator.records import Failure, Progress
from orchestrator.runners.postmortem import environment_facts, write_postmortem
from orchestrator.runs.folder import RunFolder
from orchestrator.spec import redact
from orchestrator.storage import Folder

SECRET = 'hunter"2'  # JSON writes it in another form
hide = functools.partial(redact, secrets=[SECRET])
FIRST = Failure(
    rank=1, attempt=3, time_s=10.0, error=f"login with {SECRET} failed", cause="user error", mend=f"not {SECRET}",
    traceback=f"Traceback …\n  password = {SECRET!r}\n", host="node7",
)  # fmt: skip
LATER = Failure(rank=0, attempt=3, time_s=11.0, error="peer gone", cause="hardware", host="node6")


@dataclass(frozen=True)
class Node:
    node_id: str
    deadline_s: float | None
    total: dict[str, float]


def bundle(tmp_path: Path, **changes: Any) -> dict[str, str]:
    run = RunFolder(Folder.at(tmp_path), "digits", 1)
    arguments = {
        "failures": [LATER, FIRST],
        "stacks": {0: f"Thread 1\n  call({SECRET!r})\n", 2: "Thread 2\n"},
        "nodes": [Node("n1", float("inf"), {"CPU": 2.0}), {"node_id": "n2", "why": f"saw {SECRET}"}],
        "progress": Progress(1, 9, 5, 10, train_loss=float("nan")),
        "spec_text": f"name: digits\nsecrets: {{A: '{SECRET}'}}\n",
        "redact": hide,
        "metrics": {"train/loss": 0.5, "val/loss": float("inf")},
    }
    folder = write_postmortem(run, 3, **(arguments | changes))
    assert folder == tmp_path / "digits-1" / "logs" / "attempt-3" / "postmortem"
    return {path.name: path.read_text() for path in folder.iterdir()}


def strict(text: str) -> Any:
    """Parsed as strictly as browsers and other languages do."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_everything_is_there_and_nothing_is_secret(tmp_path: Path) -> None:
    files = bundle(tmp_path)
    assert set(files) == {
        "verdict.json", "environment.json", "spec.yaml", "progress.json", "nodes.json",
        "stacks-rank-0.txt", "stacks-rank-2.txt",
    }  # fmt: skip
    assert all("hunter" not in text for text in files.values())
    verdict = strict(files["verdict.json"])
    assert (verdict["attempt"], verdict["cause"], verdict["culprit"]["rank"]) == (3, "user error", 1)
    assert [failure["rank"] for failure in verdict["failures"]] == [1, 0]
    assert verdict["culprit"]["error"] == "login with *** failed"
    assert verdict["culprit"]["traceback"] == "Traceback …\n  password = '***'\n"
    assert strict(files["progress.json"])["progress"]["step"] == 5
    assert strict(files["progress.json"])["metrics"] == {"train/loss": 0.5, "val/loss": "inf"}
    first, second = strict(files["nodes.json"])
    assert (first["node_id"], first["total"], second["why"]) == ("n1", {"CPU": 2.0}, "saw ***")
    assert strict(files["environment.json"])["hosts"]["rank 1"] == "node7"
    assert files["stacks-rank-0.txt"] == "Thread 1\n  call('***')\n"


def test_the_culprit_may_be_known_better(tmp_path: Path) -> None:
    assert strict(bundle(tmp_path, culprit=LATER)["verdict.json"])["culprit"]["rank"] == 0
    assert strict(bundle(tmp_path, failures=[])["verdict.json"])["culprit"] is None


def test_variables_of_interest_are_told_and_credentials_masked() -> None:
    told = environment_facts(
        {
            "NCCL_DEBUG": "INFO",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "abc",
            "RAY_REDIS_PASSWORD": "abc",
            "RAY_JOB_CONFIG_JSON_ENV_VAR": '{"runtime_env": {"env_vars": {"X": "abc"}}}',
            "AWS_SECRET_ACCESS_KEY": "abc",
            "AWS_REGION": "eu-west-1",
            "MLFLOW_TRACKING_URI": "https://me:abc@mlflow.example/x",
            "MLFLOW_TRACKING_TOKEN": "abc",
            "SOME_APP": "abc",
            "LD_LIBRARY_PATH": "/lib",
        }
    )
    assert told["variables"] == {
        "NCCL_DEBUG": "INFO",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "***",
        "RAY_REDIS_PASSWORD": "***",
        "RAY_JOB_CONFIG_JSON_ENV_VAR": "***",
        "AWS_SECRET_ACCESS_KEY": "***",
        "AWS_REGION": "eu-west-1",
        "MLFLOW_TRACKING_URI": "https://mlflow.example/x",
        "MLFLOW_TRACKING_TOKEN": "***",
        "LD_LIBRARY_PATH": "/lib",
    }
    assert told["orchestrator"] == __version__
    assert {"torch", "ray"} <= told["packages"].keys()
