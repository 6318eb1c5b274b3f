"""What a submitted job consists of: command, runtime environment, metadata, and secrets that Ray never shows.

Imports: spec, errors, the standard library. No ray: packages are made and tested without a cluster.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import importlib.util
import json
import math
import os
import re
import secrets
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from orchestrator import __version__
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.spec.load import LoadedSpec

SECRETS_MODULE = "orchestrator_job_secrets"
_SECRETS_FILE = "values.json"
_STOP_MARGIN_S = 15  # beyond stop_grace: for the driver to record the run's end
_SHORTEST_SECRET = 4  # shorter values turn up by chance
_PACKAGE = Path(__file__).resolve().parents[2]
_FORWARDED = ("ORCHESTRATOR_STORAGE", "MLFLOW_TRACKING_URI")


@dataclass(frozen=True)
class JobPackage:
    """A job, ready to submit. Only `secrets` may hold secret values; all who see the cluster see the rest."""

    entrypoint: str
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    py_modules: tuple[str, ...] = ()
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


def package_job(loaded: LoadedSpec, *, spec_argument: str, overrides: Sequence[str]) -> JobPackage:
    """The job that runs this spec on a cluster as `orchestrator run` does here.

    The working directory is shipped with the user's code, and this very package beside it. Overrides of
    `secrets.*` travel with the secrets, as do the variables that the spec's secrets are made of.

    Raises UsageError where the spec lies outside of the working directory, or where a secret's value would
    also be shown by Ray (in env_vars, pip, the command).
    """
    spec = loaded.spec
    working_dir = _folder(spec.runtime_env.working_dir)
    shown = [override for override in overrides if re.split(r"[.=]", override)[0].strip() != "secrets"]
    hidden = {name: value.get_secret_value() for name, value in spec.secrets.items()}
    hidden |= {name: os.environ[name] for name in loaded.secret_env_names if name in os.environ}
    env_vars = {name: os.environ[name] for name in loaded.env_names if name in os.environ}
    for name, value in _forwarded().items():
        (hidden if urlsplit(value).password else env_vars)[name] = value
    runtime_env: dict[str, Any] = {"working_dir": str(working_dir)}
    if spec.runtime_env.excludes:
        runtime_env["excludes"] = list(spec.runtime_env.excludes)
    if spec.runtime_env.pip:
        runtime_env["pip"] = list(spec.runtime_env.pip)
    runtime_env["env_vars"] = {
        # Ray reads it as an integer from the job's own environment.
        "RAY_JOB_STOP_WAIT_TIME_S": str(math.ceil(spec.failure.stop_grace) + _STOP_MARGIN_S),
        **{name: value for name, value in env_vars.items() if name not in hidden},
        **spec.runtime_env.env_vars,
    }
    path = _inside(working_dir, spec_argument)
    package = JobPackage(
        entrypoint=shlex.join(["python", "-m", "orchestrator", "run", path, *shown]),
        runtime_env=runtime_env,
        metadata={
            "orchestrator.job": spec.name,
            "orchestrator.spec": path,
            "orchestrator.spec_hash": _hash(spec.model_dump_json(exclude={"secrets"})),
            "orchestrator.version": __version__,
            "user": _user(),
        },
        py_modules=() if working_dir == _PACKAGE.parent else (str(_PACKAGE),),
        secrets=hidden,
    )
    _refuse_shown_secrets(package)
    return package


@contextlib.contextmanager
def secrets_module(values: Mapping[str, str]) -> Iterator[Path]:
    """A folder to upload as a Python module that holds the values; gone when the block ends.

    The random part keeps the package's name, a hash that Ray shows, from telling anything of the values.
    """
    with tempfile.TemporaryDirectory(prefix="orchestrator-") as parent:
        folder = Path(parent) / SECRETS_MODULE
        folder.mkdir(mode=0o700)
        (folder / "__init__.py").write_text('"""Secrets of one job."""\n')
        (folder / _SECRETS_FILE).touch(mode=0o600)
        (folder / _SECRETS_FILE).write_text(
            json.dumps({"random": secrets.token_hex(16), "values": dict(values)})
        )
        yield folder


def load_job_secrets() -> tuple[str, ...]:
    """Put the secrets that came with this job, if any, into the environment; gives their names."""
    module = importlib.util.find_spec(SECRETS_MODULE)
    if module is None or module.origin is None:
        return ()
    file = Path(module.origin).with_name(_SECRETS_FILE)
    with contextlib.suppress(OSError):
        file.chmod(0o600)
    values: dict[str, str] = json.loads(file.read_text())["values"]
    os.environ.update(values)
    return tuple(values)


def _folder(working_dir: str) -> Path:
    folder = Path(working_dir).expanduser().resolve()
    if not folder.is_dir():
        raise UsageError(
            f"runtime_env.working_dir '{working_dir}' is no folder of this machine",
            "name the folder that holds the spec and the code next to it",
        )
    return folder


def _inside(working_dir: Path, spec_argument: str) -> str:
    if spec_argument == "-":
        raise UsageError("a spec from standard input cannot be submitted", "write it into a file first")
    path = Path(spec_argument).expanduser().resolve()
    if not path.is_relative_to(working_dir):
        raise UsageError(
            f"the spec {path} lies outside of the working directory {working_dir}, the only one shipped",
            "submit from a folder above the spec, or set runtime_env.working_dir to one",
        )
    return path.relative_to(working_dir).as_posix()


def _forwarded() -> dict[str, str]:
    """Where this shell keeps runs and records them: the cluster is to use the same places."""
    found = {name: os.environ[name] for name in _FORWARDED if os.environ.get(name)}
    storage = found.get("ORCHESTRATOR_STORAGE", "")
    if storage and "://" not in storage:
        found["ORCHESTRATOR_STORAGE"] = str(Path(storage).expanduser().resolve())
    return found


def _refuse_shown_secrets(package: JobPackage) -> None:
    shown = {
        **{f"runtime_env.env_vars.{name}": value for name, value in package.runtime_env["env_vars"].items()},
        "runtime_env.pip": " ".join(package.runtime_env.get("pip", ())),
        "the overrides": package.entrypoint,
        "the spec, outside of secrets,": " ".join(package.metadata.values()),
    }
    for name, value in package.secrets.items():
        for place, text in shown.items():
            if len(value) >= _SHORTEST_SECRET and value in text:
                raise UsageError(
                    f"{place} holds the value of the secret '{name}', and Ray shows that to everybody",
                    f"leave it out there: the job gets the variable '{name}' from its secrets",
                )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        return str(os.getuid())


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
