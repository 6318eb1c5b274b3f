"""What is gathered when an attempt has failed: `logs/attempt-N/postmortem/`. Imports: no ray, no torch of its own."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import math
import os
import platform
import re
import socket
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from orchestrator import __version__
from orchestrator.records import Failure, Progress
from orchestrator.runs.folder import SPEC_FILE, RunFolder
from orchestrator.tracking.conventions import without_credentials

_log = logging.getLogger(__name__)
_PACKAGES = ("torch", "torchvision", "ray", "mlflow", "numpy", "pyarrow", "pandas", "safetensors")
_OF_INTEREST = re.compile(
    r"(RAY|CUDA|NVIDIA|NCCL|GLOO|TORCH|PYTORCH|TORCHINDUCTOR|OMP|MKL|PYTHON|ORCHESTRATOR|MLFLOW|SLURM|KUBERNETES|"
    r"AWS|MALLOC)_?.*|(LD_LIBRARY_PATH|LD_PRELOAD|HOSTNAME|LANG|LC_ALL|TZ|HOME|PATH|PWD|TMPDIR|USER)"
)
_HIDDEN = re.compile(
    r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|COOKIE|AUTH(?!_MODE)|CERT|JSON|RUNTIME_ENV", re.IGNORECASE
)
"""Names of variables whose values nobody should read; the last two may hold other variables' values."""
_MASK = "***"


def write_postmortem(
    run: RunFolder,
    attempt: int,
    failures: Sequence[Failure],
    stacks: Mapping[int, str],
    nodes: Iterable[object],
    progress: Progress | None,
    spec_text: str,
    redact: Callable[[str], str],
    *,
    culprit: Failure | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Path:
    """Write the bundle of a failed attempt into the run's folder; where it lies on this machine.

    `failures` are what the ranks reported, of which the earliest is the culprit if none is named. `stacks` are
    given by rank. `nodes` are dataclasses or plain values, `metrics` the newest value of each. `redact` takes the
    secrets out of every file. Storage that does not take it is logged, not raised; raises OSError where this
    machine's disk cannot be written.
    """
    files = {
        "verdict.json": _json(_verdict(attempt, failures, culprit)),
        "environment.json": _json(environment_facts(os.environ, failures)),
        "progress.json": _json({"progress": progress, "metrics": metrics or {}}),
        "nodes.json": _json(list(nodes)),
        SPEC_FILE: spec_text,
        **{f"stacks-rank-{rank}.txt": text for rank, text in sorted(stacks.items())},
    }
    remote = run.postmortem(attempt)
    local = remote.local_path() if remote.is_local else run.local / "postmortem" / f"attempt-{attempt}"
    local.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (local / name).write_text(redact(text), encoding="utf-8")
    if not remote.is_local:
        try:
            remote.upload(local)
        except OSError as error:
            _log.warning("the post-mortem of attempt %d is only in %s: %s", attempt, local, error)
    return local


def environment_facts(variables: Mapping[str, str], failures: Sequence[Failure] = ()) -> dict[str, Any]:
    """Versions, hosts and the variables of interest; what looks like a secret by its name is masked."""
    torch = sys.modules.get("torch")  # not loaded for this
    hosts = {f"rank {failure.rank}": failure.host for failure in failures if failure.host}
    return {
        "orchestrator": __version__,
        "python": sys.version,
        "platform": platform.platform(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "cuda": torch.version.cuda if torch is not None else None,
        "hosts": {"driver": socket.gethostname(), **hosts},
        "variables": {
            name: _MASK if _HIDDEN.search(name) else without_credentials(value)
            for name, value in sorted(variables.items())
            if _OF_INTEREST.fullmatch(name)
        },
    }


def _verdict(attempt: int, failures: Sequence[Failure], culprit: Failure | None) -> dict[str, Any]:
    if culprit is None and failures:
        culprit = min(failures, key=lambda failure: failure.time_s)
    return {
        "attempt": attempt,
        "cause": culprit.cause if culprit else None,
        "culprit": culprit,
        "failures": sorted(failures, key=lambda failure: failure.time_s),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _plain(value: Any) -> Any:
    """The value as JSON can hold it; a number that is none, as text."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _json(value: object) -> str:
    return json.dumps(_plain(value), indent=1, default=str) + "\n"
