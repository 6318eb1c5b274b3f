"""Which local clusters there are: a number for a new one, its plan on disk, and what is left of a dead one.

Imports: errors, filelock, the standard library.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from orchestrator.errors import OrchestratorError, UsageError
from orchestrator.local_cluster import network
from orchestrator.local_cluster.plan import BASE, Plan, address_of, plan_from_dict
from orchestrator.local_cluster.processes import cluster_processes, kill_all

_PLAN_FILE = "cluster.json"
_NUMBERS = range(1, 255)


def reserve(make: Callable[[int], Plan]) -> Plan:
    """Take a free number: of two who try at once only one gets it. The folder is there, with the plan in it."""
    taken = network.links("oc") + network.namespaces("oc") if shutil.which("ip") else []
    ours = network.addresses() if shutil.which("ip") else set()
    for number in _NUMBERS:
        plan = make(number)
        in_use = any(name.startswith(f"{plan.label}-") for name in taken)
        subnet = address_of(number, plan.isolated, 1).rpartition(".")[0]
        if in_use or any(address.startswith(f"{subnet}.") for address in ours):
            continue
        with contextlib.suppress(FileExistsError):
            plan.folder.mkdir(mode=0o755)
            plan.shared.mkdir()
            plan.shared.chmod(0o1777)
            write_plan(plan)
            return plan
    raise UsageError(f"all numbers from 1 to 254 are taken, see {BASE}/oc*", "take some clusters down")


def write_plan(plan: Plan) -> None:
    file = plan.folder / _PLAN_FILE
    text = file.with_suffix(".new")
    text.write_text(json.dumps(plan.to_dict(), indent=1))
    text.replace(file)


def read_plan(label: str) -> Plan:
    """Raises UsageError that lists the clusters there are."""
    try:
        return plan_from_dict(json.loads((BASE / label / _PLAN_FILE).read_text()))
    except FileNotFoundError as error:
        known = ", ".join(labels())
        raise UsageError(
            f"no local cluster is named '{label}'",
            f"there are: {known}" if known else "start one: orchestrator cluster up --local 3",
        ) from error
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise OrchestratorError(
            f"{BASE / label / _PLAN_FILE} cannot be read: {error}",
            f"clear the cluster away: orchestrator cluster down {label}",
        ) from error


def changing(label: str) -> FileLock:
    """Held by whoever changes a cluster's plan."""
    return FileLock(BASE / label / "lock")


def labels() -> list[str]:
    """The clusters of this user, also those of which only a folder is left."""
    found = [
        path for path in BASE.glob("oc*") if path.name[2:].isdecimal() and path.stat().st_uid == os.getuid()
    ]
    return sorted((path.name for path in found), key=lambda label: int(label[2:]))


def remove(label: str) -> None:
    """Take a cluster down with all that belongs to it; what is not there is no matter.

    Raises OrchestratorError where processes do not die.
    """
    folder = BASE / label
    alive = kill_all(lambda: cluster_processes(label))
    if alive:
        raise OrchestratorError(
            f"processes of {label} do not end: {', '.join(str(process.pid) for process in alive)}",
            "end them by hand, then try again",
        )
    if shutil.which("ip"):
        network.remove(f"{label}-")
    while _is_mounted(folder / "shared"):
        network.command("umount", "--lazy", str(folder / "shared"))
    shutil.rmtree(folder, ignore_errors=True)  # last: it keeps the number


def _is_mounted(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.is_mount()
    return False
